//! The network on a GPU, f32 or bf16: convolutions by cuDNN, everything else by the kernels in `kernels.cu`. One candle operation
//! of theta and the input, walked back by hand, as on the CPU. Of a forward and its way back nothing comes to the host.

mod back;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "the driver and cuDNN know addresses alone")]
mod device;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "cuDNN knows addresses alone")]
mod dnn;
#[cfg(test)]
#[expect(unsafe_code, reason = "a stand-in for a device knows addresses alone")]
mod emulated;
mod forth;
mod machine;
mod value;
mod vectors;

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Shape, Storage, Tensor};

use super::steps::{Step, half, last_readers, steps};
use super::{Done, Mode, Network, Program, Sink, check};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
pub(super) use device::{of, one_stream};
use forth::{Forth, Kept, Report};
use machine::{Arg, Grid, Machine, Memory};
use value::Value;
pub(super) use vectors::{images, length, step};

/// What all forwards of a network share.
struct Core {
    program: Arc<Program>,
    steps: Vec<Step>,
    /// For each value, the last step that reads it; values looked at from outside are kept.
    last: Vec<usize>,
    /// For each value, whether it is in bf16.
    half: Vec<bool>,
    machine: Arc<dyn Machine>,
}

impl Core {
    /// Elements of a value.
    fn len(&self, value: usize, batch: usize) -> usize {
        self.program.size(value) * batch
    }

    fn pixels(&self, value: usize) -> usize {
        let [_, height, width] = self.program.shapes[value];
        height * width
    }

    fn lend(&self, value: usize, batch: usize) -> candle_core::Result<Value> {
        Value::new(&*self.machine, self.len(value, batch), self.half[value])
    }

    /// Where a parameter lies in a vector as long as theta.
    fn parameter(&self, theta: u64, index: usize) -> u64 {
        theta + 4 * self.program.parameters[index].range.start as u64
    }

    /// Outputs, inputs and places of a weight.
    fn sides(&self, weight: usize) -> [usize; 3] {
        let shape = &self.program.parameters[weight].shape;
        [shape[0], shape[1], shape[2..].iter().product()]
    }
}

/// Rows that one sum takes: enough sums for a large device. Bits depend on it.
fn chunk(rows: usize, channels: usize) -> usize {
    (rows * channels.div_ceil(32)).div_ceil(1024).clamp(32, 4096)
}

/// Batch x channels x pixels in f32 at `x` to batch x pixels x channels.
fn turn_in(machine: &dyn Machine, x: u64, y: &Value, sizes: [usize; 3]) -> candle_core::Result<()> {
    let [batch, channels, pixels] = sizes;
    let args = [&[Arg::At(x), y.at()], &sizes.map(forth::int)[..]].concat();
    machine.launch("turn_in", y.kind(), Grid::turn(batch, channels, pixels), &args)
}

/// The way back.
fn turn_out(machine: &dyn Machine, x: &Value, y: u64, sizes: [usize; 3]) -> candle_core::Result<()> {
    let [batch, channels, pixels] = sizes;
    let args = [&[x.at(), Arg::At(y)], &sizes.map(forth::int)[..]].concat();
    machine.launch("turn_out", x.kind(), Grid::turn(batch, pixels, channels), &args)
}

pub(super) struct Cuda {
    core: Arc<Core>,
}

impl Cuda {
    pub(super) fn new(program: Arc<Program>, machine: Arc<dyn Machine>) -> Self {
        let steps = steps(&program);
        let last = last_readers(&program, &steps);
        let half = half(&program, &steps);
        Self { core: Arc::new(Core { program, steps, last, half, machine }) }
    }
}

impl Network for Cuda {
    fn pieces(&self) -> Vec<Range<usize>> {
        std::iter::once(0..self.core.program.len()).collect()
    }

    fn is_reference(&self) -> bool {
        false
    }

    fn forward(&self, theta: &[Tensor], stats: &[Tensor], x: &Tensor, mode: &Mode, sink: &Arc<Sink>) -> Result<Done> {
        let Core { program, machine, .. } = &*self.core;
        let batch = check(program, stats, x, mode)?;
        let theta = match theta {
            [theta] if theta.dims() == [program.len()] => theta.contiguous()?,
            _ => return Err(Error::invalid("the parameters do not belong to this network")),
        };
        let x = x.contiguous()?;
        let stats: Vec<Tensor> = stats.iter().map(|set| Ok(set.contiguous()?)).collect::<Result<_>>()?;
        let tracked = [theta.track_op(), x.track_op()];
        let forth = Forth { core: &self.core, mode, stats: &stats, batch, theta: machine.place(&theta)? };
        let (result, Report { taps, moments }, kept) = forth.run(machine.place(&x)?, tracked)?;
        let lengths = [program.logits, program.features].map(|value| self.core.len(value, batch));
        let operation = Operation {
            core: self.core.clone(),
            mode: mode.clone(),
            batch,
            tracked,
            changes: sink.changes(),
            sink: sink.clone(),
            result: Mutex::new(Some(result)),
            length: lengths[0] + lengths[1],
            kept: kept.map_or_else(OnceLock::new, OnceLock::from),
        };
        let flat = theta.apply_op2(&x, operation)?;
        let out = |value: usize, start: usize, length: usize| -> Result<Tensor> {
            let part = flat.narrow(0, start, length)?;
            let [channels, height, width] = program.shapes[value];
            let image = [height, width] != [1, 1];
            Ok(if image { part.reshape((batch, channels, height, width))? } else { part.reshape((batch, channels))? })
        };
        let logits = out(program.logits, 0, lengths[0])?;
        let features = out(program.features, lengths[0], lengths[1])?;
        Ok(Done { logits, features, taps, moments })
    }
}

/// One forward of the whole network, with what it keeps for the way back. Dropped with candle's graph.
struct Operation {
    core: Arc<Core>,
    mode: Mode,
    batch: usize,
    /// Whether theta and the input are tracked.
    tracked: [bool; 2],
    sink: Arc<Sink>,
    /// Of theta, up to this forward.
    changes: u64,
    /// Logits and features, until candle takes them.
    result: Mutex<Option<Memory>>,
    length: usize,
    kept: OnceLock<Kept>,
}

impl Operation {
    fn taken(&self) -> candle_core::Result<(Storage, Shape)> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = result.ok_or_else(|| candle_core::Error::msg("a network's result is taken once"))?;
        Ok((self.core.machine.storage(result, self.length)?, Shape::from(self.length)))
    }
}

impl CustomOp2 for Operation {
    fn name(&self) -> &'static str {
        "network"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        match self.taken()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => Err(candle_core::Error::msg("the GPU's network takes tensors of its device")),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        match self.taken()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => Err(candle_core::Error::msg("the GPU's network takes tensors of its device")),
        }
    }

    fn bwd(
        &self,
        theta: &Tensor,
        x: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let lacks = || candle_core::Error::msg("the network kept nothing for the way back");
        let kept = self.kept.get().ok_or_else(lacks)?;
        if self.changes != self.sink.changes() {
            let words = "the parameters changed between a forward and its way back: walk back first";
            return Err(candle_core::Error::msg(words));
        }
        let core = &*self.core;
        let machine = &*core.machine;
        let tracked = [self.tracked[0] && self.sink.is_open(), self.tracked[1]];
        let gradient = gradient.contiguous()?;
        let theta_at = machine.place(theta)?;
        let back = back::Back { core, mode: &self.mode, batch: self.batch, kept, theta: theta_at, tracked };
        let [of_theta, of_x] = back.run(machine.place(&gradient)?)?;
        let tensor = |memory: Option<Memory>, like: &Tensor| {
            memory.map(|memory| machine.tensor(memory, like.dims())).transpose()
        };
        Ok((tensor(of_theta, theta)?, tensor(of_x, x)?))
    }
}

#[cfg(test)]
mod tests;
