//! The CUDA kernels, compiled for the CPU by `cuda/emulate.cpp`, against plain f64 formulas and against their twins. Every
//! launch is done on several grids, its threads in order and in reverse: all must give the same bytes.
#![expect(unsafe_code, reason = "calls of a library compiled here")]

use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, Var};
use libloading::Library;
use recant::data::{Images, Part};
use recant::nn::loss::{composed, distill, kl_to, nt_xent_original, smoothed_cross_entropy};
use recant::nn::optim::{Rule, Stepper};
use recant::nn::transform::{self, Transform};
use recant::rng::Rng;
use serde_json::json;

type Launch = unsafe extern "C" fn(*const u32, *const u32, *mut *mut c_void) -> i32;

/// Compiled once; none where there is no compiler.
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn emulator() -> Option<&'static Library> {
    static EMULATOR: OnceLock<Option<Library>> = OnceLock::new();
    let library = EMULATOR.get_or_init(|| {
        Command::new("c++").arg("--version").output().ok()?;
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (root().join("tests/cuda/emulate.cpp"), folder.path().join("emulate.so"));
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o"]);
        let output = compiler.arg(&library).arg(source).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: our own source; nothing runs when it is loaded.
        Some(unsafe { Library::new(&library) }.unwrap())
    });
    if library.is_none() {
        eprintln!("skipped: there is no c++ here");
    }
    library.as_ref()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An argument of a kernel.
#[derive(Clone)]
enum Arg {
    /// Memory of the device, and how large one element is.
    Memory(Vec<u8>, usize),
    Null,
    Int(i32),
    Float(f32),
    Double(f64),
    Long(u64),
}

fn floats(values: &[f32]) -> Arg {
    Arg::Memory(values.iter().flat_map(|x| x.to_ne_bytes()).collect(), 4)
}

fn ints(values: &[i32]) -> Arg {
    Arg::Memory(values.iter().flat_map(|x| x.to_ne_bytes()).collect(), 4)
}

fn bytes(values: &[u8]) -> Arg {
    Arg::Memory(values.to_vec(), 1)
}

/// Values as f32 or as bf16, which they must be already.
fn numbers(values: &[f32], half: bool) -> Arg {
    if !half {
        return floats(values);
    }
    assert!(values.iter().all(|x| x.is_nan() || rounded(*x).to_bits() == x.to_bits()));
    Arg::Memory(values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_ne_bytes()).collect(), 2)
}

/// Room for a result; what is there first is not a number.
fn room(length: usize) -> Arg {
    floats(&vec![f32::NAN; length])
}

fn room_of(length: usize, half: bool) -> Arg {
    numbers(&vec![f32::NAN; length], half)
}

/// The memory that a launch left.
struct Left(Vec<Vec<u8>>);

impl Left {
    /// Of the so-manieth argument that is memory.
    fn floats(&self, index: usize) -> Vec<f32> {
        self.0[index].chunks_exact(4).map(|x| f32::from_ne_bytes(x.try_into().unwrap())).collect()
    }

    fn doubles(&self, index: usize) -> Vec<f64> {
        self.0[index].chunks_exact(8).map(|x| f64::from_ne_bytes(x.try_into().unwrap())).collect()
    }

    fn numbers(&self, index: usize, half: bool) -> Vec<f32> {
        if !half {
            return self.floats(index);
        }
        let halves = self.0[index].chunks_exact(2).map(|x| u16::from_ne_bytes(x.try_into().unwrap()));
        halves.map(|x| f32::from_bits(u32::from(x) << 16)).collect()
    }
}

/// Memory as a device has it, between bytes that nobody may change.
struct Guarded {
    words: Vec<u128>,
    start: usize,
    length: usize,
}

const GUARD: usize = 64;

impl Guarded {
    fn new(content: &[u8], shift: usize) -> Self {
        let mut memory = Self {
            words: vec![u128::MAX; (content.len() + 2 * GUARD + shift).div_ceil(16)],
            start: GUARD + shift,
            length: content.len(),
        };
        let (start, length) = (memory.start, memory.length);
        memory.bytes()[start..start + length].copy_from_slice(content);
        memory
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the same memory, as bytes.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), 16 * self.words.len()) }
    }

    fn content(mut self, name: &str) -> Vec<u8> {
        let (start, length) = (self.start, self.length);
        let bytes = self.bytes();
        let outside = bytes[..start].iter().chain(&bytes[start + length..]);
        assert!(outside.copied().all(|byte| byte == 0xff), "{name} writes beside its memory");
        bytes[start..start + length].to_vec()
    }
}

/// One launch. `shifted`: memory is aligned for one element only.
fn once(name: &str, grid: [u32; 3], block: [u32; 3], args: &[Arg], [reverse, shifted]: [bool; 2]) -> Result<Left, i32> {
    let library = emulator().unwrap();
    let memory = |arg: &Arg| match arg {
        Arg::Memory(content, size) => Some(Guarded::new(content, if shifted { *size } else { 0 })),
        _ => None,
    };
    let mut memories: Vec<Option<Guarded>> = args.iter().map(memory).collect();
    let mut pointers: Vec<*mut u8> = memories
        .iter_mut()
        .map(|memory| match memory {
            Some(memory) => {
                let start = memory.start;
                memory.bytes()[start..].as_mut_ptr()
            }
            None => std::ptr::null_mut(),
        })
        .collect();
    let mut scalars = args.to_vec();
    let mut all: Vec<*mut c_void> = scalars
        .iter_mut()
        .zip(&mut pointers)
        .map(|(arg, pointer)| match arg {
            Arg::Memory(..) | Arg::Null => std::ptr::from_mut(pointer).cast(),
            Arg::Int(x) => std::ptr::from_mut(x).cast(),
            Arg::Float(x) => std::ptr::from_mut(x).cast(),
            Arg::Double(x) => std::ptr::from_mut(x).cast(),
            Arg::Long(x) => std::ptr::from_mut(x).cast(),
        })
        .collect();
    // SAFETY: the types are those of the source, the memory is as large as the kernels are told.
    let code = unsafe {
        library.get::<unsafe extern "C" fn(i32)>(b"backwards").unwrap()(i32::from(reverse));
        let launch = library.get::<Launch>(format!("launch_{name}")).unwrap();
        launch(grid.as_ptr(), block.as_ptr(), all.as_mut_ptr())
    };
    let content = memories.into_iter().flatten().map(|memory| memory.content(name)).collect();
    if code == 0 { Ok(Left(content)) } else { Err(code) }
}

const ROW: [u32; 3] = [64, 1, 1];
const TILE: [u32; 3] = [32, 8, 1];

/// What a kernel leaves on any grid, in any order of its threads.
fn launch(name: &str, block: [u32; 3], args: &[Arg]) -> Left {
    let deep = if name.starts_with("turn") { 2 } else { 1 };
    let grids = if block == TILE { [[1, 1, 1], [2, 3, deep], [5, 4, 1]] } else { [[1, 1, 1], [3, 1, 1], [40, 1, 1]] };
    let first = once(name, grids[1], block, args, [false; 2]).unwrap();
    for grid in grids {
        for (reverse, shifted) in [(false, true), (true, false)] {
            let other = once(name, grid, block, args, [reverse, shifted]).unwrap();
            assert!(other.0 == first.0, "{name} on {grid:?}, reverse {reverse}, shifted {shifted}: other bytes");
        }
    }
    first
}

/// The same by type.
fn launch_of(name: &str, half: bool, block: [u32; 3], args: &[Arg]) -> Left {
    launch(&format!("{name}_{}", if half { "bf16" } else { "f32" }), block, args)
}

/// The nearest bf16, of two the even one.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() { f32::NAN } else { f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000) }
}

fn draws(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed).fork("cuda");
    (0..count).map(|_| rng.normal()).collect()
}

/// The same as bf16 where it is wanted.
fn values(seed: u64, count: usize, half: bool) -> Vec<f32> {
    draws(seed, count).into_iter().map(|x| if half { rounded(x) } else { x }).collect()
}

/// `found` is what is expected, but for the roundings of f32, of terms of that size, and the one to bf16.
fn near(what: &str, found: &[f32], expected: &[f64], size: f64, half: bool) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(f) - e).abs();
        let limit = 1e-6 * (size + e.abs()) + if half { e.abs() / 256.0 } else { 0.0 };
        let same = f64::from(f) == e || (f.is_nan() && e.is_nan());
        assert!(same || off <= limit, "{what}, {i}: {f}, not {e}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// The same numbers, NaN where NaN is.
fn same(found: &[f32], expected: &[f32]) -> bool {
    let bits = |x: &f32| if x.is_nan() { 0 } else { x.to_bits() };
    found.iter().map(bits).eq(expected.iter().map(bits))
}

const SIZES: [(usize, usize); 7] = [(1, 1), (1, 130), (300, 1), (37, 3), (70, 64), (129, 130), (65, 4)];

fn int(x: usize) -> Arg {
    Arg::Int(i32::try_from(x).unwrap())
}

fn long(x: usize) -> Arg {
    Arg::Long(x as u64)
}

#[test]
fn every_kernel_of_the_source_has_a_launcher() {
    let Some(library) = emulator() else { return };
    let source = std::fs::read_to_string(root().join("src/kernels/cuda/kernels.cu")).unwrap();
    let word = |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    let typed = source.split("\nKERNEL(").skip(1).flat_map(|rest| ["_f32", "_bf16"].map(|end| word(rest) + end));
    let plain = source.split("\nextern \"C\" __global__ void ").skip(1).map(word);
    let names: Vec<String> = typed.chain(plain).collect();
    assert_eq!(names.len(), 52);
    for name in names {
        // SAFETY: it is not called.
        assert!(unsafe { library.get::<Launch>(format!("launch_{name}")) }.is_ok(), "{name}");
    }
}

#[test]
fn a_lacking_or_a_torn_barrier_is_seen() {
    if emulator().is_none() {
        return;
    }
    let args = [floats(&draws(1, 64)), room(64)];
    let run = |name: &str, reverse| once(name, [1; 3], ROW, &args, [reverse, false]);
    let (forth, back) = (run("careless", false).ok().unwrap(), run("careless", true).ok().unwrap());
    assert!(forth.0 != back.0);
    assert_eq!(run("divergent", false).err(), Some(1));
    assert_eq!(once("careless", [1; 3], [1025, 1, 1], &args, [false; 2]).err(), Some(2));
}

#[test]
fn narrow_and_widen_are_candles() {
    if emulator().is_none() {
        return;
    }
    for count in [1, 64, 1001] {
        let mut x = draws(2, count);
        for (x, edge) in x.iter_mut().skip(1).zip([0x3f80_8000, 0x3f80_8001, 0x3f81_8000, 0x7f7f_ffff, 0xff80_0000]) {
            *x = f32::from_bits(edge);
        }
        let tensor = Tensor::from_slice(&x, count, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let expected: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        let left = launch("narrow", ROW, &[floats(&x), room_of(count, true), long(count)]);
        assert!(same(&left.numbers(1, true), &expected), "{count}");
        let left = launch("widen", ROW, &[numbers(&expected, true), room(count), long(count)]);
        assert!(same(&left.floats(1), &expected), "{count}");
    }
    let left = launch("narrow", ROW, &[floats(&[f32::from_bits(0x7fff_ffff), -f32::NAN]), room_of(2, true), long(2)]);
    assert!(left.numbers(1, true).iter().all(|x| x.is_nan()));
}

#[test]
fn layouts_turn_in_and_out() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for (batch, channels, pixels) in [(1, 1, 1), (2, 3, 49), (1, 64, 1), (3, 130, 33), (5, 1, 70), (7, 40, 9)] {
            let count = batch * channels * pixels;
            let x = values(3, count, half);
            let mut turned = vec![0.0; count];
            for (i, &x) in x.iter().enumerate() {
                let (image, channel, pixel) = (i / pixels / channels, i / pixels % channels, i % pixels);
                turned[(image * pixels + pixel) * channels + channel] = x;
            }
            let sizes = [int(batch), int(channels), int(pixels)];
            let args = [vec![floats(&x), room_of(count, half)], sizes.to_vec()].concat();
            let left = launch_of("turn_in", half, TILE, &args);
            assert_eq!(left.numbers(1, half), turned, "{batch} {channels} {pixels}");
            let args = [vec![numbers(&turned, half), room(count)], sizes.to_vec()].concat();
            assert_eq!(launch_of("turn_out", half, TILE, &args).floats(1), x, "{batch} {channels} {pixels}");
        }
    }
}

/// Mean and biased variance of each channel, by their definition.
fn moments(x: &[f32], channels: usize) -> [Vec<f64>; 2] {
    let rows = (x.len() / channels) as f64;
    let over = |of: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
        let sum = |c| x.iter().skip(c).step_by(channels).map(|&x| of(c, f64::from(x))).sum::<f64>();
        (0..channels).map(|c| sum(c) / rows).collect()
    };
    let mean = over(&|_, x| x);
    let variance = over(&|c, x| (x - mean[c]).powi(2));
    [mean, variance]
}

#[test]
fn moments_are_those_of_the_definition() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for ((rows, channels), chunks) in
            SIZES.into_iter().zip([[1, 9], [1, 9], [7, 128], [1, 16], [50, 99], [64, 99], [16, 65]])
        {
            for chunk in chunks {
                // far from 0: what cancels would show
                let x: Vec<f32> = values(4, rows * channels, half).into_iter().map(|x| x + 100.0).collect();
                let x: Vec<f32> = if half { x.into_iter().map(rounded).collect() } else { x };
                let chunks = rows.div_ceil(chunk);
                let sizes = [int(rows), int(channels), int(chunk)];
                let args = [vec![numbers(&x, half), room(chunks * 2 * channels)], sizes.to_vec()].concat();
                let partial = launch_of("moments", half, TILE, &args).floats(1);
                let args = [vec![floats(&partial), room(2 * channels), room(2 * channels)], sizes.to_vec()].concat();
                let left = launch("moments_end", ROW, &args);
                let [mean, variance] = moments(&x, channels);
                let (seen, told) = (left.floats(1), left.floats(2));
                near("mean", &seen[..channels], &mean, 1.0, false);
                near("variance", &seen[channels..], &variance, 10.0, false);
                assert_eq!(told[..channels], seen[..channels], "the mean that is told");
                // of a single row there is none
                if rows > 1 {
                    let unbiased: Vec<f64> = variance.iter().map(|v| v * rows as f64 / (rows as f64 - 1.0)).collect();
                    near("unbiased variance", &told[channels..], &unbiased, 10.0, false);
                }
            }
        }
    }
}

/// A batch norm with statistics that are no batch's.
struct Norm {
    mean: Vec<f32>,
    variance: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    inverse: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

const EPSILON: f64 = 1e-5;

impl Norm {
    fn new(mean: Vec<f32>, variance: Vec<f32>) -> Self {
        let channels = mean.len();
        let (weight, bias) = (draws(5, channels), draws(6, channels));
        let all = [&mean, &variance, &weight, &bias].map(|x| floats(x)).to_vec();
        let args = [all, vec![room(channels); 3], vec![int(channels), Arg::Double(EPSILON)]].concat();
        let left = launch("line", ROW, &args);
        let [inverse, scale, shift] = [4, 5, 6].map(|index| left.floats(index));
        Self { mean, variance, weight, bias, inverse, scale, shift }
    }

    fn drawn(channels: usize) -> Self {
        Self::new(draws(7, channels), draws(8, channels).iter().map(|x| x * x + 0.1).collect())
    }

    fn inverse(&self, c: usize) -> f64 {
        1.0 / (f64::from(self.variance[c]) + EPSILON).sqrt()
    }

    /// (x - mean) inverse weight + bias
    fn of(&self, c: usize, x: f32) -> f64 {
        let normal = (f64::from(x) - f64::from(self.mean[c])) * self.inverse(c);
        normal * f64::from(self.weight[c]) + f64::from(self.bias[c])
    }
}

#[test]
fn a_batch_norm_is_a_line_with_residual_and_relu() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for (rows, channels) in SIZES {
            let norm = Norm::drawn(channels);
            let inverse: Vec<f64> = (0..channels).map(|c| norm.inverse(c)).collect();
            near("inverse", &norm.inverse, &inverse, 0.0, false);
            let mut x = values(9, rows * channels, half);
            if rows > 1 {
                (x[0], x[1]) = (f32::NAN, f32::NEG_INFINITY);
            }
            let residual = values(10, rows * channels, half);
            for (slope, added) in [(0.0, false), (0.1, true), (1.0, true), (1.0, false)] {
                let expected: Vec<f64> = (0..x.len())
                    .map(|i| {
                        let sum = norm.of(i % channels, x[i]) + if added { f64::from(residual[i]) } else { 0.0 };
                        if sum > 0.0 { sum } else { sum * f64::from(slope) }
                    })
                    .collect();
                let left = launch_of(
                    "normalise",
                    half,
                    ROW,
                    &[
                        numbers(&x, half),
                        floats(&norm.scale),
                        floats(&norm.shift),
                        if added { numbers(&residual, half) } else { Arg::Null },
                        Arg::Float(slope),
                        room_of(x.len(), half),
                        long(x.len()),
                        int(channels),
                    ],
                );
                near("y", &left.numbers(if added { 4 } else { 3 }, half), &expected, 30.0, half);
            }
        }
    }
}

/// Gradients of y = leaky(norm(x) [+ residual]) in f64, where `open` says on which side of 0 y's input is.
struct Expected {
    weight: Vec<f64>,
    bias: Vec<f64>,
    below: Vec<f64>,
}

fn expected_norm_back(norm: &Norm, x: &[f32], before: &[f64], by_batch: bool) -> Expected {
    let channels = norm.mean.len();
    let rows = (x.len() / channels) as f64;
    let normal = |i: usize| (f64::from(x[i]) - f64::from(norm.mean[i % channels])) * norm.inverse(i % channels);
    let over = |c: usize, of: &dyn Fn(usize) -> f64| (c..x.len()).step_by(channels).map(of).sum::<f64>();
    let bias: Vec<f64> = (0..channels).map(|c| over(c, &|i| before[i])).collect();
    let weight: Vec<f64> = (0..channels).map(|c| over(c, &|i| before[i] * normal(i))).collect();
    let below = (0..x.len())
        .map(|i| {
            let c = i % channels;
            let through = if by_batch { (bias[c] + normal(i) * weight[c]) / rows } else { 0.0 };
            f64::from(norm.weight[c]) * norm.inverse(c) * (before[i] - through)
        })
        .collect();
    Expected { weight, bias, below }
}

#[test]
fn a_batch_norm_goes_back() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for ((rows, channels), chunk) in SIZES.into_iter().zip([1, 1, 128, 16, 50, 64, 1000]) {
            for (slope, with_residual, by_batch) in
                [(0.0, false, true), (0.1, false, false), (0.1, true, true), (0.0, true, false), (1.0, false, true)]
            {
                let x = values(11, rows * channels, half);
                let norm = if by_batch && rows > 1 {
                    let [mean, variance] = moments(&x, channels).map(|v| v.iter().map(|&x| x as f32).collect());
                    Norm::new(mean, variance)
                } else {
                    Norm::drawn(channels)
                };
                let (y, g) = (values(12, x.len(), half), values(13, x.len(), half));
                let line = |i: usize| x[i] * norm.scale[i % channels] + norm.shift[i % channels];
                let before: Vec<f32> = (0..x.len())
                    .map(|i| if (if with_residual { y[i] } else { line(i) }) > 0.0 { g[i] } else { g[i] * slope })
                    .map(|g| if half && with_residual { rounded(g) } else { g })
                    .collect();
                let expected = expected_norm_back(&norm, &x, &wide(&before), by_batch);

                let chunks = rows.div_ceil(chunk);
                let [mean, scale, shift] = [&norm.mean, &norm.scale, &norm.shift].map(|x| floats(x));
                let added = if with_residual { numbers(&y, half) } else { Arg::Null };
                let left = launch_of(
                    "norm_sums",
                    half,
                    TILE,
                    &[
                        numbers(&x, half),
                        added,
                        mean.clone(),
                        scale.clone(),
                        shift.clone(),
                        Arg::Float(slope),
                        numbers(&g, half),
                        room(chunks * 2 * channels),
                        int(rows),
                        int(channels),
                        int(chunk),
                    ],
                );
                let place = if with_residual { 5 } else { 4 };
                let (after, partial) = (left.numbers(place, half), left.floats(place + 1));
                assert_eq!(after, if with_residual { before } else { g });

                let left = launch(
                    "norm_factors",
                    ROW,
                    &[
                        vec![floats(&partial), int(chunks), floats(&norm.weight), floats(&norm.inverse)],
                        vec![int(rows), int(channels), int(usize::from(by_batch))],
                        vec![room(channels); 5],
                    ]
                    .concat(),
                );
                let size = 10.0 * rows as f64;
                near("of weight", &left.floats(3), &expected.weight, size, false);
                near("of bias", &left.floats(4), &expected.bias, size, false);
                let factors = [5, 6, 7].map(|index| floats(&left.floats(index)));

                let left = launch_of(
                    "norm_back",
                    half,
                    ROW,
                    &[
                        vec![numbers(&after, half), numbers(&x, half), int(usize::from(!with_residual))],
                        vec![mean, scale, shift, Arg::Float(slope)],
                        factors.to_vec(),
                        vec![room_of(x.len(), half), long(x.len()), int(channels)],
                    ]
                    .concat(),
                );
                near("below", &left.numbers(8, half), &expected.below, 30.0, half);
            }
        }
    }
}

#[test]
fn activations_go_forth_and_back() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for count in [1, 257, 1000] {
            let mut x: Vec<f32> = values(14, count, half).into_iter().map(|x| 4.0 * x).collect();
            for (x, edge) in x.iter_mut().skip(1).zip([f32::NAN, 0.0, -0.0, 100.0, -100.0, f32::INFINITY]) {
                *x = edge;
            }
            let g = values(15, count, half);
            for (kind, slope) in [(0, 0.0), (0, 0.25), (1, 9.0), (2, 9.0)] {
                let of = |x: f64| match kind {
                    0 if x > 0.0 => x,
                    0 => f64::from(slope) * x,
                    1 => 1.0 / (1.0 + (-x).exp()),
                    _ => x.tanh(),
                };
                let tilt = |y: f64| match kind {
                    0 if y > 0.0 => 1.0,
                    0 => f64::from(slope),
                    1 => y * (1.0 - y),
                    _ => 1.0 - y * y,
                };
                let end = [Arg::Int(kind), Arg::Float(slope), long(count)];
                let args = [vec![numbers(&x, half), room_of(count, half)], end.to_vec()].concat();
                let y = launch_of("activate", half, ROW, &args).numbers(1, half);
                near("y", &y, &wide(&x).into_iter().map(of).collect::<Vec<_>>(), 1.0, half);
                let args = [vec![numbers(&y, half), numbers(&g, half)], end.to_vec()].concat();
                let left = launch_of("activate_back", half, ROW, &args);
                let expected: Vec<f64> = wide(&y).iter().zip(wide(&g)).map(|(&y, g)| g * tilt(y)).collect();
                near("gradient", &left.numbers(1, half), &expected, 1.0, half);
            }
        }
    }
}

#[test]
fn sums_products_and_biases() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        let nearest = |x: f32| if half { rounded(x) } else { x };
        for (rows, channels) in SIZES {
            let count = rows * channels;
            let (a, b, c) = (values(16, count, half), values(17, count, half), draws(18, count));
            let each = |of: &dyn Fn(usize) -> f32| (0..count).map(|i| nearest(of(i))).collect::<Vec<f32>>();
            let left = launch_of("add", half, ROW, &[numbers(&a, half), numbers(&b, half), long(count)]);
            assert_eq!(left.numbers(0, half), each(&|i| a[i] + b[i]));
            let left = launch_of("multiply", half, ROW, &[numbers(&a, half), floats(&c), long(count)]);
            assert_eq!(left.numbers(0, half), each(&|i| a[i] * c[i]));
            let args = [numbers(&a, half), floats(&c[..channels]), long(count), int(channels)];
            assert_eq!(launch_of("bias", half, ROW, &args).numbers(0, half), each(&|i| a[i] + c[i % channels]));
        }
    }
}

#[test]
fn column_sums_are_sums_of_columns() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for ((rows, channels), chunk) in SIZES.into_iter().zip([1, 3, 128, 16, 50, 64, 1000]) {
            let (x, chunks) = (values(19, rows * channels, half), rows.div_ceil(chunk));
            let partial = room(chunks * channels);
            let args = [numbers(&x, half), partial, int(rows), int(channels), int(chunk)];
            let partial = launch_of("column_sums", half, TILE, &args).floats(1);
            let args = [floats(&partial), room(channels), int(chunks), int(channels)];
            let expected: Vec<f64> = moments(&x, channels)[0].iter().map(|mean| mean * rows as f64).collect();
            near("sums", &launch("column_total", ROW, &args).floats(1), &expected, rows as f64, false);
        }
    }
}

/// A pooling layer: its sizes, and for each output pixel the places and input pixels that it sees.
struct Pool {
    batch: usize,
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Pool {
    fn all() -> Vec<Pool> {
        let sizes = [
            (1, 1, [1, 1], [1, 1, 0]),
            (2, 3, [5, 7], [2, 2, 0]),
            (1, 64, [6, 5], [3, 2, 1]),
            (3, 130, [4, 4], [3, 1, 1]),
            (1, 4, [7, 7], [2, 3, 0]),
            (2, 1, [5, 4], [3, 3, 1]),
        ];
        let pool = |(batch, channels, input, [kernel, stride, padding]): (usize, usize, [usize; 2], [usize; 3])| Pool {
            batch,
            channels,
            input,
            output: input.map(|side| (side + 2 * padding - kernel) / stride + 1),
            kernel,
            stride,
            padding,
        };
        sizes.into_iter().map(pool).collect()
    }

    fn ins(&self) -> usize {
        self.batch * self.input[0] * self.input[1] * self.channels
    }

    fn outs(&self) -> usize {
        self.batch * self.output[0] * self.output[1] * self.channels
    }

    fn args(&self, first: Vec<Arg>) -> Vec<Arg> {
        let [h, w] = self.input;
        let [oh, ow] = self.output;
        let sizes = [self.batch, self.channels, h, w, oh, ow, self.kernel, self.stride, self.padding];
        [first, sizes.map(int).to_vec()].concat()
    }

    /// For an output element the places that lie in the image, and the input elements there.
    fn window(&self, out: usize) -> Vec<(usize, usize)> {
        let (pixel, c) = (out / self.channels, out % self.channels);
        let (x, y) = (pixel % self.output[1], pixel / self.output[1] % self.output[0]);
        let image = pixel / self.output[1] / self.output[0];
        let mut seen = Vec::new();
        for place in 0..self.kernel * self.kernel {
            let down = (y * self.stride + place / self.kernel) as i64 - self.padding as i64;
            let right = (x * self.stride + place % self.kernel) as i64 - self.padding as i64;
            if (0..self.input[0] as i64).contains(&down) && (0..self.input[1] as i64).contains(&right) {
                let pixel = (image * self.input[0] + down as usize) * self.input[1] + right as usize;
                seen.push((place, pixel * self.channels + c));
            }
        }
        seen
    }
}

#[test]
fn max_pools_keep_the_first_of_equals() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for pool in Pool::all() {
            // few values: many ties; some NaN, and an image of nothing else
            let mut x: Vec<f32> = values(20, pool.ins(), half).into_iter().map(f32::round).collect();
            x.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
            if pool.batch > 1 {
                x[..pool.ins() / pool.batch].fill(f32::NAN);
            }
            let g = values(21, pool.outs(), half);
            let (mut y, mut choice, mut below) = (Vec::new(), Vec::new(), vec![0.0_f64; pool.ins()]);
            for (out, &g) in g.iter().enumerate() {
                let mut best = (f32::NEG_INFINITY, 0);
                for (place, from) in pool.window(out) {
                    if x[from] > best.0 {
                        best = (x[from], place as u8);
                    }
                }
                y.push(best.0);
                choice.push(best.1);
                for (place, from) in pool.window(out) {
                    below[from] += if place == usize::from(best.1) { f64::from(g) } else { 0.0 };
                }
            }
            let args = pool.args(vec![numbers(&x, half), room_of(y.len(), half), bytes(&vec![9; y.len()])]);
            let left = launch_of("max_pool", half, ROW, &args);
            assert_eq!((left.numbers(1, half), &left.0[2]), (y, &choice));
            let args = pool.args(vec![numbers(&g, half), bytes(&choice), room_of(x.len(), half)]);
            near("below", &launch_of("max_pool_back", half, ROW, &args).numbers(2, half), &below, 1.0, half);
        }
    }
}

#[test]
fn mean_pools_count_the_padding() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for pool in Pool::all() {
            let (x, g) = (values(22, pool.ins(), half), values(23, pool.outs(), half));
            let area = (pool.kernel * pool.kernel) as f64;
            let (mut y, mut below) = (vec![0.0_f64; pool.outs()], vec![0.0_f64; pool.ins()]);
            for out in 0..pool.outs() {
                for (_, from) in pool.window(out) {
                    y[out] += f64::from(x[from]) / area;
                    below[from] += f64::from(g[out]) / area;
                }
            }
            let args = pool.args(vec![numbers(&x, half), room_of(y.len(), half)]);
            near("y", &launch_of("mean_pool", half, ROW, &args).numbers(1, half), &y, 1.0, half);
            let args = pool.args(vec![numbers(&g, half), room_of(x.len(), half)]);
            near("below", &launch_of("mean_pool_back", half, ROW, &args).numbers(1, half), &below, 1.0, half);
        }
    }
}

#[test]
fn global_pools_are_means_over_pixels() {
    if emulator().is_none() {
        return;
    }
    for half in [false, true] {
        for (batch, channels, pixels) in [(1, 1, 1), (3, 130, 16), (2, 3, 49), (5, 64, 9)] {
            let (x, g) = (values(24, batch * channels * pixels, half), draws(25, batch * channels));
            let mut y = vec![0.0_f64; batch * channels];
            let mut below = vec![0.0_f64; x.len()];
            for i in 0..x.len() {
                let at = i / (channels * pixels) * channels + i % channels;
                y[at] += f64::from(x[i]) / pixels as f64;
                below[i] = f64::from(g[at]) / pixels as f64;
            }
            let sizes = vec![int(batch), int(channels), int(pixels)];
            let args = [vec![numbers(&x, half), room(y.len())], sizes.clone()].concat();
            near("y", &launch_of("global_pool", half, ROW, &args).floats(1), &y, 1.0, false);
            let args = [vec![floats(&g), room_of(x.len(), half)], sizes].concat();
            near("below", &launch_of("global_pool_back", half, ROW, &args).numbers(1, half), &below, 0.0, half);
        }
    }
}

/// The launch of one step: name and scalars, as the stepper computes them.
fn numbers_of(rule: &Rule, step: i32, rate: f64) -> (&'static str, Vec<Arg>) {
    let all = |numbers: &[f64]| numbers.iter().map(|&x| Arg::Float(x as f32)).collect::<Vec<_>>();
    match *rule {
        Rule::Sgd { momentum, weight_decay, nesterov } => {
            ("sgd", [all(&[rate, momentum, weight_decay]), vec![Arg::Int(i32::from(nesterov))]].concat())
        }
        Rule::Adam { betas, eps, weight_decay } | Rule::Adamw { betas, eps, weight_decay } => {
            let coupled = matches!(rule, Rule::Adam { .. });
            let (keep, decay) = if coupled { (1.0, weight_decay) } else { (1.0 - rate * weight_decay, 0.0) };
            let [one, two] = betas.map(|beta| 1.0 - beta.powf(f64::from(step)));
            let [first, second] = betas;
            let (size, root) = (rate / one, two.sqrt());
            ("adam", all(&[size, keep, first, second, 1.0 - first, 1.0 - second, root, eps, decay]))
        }
    }
}

#[test]
fn optimisers_have_the_bits_of_their_twins() {
    if emulator().is_none() {
        return;
    }
    let rules = [
        Rule::Sgd { momentum: 0.0, weight_decay: 0.0, nesterov: false },
        Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: false },
        Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: true },
        Rule::Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
        Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
    ];
    for rule in rules {
        for (count, masked) in [(1, false), (1003, false), (1003, true)] {
            let mask = masked.then(|| (0..count).map(|i| (i % 3) as f32 - 1.0).collect::<Vec<f32>>());
            let mut stepper = Stepper::new(rule.clone(), count, mask.clone());
            let mut twin = draws(26, count);
            let start = floats(&twin);
            let zero = floats(&vec![0.0; count]);
            let mut state =
                if matches!(rule, Rule::Sgd { .. }) { vec![start, zero] } else { vec![start, zero.clone(), zero] };
            for step in 1..=4 {
                let gradient = draws(26 + step as u64, count);
                let rate = 0.1 / f64::from(step);
                stepper.step(&mut twin, &gradient, rate).unwrap();
                let (name, scalars) = numbers_of(&rule, step, rate);
                let mask = mask.as_deref().map_or(Arg::Null, floats);
                let args = [state.clone(), vec![floats(&gradient), mask], scalars, vec![long(count)]].concat();
                let left = launch(name, ROW, &args);
                assert!(same(&left.floats(0), &twin), "{rule:?}, masked {masked}, step {step}");
                state = (0..state.len()).map(|index| floats(&left.floats(index))).collect();
            }
            let kept = stepper.state().unwrap();
            for (name, ours) in ["first", "second"].into_iter().zip(&state[1..]) {
                let Arg::Memory(ours, _) = ours else { unreachable!() };
                let Arg::Memory(theirs, _) = floats(&kept[name].to_vec1().unwrap()) else { unreachable!() };
                assert!(*ours == theirs, "{rule:?}: {name}");
            }
        }
    }
}

#[test]
fn squares_are_summed_by_chunks() {
    if emulator().is_none() {
        return;
    }
    for (count, chunk) in [(1, 1), (1000, 1000), (5000, 1024), (700, 256), (2, 5)] {
        let x = draws(27, count);
        let room = Arg::Memory(vec![0xff; 8 * count.div_ceil(chunk)], 8);
        let left = launch("squares", [256, 1, 1], &[floats(&x), room, long(count), long(chunk)]);
        for (found, x) in left.doubles(1).iter().zip(x.chunks(chunk)) {
            let expected: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((found - expected).abs() <= 1e-14 * expected, "{found}, not {expected}");
        }
    }
}

/// Losses of rows, their mean and slopes, against the CPU's in f64.
#[test]
fn losses_of_rows_are_those_of_the_cpu() {
    if emulator().is_none() {
        return;
    }
    let var = |values: &[f32], shape: (usize, usize)| {
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    let doubles = |count: usize| Arg::Memory(vec![0xff; 8 * count], 8);
    let check = |name: &str, left: &Left, places: [usize; 2], loss: &Tensor, of: &Var| {
        let losses = left.doubles(places[0]);
        let bytes = losses.iter().flat_map(|loss| loss.to_ne_bytes()).collect();
        let mean = launch("mean", [256, 1, 1], &[Arg::Memory(bytes, 8), room(1), int(losses.len())]).floats(1);
        let value = loss.to_scalar::<f64>().unwrap();
        assert!((f64::from(mean[0]) - value).abs() <= 1e-7 * (1.0 + value.abs()), "{name}: {mean:?}, not {value}");
        let slopes = loss.backward().unwrap().get(of).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        near(name, &left.floats(places[1]), &slopes, 0.01, false);
    };
    for (rows, columns) in [(1, 1), (8, 10), (9, 33), (20, 100), (3, 64)] {
        let shape = (rows, columns);
        let [a, b] = [28, 29].map(|seed| draws(seed, rows * columns));
        let labels: Vec<i32> = (0..rows).map(|row| (row * 5 % columns) as i32).collect();
        let of_labels: Vec<u32> = labels.iter().map(|label| *label as u32).collect();
        let of_labels = Tensor::from_slice(&of_labels, rows, &Device::Cpu).unwrap();
        let (x, y, sizes) = (var(&a, shape), var(&b, shape), [int(rows), int(columns)]);
        let made = [doubles(rows), room(rows * columns)];
        for smoothing in [0.0, 0.2] {
            let args = [&[floats(&a), ints(&labels), Arg::Double(smoothing)], &made[..], &sizes].concat();
            let loss = smoothed_cross_entropy(x.as_tensor(), &of_labels, smoothing).unwrap();
            check("cross_entropy", &launch("cross_entropy", TILE, &args), [2, 3], &loss, &x);
        }
        let temperature = Arg::Double(1.7);
        let loss = distill(x.as_tensor(), y.as_tensor(), 1.7).unwrap();
        let both = [&made[..], &[room(rows * columns)]].concat();
        let args = [&[floats(&a), floats(&b), temperature.clone()], &both[..], &sizes].concat();
        let left = launch("distill", TILE, &args);
        check("distill", &left, [2, 3], &loss, &x);
        check("distill, of the teacher", &left, [2, 4], &loss, &y);
        let args = [&[floats(&a), floats(&b), temperature.clone()], &made[..], &[Arg::Null], &sizes].concat();
        assert!(launch("distill", TILE, &args).0[..4] == left.0[..4], "a constant teacher");
        // probabilities, some of which are 0
        let target: Vec<f32> = b.iter().map(|x| x.max(0.0)).collect();
        let loss = kl_to(var(&target, shape).as_tensor(), x.as_tensor(), 1.7).unwrap();
        let args = [&[floats(&a), floats(&target), temperature], &made[..], &sizes].concat();
        check("kl_to", &launch("kl_to", TILE, &args), [2, 3], &loss, &x);
    }
    for rows in [2, 8, 14, 70] {
        let z = var(&draws(30, rows * 3), (rows, 3));
        let lengths = z.as_tensor().sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        let units = z.as_tensor().broadcast_div(&lengths).unwrap();
        let cosines = units.matmul(&units.t().unwrap()).unwrap().detach();
        let cosines: Vec<f32> = cosines.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let cosines_of = var(&cosines, (rows, rows));
        for every in [1, 3, usize::MAX] {
            let gone: Vec<bool> = (0..rows / 2).map(|image| image % every == every - 1).collect();
            let signs: Vec<f32> = gone.iter().chain(&gone).map(|gone| if *gone { -1.0 } else { 1.0 }).collect();
            // none where all are 1
            let (at, first) = if every == usize::MAX { (Arg::Null, 1) } else { (floats(&signs), 2) };
            let args = [floats(&cosines), at, Arg::Double(0.4), doubles(rows), room(rows * rows), int(rows)];
            let left = launch("contrast", TILE, &args);
            let loss = composed::contrast_of(cosines_of.as_tensor(), 0.4, &wide(&signs)).unwrap();
            check("contrast", &left, [first, first + 1], &loss, &cosines_of);
            let whole = nt_xent_original(z.as_tensor(), 0.4, &gone).unwrap().to_scalar::<f64>().unwrap();
            let mean = left.doubles(first).iter().sum::<f64>() / rows as f64;
            assert!((mean - whole).abs() < 1e-6 * (1.0 + whole.abs()), "{mean}, not {whole}");
        }
    }
    let x = draws(31, 1001);
    let left = launch("scaled", ROW, &[floats(&x), floats(&[0.7]), room(1001), long(1001)]);
    assert_eq!(left.floats(2), x.iter().map(|x| x * 0.7).collect::<Vec<_>>());
    // what is no number is seen
    for (row, label) in [(vec![0.0, f32::NAN, 1.0], 0), (vec![0.0, f32::INFINITY, 1.0], 0), (vec![0.0; 3], 3)] {
        let args = [floats(&row), ints(&[label]), Arg::Double(0.0), doubles(1), room(3), int(1), int(3)];
        assert!(launch("cross_entropy", TILE, &args).doubles(2)[0].is_nan(), "{row:?}, label {label}");
    }
}

/// What `transform::batch` draws for an image.
fn draw(rng: &Rng, index: u32, padding: Option<u64>, flip: bool, cutout: i64, [height, width]: [usize; 2]) -> Vec<i32> {
    let mut stream = rng.clone();
    stream.seek(u64::from(index) * 8);
    let mut shift = || padding.map_or(0, |padding| stream.below(2 * padding + 1) as i64 - padding as i64);
    let (down, right) = (shift(), shift());
    let flip = flip && stream.chance(0.5);
    let mut stream = rng.fork("cutout");
    stream.seek(u64::from(index) * 8);
    let mut along = |size: usize| {
        let start = stream.below(size as u64) as i64 - cutout / 2;
        if cutout == 0 { [0, 0] } else { [start.max(0), (start + cutout).min(size as i64)] }
    };
    let ([top, bottom], [left, end]) = (along(height), along(width));
    [i64::from(index), down, right, i64::from(flip), top, bottom, left, end].map(|x| x as i32).to_vec()
}

#[test]
fn images_have_the_bits_of_their_twins() {
    if emulator().is_none() {
        return;
    }
    for (batch, channels, [height, width]) in [(1, 1, [1, 1]), (9, 3, [6, 5]), (20, 1, [7, 7]), (3, 4, [33, 2])] {
        let (count, length) = (11, channels * height * width);
        let mut rng = Rng::new(28).fork("pixels");
        let pixels: Vec<u8> = (0..count * length).map(|_| rng.below(256) as u8).collect();
        let part = Part { pixels: Arc::new(pixels.clone()), labels: Arc::new(vec![0; count]) };
        let images = Images {
            name: "made up".into(),
            classes: vec!["one".into()],
            size: [channels, height, width],
            mean: draws(29, channels).iter().map(|x| x.abs()).collect(),
            std: draws(30, channels).iter().map(|x| x.abs() + 0.01).collect(),
            train: part,
            validation: Part::default(),
            test: Part::default(),
            unlabelled: Part::default(),
        };
        let indices: Vec<u32> = (0..batch).map(|_| rng.below(count as u64) as u32).collect();
        for (name, padding, flip, cutout) in [
            ("none", None, false, 0),
            ("flip", None, true, 2),
            ("crop", Some(3), false, 3),
            ("crop_flip", Some(2), true, 0),
            ("crop_flip", Some(40), true, 1),
        ] {
            let settings = json!({ "name": name, "padding": padding, "cutout": cutout });
            let transform = Transform::new(&settings).unwrap();
            let twin = transform::batch(&images, &images.train, &indices, transform, &rng, &Device::Cpu).unwrap();
            let twin: Vec<f32> = twin.flatten_all().unwrap().to_vec1().unwrap();
            let all: Vec<i32> =
                indices.iter().flat_map(|&i| draw(&rng, i, padding, flip, cutout, [height, width])).collect();
            let args = [
                vec![bytes(&pixels), ints(&all), floats(&images.mean), floats(&images.std), room(twin.len())],
                [batch, channels, height, width].map(int).to_vec(),
            ];
            assert!(same(&launch("images", ROW, &args.concat()).floats(4), &twin), "{name}");
        }
    }
}
