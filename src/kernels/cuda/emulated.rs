//! A stand-in for a GPU: the kernels of `kernels.cu` compiled for the processor, convolutions as plain sums, memory of the
//! host. It shows that the passes and the kernels compute what they should; nothing of the driver, of cuDNN or of speed.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, Result, Storage, Tensor};
use libloading::Library;

use super::machine::{Arg, Convolution, Grid, Kind, Machine, Makes, Memory};
use crate::kernels::Window;

pub(super) struct Emulated {
    kernels: Library,
}

/// One for all tests; none where there is no C++ compiler.
pub(super) fn machine() -> Option<Arc<dyn Machine>> {
    static MACHINE: OnceLock<Option<Arc<Emulated>>> = OnceLock::new();
    MACHINE.get_or_init(|| build().map(|kernels| Arc::new(Emulated { kernels }))).clone().map(|machine| machine as _)
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

impl Machine for Emulated {
    fn lend(&self, bytes: usize) -> Result<Memory> {
        Ok(memory(bytes))
    }

    fn zeros(&self, bytes: usize) -> Result<Memory> {
        let words = vec![0_u128; bytes.div_ceil(16)];
        Ok(Memory { at: words.as_ptr() as u64, owner: Box::new(words) })
    }

    fn upload(&self, data: &[u8]) -> Result<Memory> {
        let memory = memory(data.len());
        self.copy(data.as_ptr() as u64, memory.at, data.len())?;
        Ok(memory)
    }

    fn resident(&self, bytes: &Arc<Vec<u8>>) -> Result<Arc<Memory>> {
        Ok(Arc::new(self.upload(bytes)?))
    }

    fn fetch(&self, memory: &Memory, count: usize) -> Result<Vec<f64>> {
        Ok(read(memory.at, count))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as in `read`; nobody copies memory to itself.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn launch(&self, name: &'static str, kind: Kind, grid: Grid, args: &[Arg]) -> Result<()> {
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
            let launch = self.kernels.get::<Launch>(symbol.as_bytes()).unwrap_or_else(|_| panic!("no kernel {symbol}"));
            assert_eq!(launch(blocks.as_ptr(), threads.as_ptr(), places.as_ptr()), 0, "{symbol} does not launch");
        }
        Ok(())
    }

    fn convolve(&self, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()> {
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
        Ok(())
    }

    fn storage(&self, memory: Memory, count: usize) -> Result<Storage> {
        Ok(Storage::Cpu(CpuStorage::F32(read(memory.at, count))))
    }

    fn place(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(data)), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(candle_core::Error::msg("the stand-in takes contiguous f32 tensors of the host"));
        };
        Ok(data[start..].as_ptr() as u64)
    }
}
