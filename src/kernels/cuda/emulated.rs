//! A stand-in for a GPU: the kernels of `kernels.cu` compiled for the processor, convolutions as plain sums, memory of the
//! host. It shows that the passes and the kernels compute what they should; nothing of the driver, of cuDNN or of speed.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};
use libloading::Library;

use super::machine::{Arg, Convolution, Grid, Kind, Machine, Makes, Memory, Replay};
use crate::kernels::Window;

pub(super) struct Emulated {
    kernels: Arc<Library>,
}

/// Something to do with the kernels.
type Work = Box<dyn Fn(&Library) + Send + Sync>;

thread_local! {
    /// What this thread takes down, while it does.
    static TAKEN: RefCell<Option<Vec<Work>>> = const { RefCell::new(None) };
    static COUNTS: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

fn count(which: usize) {
    let mut counts = COUNTS.get();
    counts[which] += 1;
    COUNTS.set(counts);
}

/// What this thread had done one by one, and what in one go, since it last asked.
pub(super) fn counts() -> [usize; 2] {
    COUNTS.take()
}

struct Taken {
    kernels: Arc<Library>,
    taken: Vec<Work>,
}

impl Replay for Taken {
    fn replay(&self) -> Result<()> {
        count(1);
        self.taken.iter().for_each(|work| work(&self.kernels));
        Ok(())
    }
}

impl Emulated {
    /// Does it, or takes it down.
    fn later(&self, work: impl Fn(&Library) + Send + Sync + 'static) {
        TAKEN.with_borrow_mut(|taken| match taken {
            Some(taken) => taken.push(Box::new(work)),
            None => {
                count(0);
                work(&self.kernels);
            }
        });
    }
}

/// One for all tests; none where there is no C++ compiler.
pub(super) fn machine() -> Option<Arc<dyn Machine>> {
    static MACHINE: OnceLock<Option<Arc<Emulated>>> = OnceLock::new();
    MACHINE
        .get_or_init(|| build().map(|kernels| Arc::new(Emulated { kernels: Arc::new(kernels) })))
        .clone()
        .map(|machine| machine as _)
}

fn build() -> Option<Library> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("kernels.so");
    let mut compiler = Command::new("c++");
    compiler.args(["-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o"]).arg(&library);
    match compiler.arg(root.join("tests/cuda/emulate.cpp")).status() {
        Ok(status) => assert!(status.success(), "the kernels do not compile"),
        Err(_) => return None,
    }
    // SAFETY: our own code, whose loading does nothing.
    Some(unsafe { Library::new(library) }.unwrap())
}

/// Memory of the host, of bytes that make NaN in f32 and in bf16.
fn memory(bytes: usize) -> Memory {
    let words = vec![u128::MAX; bytes.div_ceil(16)];
    Memory { at: words.as_ptr() as u64, owner: Box::new(words) }
}

fn read<T: Copy>(at: u64, count: usize) -> Vec<T> {
    // SAFETY: the passes give addresses of memory that they hold, of as many elements as they say.
    unsafe { std::slice::from_raw_parts(at as *const T, count) }.to_vec()
}

fn numbers(at: u64, count: usize, half: bool) -> Vec<f64> {
    if half {
        read::<u16>(at, count).into_iter().map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect()
    } else {
        read::<f32>(at, count).into_iter().map(f64::from).collect()
    }
}

fn write(at: u64, numbers: &[f64], half: bool) {
    for (index, number) in numbers.iter().enumerate() {
        let bits = (*number as f32).to_bits();
        // SAFETY: as in `read`.
        unsafe {
            if half {
                // the nearest one, of two the even one
                *(at as *mut u16).add(index) = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            } else {
                *(at as *mut u32).add(index) = bits;
            }
        }
    }
}

fn launch(kernels: &Library, name: &str, kind: Kind, grid: Grid, args: &[Arg]) {
    type Launch = unsafe extern "C" fn(*const u32, *const u32, *const *const u8) -> i32;
    let symbol = format!("launch_{name}{}", kind.ending());
    let blocks = grid.blocks.map(|blocks| blocks as u32);
    let threads = [grid.threads[0] as u32, grid.threads[1] as u32, 1];
    let bytes: Vec<[u8; 8]> = args
        .iter()
        .map(|arg| match *arg {
            Arg::At(number) | Arg::Count(number) => number.to_le_bytes(),
            Arg::Int(number) => i64::from(number).to_le_bytes(),
            Arg::Float(number) => u64::from(number.to_bits()).to_le_bytes(),
            Arg::Double(number) => number.to_le_bytes(),
        })
        .collect();
    let places: Vec<*const u8> = bytes.iter().map(|bytes| bytes.as_ptr()).collect();
    // SAFETY: the kernel takes these arguments: their order is what the tests are for.
    unsafe {
        let launch = kernels.get::<Launch>(symbol.as_bytes()).unwrap_or_else(|_| panic!("no kernel {symbol}"));
        assert_eq!(launch(blocks.as_ptr(), threads.as_ptr(), places.as_ptr()), 0, "{symbol} does not launch");
    }
}

fn convolve(shape: Convolution, makes: Makes, at: [u64; 3], add: bool) {
    let Convolution { batch, x: [inputs, height, width], y: [outputs, rows, columns], window, half, .. } = shape;
    let Window { kernel, stride, padding } = window;
    let lengths =
        [batch * height * width * inputs, outputs * kernel * kernel * inputs, batch * rows * columns * outputs];
    let made = [Makes::X, Makes::Weights, Makes::Y].iter().position(|other| *other == makes).unwrap();
    let mut data = [0, 1, 2].map(|index| {
        let zeros = index == made && !add;
        if zeros { vec![0.0; lengths[index]] } else { numbers(at[index], lengths[index], half) }
    });
    let places = || (0..kernel).flat_map(|down| (0..kernel).map(move |right| (down, right)));
    for image in 0..batch {
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            for (down, right) in places() {
                let (Some(i), Some(j)) =
                    ((row * stride + down).checked_sub(padding), (column * stride + right).checked_sub(padding))
                else {
                    continue;
                };
                if i >= height || j >= width {
                    continue;
                }
                for (o, c) in (0..outputs).flat_map(|o| (0..inputs).map(move |c| (o, c))) {
                    let x = ((image * height + i) * width + j) * inputs + c;
                    let w = ((o * kernel + down) * kernel + right) * inputs + c;
                    let y = ((image * rows + row) * columns + column) * outputs + o;
                    match makes {
                        Makes::X => data[0][x] += data[1][w] * data[2][y],
                        Makes::Weights => data[1][w] += data[0][x] * data[2][y],
                        Makes::Y => data[2][y] += data[0][x] * data[1][w],
                    }
                }
            }
        }
    }
    write(at[made], &data[made], half);
}

impl Machine for Emulated {
    fn lend(&self, bytes: usize) -> Result<Memory> {
        Ok(memory(bytes))
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: as in `read`.
        self.later(move |_| unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) });
        Ok(())
    }

    fn upload(&self, data: &[u8]) -> Result<Memory> {
        let memory = memory(data.len());
        self.copy(data.as_ptr() as u64, memory.at, data.len())?;
        Ok(memory)
    }

    fn resident(&self, bytes: &Arc<Vec<u8>>) -> Result<Arc<Memory>> {
        Ok(Arc::new(self.upload(bytes)?))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as in `read`; nobody copies memory to itself.
        self.later(move |_| unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) });
        Ok(())
    }

    fn launch(&self, name: &'static str, kind: Kind, grid: Grid, args: &[Arg]) -> Result<()> {
        let args = args.to_vec();
        self.later(move |kernels| launch(kernels, name, kind, grid, &args));
        Ok(())
    }

    fn room(&self, _: Convolution, _: Makes) -> Result<usize> {
        Ok(16)
    }

    fn convolve_in(&self, room: &Memory, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()> {
        let room = room.at;
        self.later(move |_| {
            write(room, &[f64::NAN], false);
            convolve(shape, makes, at, add);
        });
        Ok(())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        TAKEN.with_borrow_mut(|taken| *taken = Some(Vec::new()));
        let done = work();
        let taken = TAKEN.take().unwrap_or_default();
        done?;
        Ok(Box::new(Taken { kernels: self.kernels.clone(), taken }))
    }

    fn storage(&self, memory: Memory, count: usize, dtype: DType) -> Result<Storage> {
        Ok(Storage::Cpu(match dtype {
            DType::F64 => CpuStorage::F64(read(memory.at, count)),
            _ => CpuStorage::F32(read(memory.at, count)),
        }))
    }

    fn place(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(data)), Some((start, _))) => Ok(data[start..].as_ptr() as u64),
            (Storage::Cpu(CpuStorage::U32(data)), Some((start, _))) => Ok(data[start..].as_ptr() as u64),
            _ => Err(candle_core::Error::msg("the stand-in takes contiguous tensors of the host")),
        }
    }
}
