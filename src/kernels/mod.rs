//! Everything the house knows about speed. Outside `nn/` nobody names this module; what stands here is the contract
//! that every backend keeps: a static list of layers, parameters in pieces, one forward that candle can walk back.

#[cfg(test)]
mod checks;
#[expect(unsafe_code, reason = "inner loops in vector instructions, tasks that share one output")]
mod cpu;
#[cfg(any(test, feature = "cuda"))]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "parts that tests alone reach without a GPU"))]
mod cuda;
mod features;
mod given;
mod losses;
mod program;
mod reference;
mod sink;
mod steps;
mod vectors;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::rng::Rng;
pub use cpu::Buffer;
pub use given::given;
pub use losses::{Rows, Told, loss, scaled};
pub use program::{Builder, Init, Layer, Norm, Op, Parameter, Products, Program, Window};
pub use sink::{Gradient, Sink};
pub use vectors::{Drawn, Numbers, gpu, images, squares, step};

/// Raised when the CPU's kernels give other bits for the same input; a test holds them to it. Recorded with every result.
pub const VERSION: u32 = 3;

/// PyTorch's `eps` of batch norm.
pub const EPSILON: f64 = 1e-5;

/// How one forward is to be done.
#[derive(Clone, Debug)]
pub struct Mode {
    /// For each batch norm of the program: statistics of the batch (true) or the running ones (false).
    pub batch: Vec<bool>,
    /// Which set of batch-norm statistics, weights and biases to use.
    pub branch: usize,
    /// Without one, dropout does nothing.
    pub rng: Option<Rng>,
    /// Values to hand out beside logits and features, untracked.
    pub taps: Vec<usize>,
}

impl Mode {
    /// Whether an image's results depend on the batch that it is in, or on its place there.
    fn mixes(&self, program: &Program) -> bool {
        let draws = || program.layers.iter().any(|layer| matches!(layer.op, Op::Dropout(_)));
        self.batch.iter().any(|by_batch| *by_batch) || (self.rng.is_some() && draws())
    }
}

/// What batch norms saw: of one after the other the means and the unbiased variances of the batch, as one vector.
#[derive(Clone, Debug)]
pub struct Moments {
    /// In the order of the layers.
    pub norms: Vec<usize>,
    pub branch: usize,
    pub values: Tensor,
}

/// The shape of a value of the program: batch x channels, and x height x width where it is an image.
fn shape(program: &Program, value: usize, batch: usize) -> candle_core::Shape {
    match program.shapes[value] {
        [channels, 1, 1] => (batch, channels).into(),
        [channels, height, width] => (batch, channels, height, width).into(),
    }
}

/// What a forward gives.
#[derive(Debug)]
pub struct Done {
    /// Batch x classes; batch x channels x height x width where the last value is an image.
    pub logits: Tensor,
    pub features: Tensor,
    pub taps: Vec<Tensor>,
    /// Of every batch norm in batch mode that saw more than one value a channel.
    pub moments: Option<Moments>,
}

/// A network on a device. Parameters come from outside, so one network may serve several forwards at once.
pub trait Network: Send + Sync {
    /// How theta is cut: one piece where the network is one operation, one a parameter in the reference.
    fn pieces(&self) -> Vec<Range<usize>>;
    /// `x` is batch x channels x height x width; `stats` has all statistics of batch norms, as `Program::statistics` says.
    /// Tracked where `theta` or `x` is; the way back may leave the gradient of theta in `sink` and not in candle's store.
    fn forward(&self, theta: &[Tensor], stats: &Tensor, x: &Tensor, mode: &Mode, sink: &Arc<Sink>) -> Result<Done>;
    /// Whether this is the slow twin.
    fn is_reference(&self) -> bool;
}

/// The fastest network there is for the device and type: own kernels for f32 on the CPU and on CUDA devices, the reference
/// elsewhere.
pub fn network(program: &Arc<Program>, device: &Device, dtype: DType) -> Result<Arc<dyn Network>> {
    Ok(match device {
        Device::Cpu if dtype == DType::F32 => Arc::new(cpu::Cpu::new(program.clone())),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if dtype == DType::F32 => Arc::new(cuda::Cuda::new(program.clone(), cuda::of(device)?)),
        _ => reference(program),
    })
}

/// The slow twin, on any device, f32 or f64.
#[must_use]
pub fn reference(program: &Arc<Program>) -> Arc<dyn Network> {
    Arc::new(reference::Reference::new(program.clone()))
}

/// Whether products in bf16 run in this processor's tile registers: their last digits are others than without.
#[must_use]
pub fn bf16_tiles() -> bool {
    cpu::bf16_tiles()
}

/// Runs `change` on the elements of a CPU f32 vector in place.
pub fn in_place(vector: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    cpu::in_place(vector, change)
}

/// The factors of a dropout layer, batch x channels x height x width: 0, or 1 / (1 - p). A function of generator,
/// layer and place in the batch alone.
fn dropout(rng: &Rng, layer: usize, p: f32, batch: usize, values: usize) -> Vec<f32> {
    let keep = 1.0 / (1.0 - p);
    let rng = rng.fork("dropout").at(layer as u64);
    let mut factors = Vec::with_capacity(batch * values);
    for sample in 0..batch {
        let mut rng = rng.at(sample as u64);
        factors.extend((0..values).map(|_| if rng.unit() < p { 0.0 } else { keep }));
    }
    factors
}

/// Checks what both backends rely on; gives the batch size.
fn check(program: &Program, stats: &Tensor, x: &Tensor, mode: &Mode) -> Result<usize> {
    let [channels, height, width] = program.input;
    let batch = match x.dims() {
        [batch, c, h, w] if [*c, *h, *w] == program.input && *batch > 0 => *batch,
        other => {
            return Err(Error::invalid(format!(
                "the network takes a batch of {channels} x {height} x {width}, but got {other:?}"
            )));
        }
    };
    if mode.branch >= program.branches {
        return Err(Error::invalid(format!(
            "batch-norm branch {} was asked for, but the network has {}",
            mode.branch, program.branches
        )));
    }
    if stats.dims() != [program.all_statistics()] || mode.batch.len() != program.norms.len() {
        return Err(Error::invalid("the statistics do not belong to this network"));
    }
    Ok(batch)
}
