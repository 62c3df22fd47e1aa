//! What each kernel costs, as a share of what the machine could do, measured in the same run:
//! `cargo test --release --lib layers -- --ignored --nocapture`. The bound of a kernel is the longer of two times: of the
//! multiply-adds of plain sums at the peak of the units that it uses, and of reading and writing each value once at the speed of memory.
//! Winograd's algorithm multiplies less, so its share may be above 1; so may that of values that lie in a cache.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use super::buffer::Pool;
use super::conv::Conv;
use super::geometry::Geometry;
use super::norm;
use super::number::{Half, Number, Value};
use super::parallel::{Shared, each};
use super::simd::{Level, Strided};
#[cfg(target_arch = "x86_64")]
use super::tiles::{self, DEEP, Product, SIDE, Sizes, Term};
use super::weights::{Ready, Weights};
use crate::kernels::steps::{Activation, After, Slide};
use crate::kernels::{Products, Window};

/// What the machine does at best, on all threads.
struct Bounds {
    /// Multiply-adds of vectors a second, each counted as two.
    vectors: f64,
    /// The same in bf16, of tile registers where there are such.
    bf16: f64,
    /// Bytes a second, of two vectors that are added to a third, far larger than caches.
    memory: f64,
}

impl Bounds {
    fn of(level: Level) -> Self {
        let vectors = vectors(level);
        #[cfg(target_arch = "x86_64")]
        let bf16 = if tiles::available() { squares() } else { vectors };
        #[cfg(not(target_arch = "x86_64"))]
        let bf16 = vectors;
        Self { vectors, bf16, memory: memory() }
    }

    /// The share of the bound that a call reached.
    fn share(&self, products: Products, flops: f64, bytes: f64, spent: f64) -> f64 {
        let peak = if products == Products::Bf16 { self.bf16 } else { self.vectors };
        (flops / peak).max(bytes / self.memory) / spent
    }
}

/// Least seconds of several calls.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// 6 x 64 sums in registers, operands in a first-level cache.
fn vectors(level: Level) -> f64 {
    const DEPTH: usize = 128;
    const TIMES: usize = 10_000;
    let wide = level.panel();
    let (rows, kernel) = level.block(wide / level.lanes())[0];
    let spent = seconds(|| {
        rayon::broadcast(|_| {
            let (a, b, mut c) = (vec![1.0_f32; rows * DEPTH], vec![1.0_f32; DEPTH * wide], vec![0.0_f32; rows * wide]);
            for _ in 0..TIMES {
                // SAFETY: the sizes are those above.
                unsafe { kernel(DEPTH, Strided(a.as_ptr(), DEPTH), b.as_ptr(), (c.as_mut_ptr(), wide), true) };
            }
            black_box(c);
        });
    });
    (2 * rayon::current_num_threads() * TIMES * rows * DEPTH * wide) as f64 / spent
}

/// Four sums of 16 x 16 in registers, operands in a first-level cache.
#[cfg(target_arch = "x86_64")]
fn squares() -> f64 {
    const STEPS: usize = 8;
    const TERMS: usize = 10_000;
    let spent = seconds(|| {
        rayon::broadcast(|_| {
            let (left, right) = (vec![0_u16; 2 * SIDE * STEPS * DEEP], vec![0_u32; 2 * STEPS * DEEP / 2 * SIDE]);
            let mut sum = [0.0_f32; 4 * SIDE * SIDE];
            let product = Product {
                left_shift: 0,
                right_shift: 0,
                steps: STEPS,
                left_row: STEPS * DEEP * 2,
                left_step: DEEP * 2,
                left_second: SIDE * STEPS * DEEP * 2,
                right_step: DEEP / 2 * SIDE * 4,
                right_second: STEPS * DEEP / 2 * SIDE * 4,
                sum: sum.as_mut_ptr(),
                sum_row: 2 * SIDE * 4,
                sum_second: 2 * SIDE * SIDE * 4,
                keep: 0,
            };
            let terms = vec![Term { left: left.as_ptr(), right: right.as_ptr() }; TERMS];
            // SAFETY: the factors are two tiles of `STEPS` steps each, and the sums four tiles.
            unsafe { tiles::multiply(&Sizes::new([SIDE; 2], DEEP), [2, 2], &product, &terms) };
            black_box(sum);
        });
    });
    (2 * rayon::current_num_threads() * TERMS * STEPS * 4 * SIDE * SIDE * DEEP) as f64 / spent
}

fn memory() -> f64 {
    const MANY: usize = 1 << 25;
    const CHUNK: usize = 1 << 16;
    let (a, b, mut c) = (vec![1.0_f32; MANY], vec![1.0_f32; MANY], vec![0.0_f32; MANY]);
    let spent = seconds(|| {
        let shared = Shared::new(&mut c);
        each(MANY / CHUNK, MANY, |chunk| {
            let range = chunk * CHUNK..(chunk + 1) * CHUNK;
            // SAFETY: each task has its own chunk.
            let c = unsafe { shared.part(range.start, CHUNK) };
            c.iter_mut().zip(&a[range.clone()]).zip(&b[range]).for_each(|((c, a), b)| *c = a + b);
        });
    });
    black_box(c);
    (3 * size_of::<f32>() * MANY) as f64 / spent
}

/// The shares of one kernel over all layers.
#[derive(Default)]
struct Shares(BTreeMap<String, Vec<f64>>);

impl Shares {
    /// Notes one, and says it beside the milliseconds.
    fn say(&mut self, kernel: &str, spent: f64, share: f64) -> String {
        self.0.entry(kernel.to_owned()).or_default().push(share);
        format!("{:6.2} {share:4.2}", spent * 1e3)
    }
}

/// Inputs, outputs, sides of the image, of the window, stride.
const KINDS: [[usize; 5]; 17] = [
    [3, 64, 32, 3, 1],
    [16, 16, 32, 3, 1],
    [32, 32, 16, 3, 1],
    [64, 64, 32, 3, 1],
    [64, 128, 32, 3, 2],
    [64, 128, 32, 1, 2],
    [128, 128, 16, 3, 1],
    [128, 256, 16, 3, 2],
    [256, 256, 8, 3, 1],
    [256, 512, 8, 3, 2],
    [512, 512, 4, 3, 1],
    [96, 96, 32, 3, 1],
    [192, 192, 16, 3, 1],
    [64, 256, 32, 1, 1],
    [256, 64, 32, 1, 1],
    [512, 512, 1, 1, 1],
    [256, 128, 1, 1, 1],
];

#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement prints")]
fn layers() {
    let level = Level::best();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let batch = number("BATCH").unwrap_or(64);
    let wanted = number("CHANNELS");
    let bounds = Bounds::of(level);
    println!(
        "{level:?}, {} threads, batch {batch}: {:.0} GFLOP/s in f32, {:.0} in bf16, {:.1} GB/s; milliseconds and share of the bound",
        rayon::current_num_threads(),
        bounds.vectors / 1e9,
        bounds.bf16 / 1e9,
        bounds.memory / 1e9
    );
    let mut shares = Shares::default();
    for [inputs, outputs, size, kernel, stride] in KINDS {
        if wanted.is_some_and(|wanted| wanted != inputs) {
            continue;
        }
        let window = Window::new(kernel, stride, kernel / 2);
        let out = (size + 2 * window.padding - kernel) / stride + 1;
        let geometry = Geometry { output: [out, out], input: [size, size], window, transposed: false };
        let taps = kernel * kernel;
        let weights = Weights { inputs, outputs, input_step: taps, output_step: inputs * taps, taps };
        let pool = Arc::new(Pool::default());
        let theta = vec![0.01; inputs * outputs * taps];
        let (reads, makes) = (vec![0.5; size * size * batch * inputs], vec![0.5; out * out * batch * outputs]);
        let mut own = theta.clone();
        let flops = 2.0 * (geometry.products() * batch * inputs * outputs) as f64;
        for products in [Products::Direct, Products::Winograd, Products::Bf16] {
            let conv = Conv::new(level, geometry, weights, products);
            if products == Products::Winograd && !conv.is_winograd() {
                continue;
            }
            // as a network has them: images in bf16 where it computes so
            let half = products == Products::Bf16;
            let [x, mut below] = [(); 2].map(|()| Value::of(&reads, half));
            let [above, mut y] = [(); 2].map(|()| Value::of(&makes, half));
            let packed = [conv.pack(&theta, &pool), conv.pack_back(&theta, &pool)].map(Arc::new).map(Ready::Packed);
            let raw = Ready::Theta(&theta);
            let mut times = vec![
                ("pack", seconds(|| drop(black_box(conv.pack(&theta, &pool))))),
                ("forward", seconds(|| conv.forward(batch, &x, &packed[0], None, &pool, &mut y))),
                ("backward", seconds(|| conv.backward(batch, &above, &packed[1], false, &pool, &mut below))),
                ("gradient", seconds(|| conv.gradient(batch, &x, &above, &pool, &mut own))),
            ];
            if conv.once(batch) {
                times.push(("forward and pack", seconds(|| conv.forward(batch, &x, &raw, None, &pool, &mut y))));
            }
            if conv.once_back(batch) {
                let spent = seconds(|| conv.backward(batch, &above, &raw, false, &pool, &mut below));
                times.push(("backward and pack", spent));
            }
            let one = if half { 2 } else { 4 };
            let (images, weights) = ((one * (reads.len() + makes.len())) as f64, (4 * theta.len()) as f64);
            let word = format!("{products:?}").to_lowercase();
            let mut line = format!("{inputs:4} to {outputs:4} at {size:2}, {kernel} x {kernel} / {stride} {word:8}");
            for (name, spent) in times {
                let (flops, bytes) = if name == "pack" { (0.0, 2.0 * weights) } else { (flops, images + weights) };
                let share = bounds.share(products, flops, bytes, spent);
                line += &format!("  {name} {}", shares.say(&format!("{word} {name}"), spent, share));
            }
            println!("{line}");
        }
    }
    for (channels, size) in [(64, 32), (128, 16), (256, 8), (512, 4)] {
        norms::<f32>(channels, size * size * batch, "f32", &bounds, &mut shares);
        norms::<Half>(channels, size * size * batch, "bf16", &bounds, &mut shares);
    }
    for channels in [64, 256] {
        points::<f32>(channels * batch, "f32", &bounds, &mut shares);
        points::<Half>(channels * batch, "bf16", &bounds, &mut shares);
    }
    println!("share of the bound: least, median, most");
    for (kernel, mut of) in shares.0 {
        of.sort_by(f64::total_cmp);
        println!("{kernel:28} {:5.2} {:5.2} {:5.2}", of[0], of[of.len() / 2], of[of.len() - 1]);
    }
}

#[expect(clippy::print_stdout, reason = "a measurement prints")]
fn norms<N: Number>(channels: usize, rows: usize, kind: &str, bounds: &Bounds, shares: &mut Shares) {
    let x = vec![N::nearest(0.5); rows * channels];
    let (mut y, mut g, mut below) = (x.clone(), x.clone(), x.clone());
    let per = vec![1.0; channels];
    let each = [&per; 4].map(|values| &values[..]);
    let after = After::Leaky(0.0);
    let moments = seconds(|| drop(black_box(norm::moments(&x, channels))));
    let forward = seconds(|| norm::forward(&x, each, Some(&g), after, &mut y));
    let backward =
        seconds(|| drop(black_box(norm::backward(&x, Some(&y), each, true, after, &mut g, Some(&mut below[..])))));
    let plain = seconds(|| drop(black_box(norm::backward(&x, None, each, true, after, &mut g, Some(&mut below[..])))));
    let bytes = size_of_val(&x[..]) as f64;
    let mut line = format!("batch norm {kind:4} of {channels:3}");
    // how often it reads or writes that many
    for (name, times, spent) in [
        ("moments", 1.0, moments),
        ("forward", 3.0, forward),
        ("backward", 7.0, backward),
        ("plain backward", 5.0, plain),
    ] {
        let share = bounds.share(Products::Direct, 0.0, times * bytes, spent);
        line += &format!("  {name} {}", shares.say(&format!("batch norm {kind} {name}"), spent, share));
    }
    println!("{line}");
}

/// Layers that go value by value, on images of 32 x 32.
#[expect(clippy::print_stdout, reason = "a measurement prints")]
fn points<N: Number>(depth: usize, kind: &str, bounds: &Bounds, shares: &mut Shares) {
    let x = vec![N::nearest(0.5); 32 * 32 * depth];
    let mut y = x.clone();
    let slide = Slide { input: [32, 32], output: [16, 16], window: Window::new(3, 2, 1) };
    let (mut small, mut choice) = (vec![N::nearest(0.5); 16 * 16 * depth], vec![0; 16 * 16 * depth]);
    let relu = seconds(|| Activation::Leaky(0.0).forward(&x, &mut y));
    let relu_back = seconds(|| Activation::Leaky(0.0).backward(&x, &mut y));
    let max = seconds(|| slide.max(&x, depth, &mut small, &mut choice));
    let max_back = seconds(|| slide.max_back(&small, &choice, depth, &mut y));
    let mean = seconds(|| slide.mean(&x, depth, &mut small));
    let mean_back = seconds(|| slide.mean_back(&small, depth, &mut y));
    let (large, small, choice) = (size_of_val(&x[..]) as f64, size_of_val(&small[..]) as f64, choice.len() as f64);
    let mut line = format!("pointwise {kind:4} of {depth:5}");
    for (name, bytes, spent) in [
        ("ReLU", 2.0 * large, relu),
        ("ReLU back", 3.0 * large, relu_back),
        ("max-pool", large + small + choice, max),
        ("max-pool back", large + small + choice, max_back),
        ("mean-pool", large + small, mean),
        ("mean-pool back", large + small, mean_back),
    ] {
        let share = bounds.share(Products::Direct, 0.0, bytes, spent);
        line += &format!("  {name} {}", shares.say(&format!("{name} {kind}"), spent, share));
    }
    println!("{line}");
}
