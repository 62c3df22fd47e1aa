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
mod losses;
mod machine;
mod recorded;
mod value;
mod vectors;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::features::Features;
use super::given::given;
use super::steps::{Step, half, last_readers, steps};
use super::{Done, Gradient, Mode, Moments, Network, Program, Sink, check, shape};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
pub(super) use device::{of, one_stream};
use forth::{Forth, Kept};
pub(super) use losses::{loss, scaled};
use machine::{Arg, Grid, Machine, Memory};
use recorded::{Recording, Recordings};
use value::Value;
pub(super) use vectors::{images, squares, step};

/// What all forwards of a network share.
#[derive(Clone)]
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
    /// None where every pass goes launch by launch.
    recordings: Option<Recordings>,
}

impl Cuda {
    pub(super) fn new(program: Arc<Program>, machine: Arc<dyn Machine>) -> Self {
        let steps = steps(&program);
        let last = last_readers(&program, &steps);
        let half = half(&program, &steps);
        let recordings = recorded::wanted().then(Recordings::default);
        Self { core: Arc::new(Core { program, steps, last, half, machine }), recordings }
    }
}

impl Cuda {
    fn taps(&self, mode: &Mode, batch: usize, taps: Vec<Memory>) -> Result<Vec<Tensor>> {
        let tensor = |(tap, &value): (Memory, &usize)| {
            Ok(self.core.machine.tensor(tap, shape(&self.core.program, value, batch).dims())?)
        };
        taps.into_iter().zip(&mode.taps).map(tensor).collect()
    }

    fn moments(&self, forth: &Forth, moments: Option<Memory>) -> Result<Option<Moments>> {
        let Some(moments) = moments else { return Ok(None) };
        let values = self.core.machine.tensor(moments, &[forth.told()])?;
        let norms = forth.watched().map(|(norm, _)| norm).collect();
        Ok(Some(Moments { norms, branch: forth.mode.branch, values }))
    }
}

impl Network for Cuda {
    fn pieces(&self) -> Vec<Range<usize>> {
        std::iter::once(0..self.core.program.len()).collect()
    }

    fn is_reference(&self) -> bool {
        false
    }

    fn forward(&self, theta: &[Tensor], stats: &Tensor, x: &Tensor, mode: &Mode, sink: &Arc<Sink>) -> Result<Done> {
        let Core { program, machine, .. } = &*self.core;
        let batch = check(program, stats, x, mode)?;
        let theta = match theta {
            [theta] if theta.dims() == [program.len()] => theta.contiguous()?,
            _ => return Err(Error::invalid("the parameters do not belong to this network")),
        };
        let x = x.contiguous()?;
        let stats = stats.contiguous()?;
        let tracked = [theta.track_op(), x.track_op()];
        let forth = Forth { core: &self.core, mode, stats: &stats, batch, theta: machine.place(&theta)? };
        let x_at = machine.place(&x)?;
        let recording = self.recordings.as_ref().and_then(|recordings| recordings.of(&forth, x_at, tracked));
        let (made, way) = match recording {
            Some(recording) => (recording.forth(x_at, &stats)?, Way::Recorded(recording)),
            None => {
                let (made, kept) = forth.run(x_at, tracked)?;
                (made, kept.map_or(Way::None, Way::Kept))
            }
        };
        let (taps, moments) = (self.taps(mode, batch, made.taps)?, self.moments(&forth, made.moments)?);
        let features = Arc::<Features>::default();
        let operation = Operation {
            core: self.core.clone(),
            mode: mode.clone(),
            batch,
            tracked,
            changes: sink.changes(),
            sink: sink.clone(),
            features: features.clone(),
            way,
        };
        let logits = machine.storage(made.logits, self.core.len(program.logits, batch), DType::F32)?;
        let back = move |inputs: &[&Tensor], above: &Tensor| operation.back(inputs, above);
        let logits = given("network", &[&theta, &x], logits, shape(program, program.logits, batch), back)?;
        let made = machine.storage(made.features, self.core.len(program.features, batch), DType::F32)?;
        let features = features.beside(&logits, made, shape(program, program.features, batch))?;
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
    features: Arc<Features>,
    way: Way,
}

/// What goes back to the start of a forward.
enum Way {
    None,
    Kept(Kept),
    /// In use until this is dropped.
    Recorded(Arc<Recording>),
}

impl Operation {
    /// From the gradient of logits to those of theta and of the input.
    fn back(&self, inputs: &[&Tensor], gradient: &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> {
        let [theta, x] = inputs else { return Err(candle_core::Error::msg("a network has theta and an input")) };
        if self.changes != self.sink.changes() {
            let words = "the parameters changed between a forward and its way back: walk back first";
            return Err(candle_core::Error::msg(words));
        }
        let core = &*self.core;
        let machine = &*core.machine;
        let tracked = [self.tracked[0] && self.sink.is_open(), self.tracked[1]];
        let gradient = gradient.contiguous()?;
        let of_features = self.features.taken().map(|gradient| gradient.contiguous()).transpose()?;
        let place = |gradient: &Tensor| machine.place(gradient);
        let above = [place(&gradient)?, of_features.as_ref().map_or(Ok(0), place)?];
        let [of_theta, of_x] = match &self.way {
            Way::None => return Err(candle_core::Error::msg("the network kept nothing for the way back")),
            Way::Kept(kept) => {
                let theta = machine.place(theta)?;
                back::Back { core, mode: &self.mode, batch: self.batch, kept, theta, tracked }.run(above)?
            }
            Way::Recorded(recording) => recording.back(above, tracked)?,
        };
        let tensor = |memory: Memory, like: &Tensor| machine.tensor(memory, like.dims());
        if let Some(of_theta) = of_theta {
            self.sink.give(Gradient::Device(tensor(of_theta, theta)?), |sum, new| {
                let (Gradient::Device(sum), Gradient::Device(new)) = (sum, new) else { return Ok(()) };
                vectors::add(machine, sum, new)
            })?;
        }
        Ok(vec![None, of_x.map(|memory| tensor(memory, x)).transpose()?])
    }
}

#[cfg(test)]
mod tests;
