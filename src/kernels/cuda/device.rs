//! A CUDA device: memory of its pool, launches on candle's stream, convolutions by cuDNN. Everything is done in the order of one
//! stream, so memory may be freed as soon as nothing more is asked of it.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, Tensor};
use cudarc::driver::{
    CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, result, sys,
};

use super::dnn::Dnn;
use super::machine::{Arg, Convolution, Grid, Kind, Machine, Makes, Memory, Replay};

/// The kernels, compiled when the program was built.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

type Resident = (Weak<Vec<u8>>, Arc<Memory>);
type Functions = HashMap<(&'static str, Kind), CudaFunction>;

pub(super) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<Functions>,
    dnn: Mutex<Dnn>,
    /// Data sets, as long as somebody has them.
    residents: Mutex<Vec<Resident>>,
}

pub(super) fn wrong(error: impl Display) -> Error {
    Error::msg(error)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on nothing is noted of who uses a tensor: there is one stream.
pub(in crate::kernels) fn one_stream(device: &CudaDevice) {
    // SAFETY: candle and the passes ask everything of the device's own stream, which does it in that order.
    unsafe { device.disable_event_tracking() };
}

/// The one of candle's device.
pub(in crate::kernels) fn of(device: &CudaDevice) -> Result<Arc<dyn Machine>> {
    static KNOWN: Mutex<Vec<(DeviceId, Arc<Gpu>)>> = Mutex::new(Vec::new());
    let mut known = locked(&KNOWN);
    if let Some((_, gpu)) = known.iter().find(|(id, _)| *id == device.id()) {
        return Ok(gpu.clone());
    }
    let gpu = Arc::new(Gpu::new(device)?);
    known.push((device.id(), gpu.clone()));
    Ok(gpu)
}

impl Gpu {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        // What is freed stays in the pool: the next step asks for the same again.
        let mut all = u64::MAX;
        // SAFETY: the attribute takes 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(wrong)?;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()).map_err(wrong)?;
        }
        let module = context.load_module(PTX.into()).map_err(wrong)?;
        let dnn = Mutex::new(Dnn::new(stream.clone())?);
        let (functions, residents) = (Mutex::default(), Mutex::default());
        Ok(Self { device: device.clone(), stream, module, functions, dnn, residents })
    }

    fn function(&self, name: &'static str, kind: Kind) -> Result<CudaFunction> {
        let mut functions = locked(&self.functions);
        if let Some(function) = functions.get(&(name, kind)) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(&format!("{name}{}", kind.ending())).map_err(wrong)?;
        functions.insert((name, kind), function.clone());
        Ok(function)
    }

    fn memory(&self, slice: CudaSlice<u8>) -> Memory {
        let at = slice.device_ptr(&self.stream).0;
        Memory { at, owner: Box::new(slice) }
    }
}

/// A CUDA graph. Launches of it are done one after the other, in the order of the stream.
struct Graph(Mutex<CudaGraph>);

// SAFETY: a graph may be used by any thread, one at a time, and the lock sees to that.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Replay for Graph {
    fn replay(&self) -> Result<()> {
        locked(&self.0).launch().map_err(wrong)
    }
}

impl Machine for Gpu {
    fn lend(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: whoever asks for it writes it before it is read.
        Ok(self.memory(unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.map_err(wrong)?))
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(wrong)?;
        // SAFETY: as in `copy`.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }.map_err(wrong)
    }

    fn upload(&self, data: &[u8]) -> Result<Memory> {
        Ok(self.memory(self.stream.clone_htod(data).map_err(wrong)?))
    }

    fn resident(&self, bytes: &Arc<Vec<u8>>) -> Result<Arc<Memory>> {
        let mut residents = locked(&self.residents);
        residents.retain(|(owner, _)| owner.strong_count() > 0);
        if let Some((_, memory)) = residents.iter().find(|(owner, _)| owner.as_ptr() == Arc::as_ptr(bytes)) {
            return Ok(memory.clone());
        }
        let memory = Arc::new(self.upload(bytes)?);
        residents.push((Arc::downgrade(bytes), memory.clone()));
        Ok(memory)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(wrong)?;
        // SAFETY: the passes give addresses of memory that they hold.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(wrong)
    }

    fn launch(&self, name: &'static str, kind: Kind, grid: Grid, args: &[Arg]) -> Result<()> {
        let function = self.function(name, kind)?;
        let mut builder = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::At(number) | Arg::Count(number) => builder.arg(number),
                Arg::Int(number) => builder.arg(number),
                Arg::Float(number) => builder.arg(number),
                Arg::Double(number) => builder.arg(number),
            };
        }
        let [across, down, deep] = grid.blocks.map(|blocks| blocks as u32);
        let [wide, high] = grid.threads.map(|threads| threads as u32);
        let config = LaunchConfig { grid_dim: (across, down, deep), block_dim: (wide, high, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel, as the tests on the stand-in show; memory is the passes' own.
        unsafe { builder.launch(config) }.map_err(|error| wrong(format!("{name}: {error}")))?;
        Ok(())
    }

    fn room(&self, shape: Convolution, makes: Makes) -> Result<usize> {
        locked(&self.dnn).room(shape, makes)
    }

    fn convolve_in(&self, room: &Memory, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()> {
        locked(&self.dnn).convolve(room.at, shape, makes, at, add)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(wrong)?;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // whatever came of it, the stream must go on
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(wrong);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let graph = graph?.ok_or_else(|| wrong("nothing was taken down"))?;
        graph.upload().map_err(wrong)?;
        Ok(Box::new(Graph(Mutex::new(graph))))
    }

    fn storage(&self, memory: Memory, count: usize, dtype: DType) -> Result<Storage> {
        let lost = || wrong("memory of another device");
        let bytes = *memory.owner.downcast::<CudaSlice<u8>>().map_err(|_| lost())?;
        // SAFETY: the same memory, of at least so many numbers, whose owner is the new slice alone.
        let storage = unsafe {
            match dtype {
                DType::F64 => {
                    let slice = self.stream.upgrade_device_ptr::<f64>(bytes.leak(), count);
                    CudaStorage::wrap_cuda_slice(slice, self.device.clone())
                }
                _ => {
                    let slice = self.stream.upgrade_device_ptr::<f32>(bytes.leak(), count);
                    CudaStorage::wrap_cuda_slice(slice, self.device.clone())
                }
            }
        };
        Ok(Storage::Cuda(storage))
    }

    fn place(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(wrong("the GPU's network takes contiguous tensors of its device"));
        };
        let at = match tensor.dtype() {
            DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&self.stream).0,
            _ => storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream).0,
        };
        Ok(at + 4 * start as u64)
    }
}
