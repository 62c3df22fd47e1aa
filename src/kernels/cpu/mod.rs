//! The fast path on the CPU, f32 or bf16. The whole network is one candle operation of theta and the input, walked back by
//! hand. Values lie as height x width x batch x channels; see `conv` for why.

mod back;
mod buffer;
mod conv;
#[cfg(target_arch = "x86_64")]
mod finish;
mod forth;
mod geometry;
mod norm;
mod number;
mod outer;
mod parallel;
mod pointwise;
mod product;
mod simd;
#[cfg(target_arch = "x86_64")]
mod tiled;
#[cfg(target_arch = "x86_64")]
mod tiled_outer;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod transform;
mod turn;
mod weights;
mod winograd;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};

use super::features::Features;
use super::given::given;
use super::steps::{Step, half, last_readers, steps};
use super::{Done, Gradient, Mode, Moments, Network, Products, Program, Sink, check, shape};
use crate::error::{Error, Result};
pub use buffer::Buffer;
use buffer::Pool;
use conv::Conv;
use forth::{Forth, Kept};
use number::Value;

/// What all forwards of a network share.
#[derive(Debug)]
struct Core {
    program: Arc<Program>,
    steps: Vec<Step>,
    /// Of the steps that are convolutions.
    convs: Vec<Option<Conv>>,
    /// For each value, the last step that reads it; values looked at from outside are kept.
    last: Vec<usize>,
    /// For each value, whether it is in bf16.
    half: Vec<bool>,
    pool: Arc<Pool>,
}

impl Core {
    /// Elements of a value.
    fn len(&self, value: usize, batch: usize) -> usize {
        self.program.size(value) * batch
    }

    /// How many images go through together where none sees another, if it matters: products in tile registers are done sooner
    /// than values come out of memory, so a second-level cache should hold them; a tile has 16 rows.
    fn images(&self) -> Option<usize> {
        const CACHE: usize = 2 << 20;
        let tiled = bf16_tiles() && self.program.products == Products::Bf16;
        let sizes =
            self.half.iter().enumerate().filter(|(_, half)| **half).map(|(value, _)| 2 * self.program.size(value));
        sizes.max().filter(|_| tiled).map(|largest| (CACHE / largest.max(1)).max(16))
    }

    fn pixels(&self, value: usize) -> usize {
        let [_, height, width] = self.program.shapes[value];
        height * width
    }

    fn lend(&self, value: usize, batch: usize) -> Value {
        Value::new(&self.pool, self.len(value, batch), self.half[value])
    }
}

pub(super) struct Cpu {
    core: Arc<Core>,
}

impl Cpu {
    pub(super) fn new(program: Arc<Program>) -> Self {
        Self::at(program, simd::Level::best())
    }

    fn at(program: Arc<Program>, level: simd::Level) -> Self {
        let steps = steps(&program);
        let convs = steps.iter().map(|step| Conv::of(&program, step, level)).collect();
        let last = last_readers(&program, &steps);
        let half = half(&program, &steps);
        Self { core: Arc::new(Core { program, steps, convs, last, half, pool: Arc::default() }) }
    }
}

impl Cpu {
    /// A forward of some images at a time, whose values stay in a cache. No image sees another, so its bits are the same.
    fn in_parts(
        &self,
        theta: &Tensor,
        stats: &Tensor,
        x: &Tensor,
        mode: &Mode,
        sink: &Arc<Sink>,
        images: usize,
    ) -> Result<Done> {
        let (batch, theta) = (x.dim(0)?, std::slice::from_ref(theta));
        let part = |start: usize| {
            let part = x.narrow(0, start, images.min(batch - start))?;
            self.forward(theta, stats, &part, mode, sink)
        };
        let parts = (0..batch).step_by(images).map(part).collect::<Result<Vec<_>>>()?;
        let all = |of: &dyn Fn(&Done) -> &Tensor| -> Result<Tensor> {
            Ok(Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0)?)
        };
        let taps = (0..mode.taps.len()).map(|tap| all(&|done| &done.taps[tap])).collect::<Result<_>>()?;
        Ok(Done { logits: all(&|done| &done.logits)?, features: all(&|done| &done.features)?, taps, moments: None })
    }
}

impl Network for Cpu {
    fn pieces(&self) -> Vec<Range<usize>> {
        std::iter::once(0..self.core.program.len()).collect()
    }

    fn is_reference(&self) -> bool {
        false
    }

    fn forward(&self, theta: &[Tensor], stats: &Tensor, x: &Tensor, mode: &Mode, sink: &Arc<Sink>) -> Result<Done> {
        let program = &self.core.program;
        let batch = check(program, stats, x, mode)?;
        let [theta] = theta else {
            return Err(Error::invalid("the parameters do not belong to this network"));
        };
        if theta.dims() != [program.len()] {
            return Err(Error::invalid("the parameters do not belong to this network"));
        }
        let tracked = [theta.track_op(), x.track_op()];
        if let Some(images) = self.core.images().filter(|&images| images < batch)
            && !tracked[0]
            && !tracked[1]
            && !mode.mixes(program)
        {
            return self.in_parts(theta, stats, x, mode, sink, images);
        }
        let (theta, x, stats) = (theta.contiguous()?, x.contiguous()?, stats.to_vec1::<f32>()?);
        sink.begin();
        let forth = Forth { core: &self.core, mode, stats: &stats, batch, sink };
        let (logits, report, kept) = read(&theta, |theta| read(&x, |x| Ok(forth.run(theta, x, tracked))))?;
        let features = Arc::<Features>::default();
        let operation = Operation {
            core: self.core.clone(),
            mode: mode.clone(),
            batch,
            tracked,
            features: features.clone(),
            changes: sink.changes(),
            sink: sink.clone(),
            kept,
        };
        let back = move |inputs: &[&Tensor], above: &Tensor| operation.back(inputs, above);
        let logits = Storage::Cpu(CpuStorage::F32(logits));
        let logits = given("network", &[&theta, &x], logits, shape(program, program.logits, batch), back)?;
        let device = x.device();
        let made = Storage::Cpu(CpuStorage::F32(report.features));
        let features = features.beside(&logits, made, shape(program, program.features, batch))?;
        let mut taps = Vec::with_capacity(mode.taps.len());
        for (&value, data) in mode.taps.iter().zip(report.taps) {
            taps.push(Tensor::from_vec(data, shape(program, value, batch), device)?);
        }
        let (norms, values) = report.moments;
        let values = if norms.is_empty() { None } else { Some(Tensor::from_slice(&values, values.len(), device)?) };
        let moments = values.map(|values| Moments { norms, branch: mode.branch, values });
        Ok(Done { logits, features, taps, moments })
    }
}

/// What a forward says beside logits.
#[derive(Debug, Default)]
struct Report {
    features: Vec<f32>,
    taps: Vec<Vec<f32>>,
    /// Batch norms; of one after the other the mean and the unbiased variance.
    moments: (Vec<usize>, Vec<f32>),
}

/// One forward of the whole network, with what it keeps for the way back. Dropped with candle's graph.
struct Operation {
    core: Arc<Core>,
    mode: Mode,
    batch: usize,
    /// Whether theta and the input are tracked.
    tracked: [bool; 2],
    features: Arc<Features>,
    sink: Arc<Sink>,
    /// Of theta, up to this forward.
    changes: u64,
    kept: Option<Kept>,
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("the network takes contiguous tensors".to_owned()))?;
    storage
        .as_slice::<f32>()?
        .get(start..end)
        .ok_or_else(|| candle_core::Error::Msg("a tensor is shorter than its shape".to_owned()))
}

/// The numbers of a contiguous CPU f32 tensor.
pub(super) fn read<R>(tensor: &Tensor, act: impl FnOnce(&[f32]) -> candle_core::Result<R>) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => act(elements(storage, layout)?),
        _ => Err(candle_core::Error::Msg("the CPU's network takes CPU tensors".to_owned())),
    }
}

impl Operation {
    /// From the gradient of logits to that of the input; that of theta goes to the sink.
    fn back(&self, inputs: &[&Tensor], gradient: &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> {
        let ([theta, x], Some(kept)) = (inputs, &self.kept) else {
            return Err(candle_core::Error::Msg("the network kept nothing for the way back".to_owned()));
        };
        if self.changes != self.sink.changes() {
            let words = "the parameters changed between a forward and its way back: walk back first";
            return Err(candle_core::Error::Msg(words.to_owned()));
        }
        let tracked = [self.tracked[0] && self.sink.is_open(), self.tracked[1]];
        let back = |logits: &[f32], features: &[f32]| {
            read(theta, |theta| {
                let (core, mode, batch, sink) = (&*self.core, &self.mode, self.batch, &*self.sink);
                let back = back::Back { core, mode, batch, kept, theta, tracked, sink };
                Ok(back.run(logits, features))
            })
        };
        let gradient = gradient.contiguous()?;
        let (of_theta, of_x) = match self.features.taken() {
            None => read(&gradient, |logits| back(logits, &[]))?,
            Some(features) => {
                let features = features.contiguous()?;
                read(&gradient, |logits| read(&features, |features| back(logits, features)))?
            }
        };
        if let Some(of_theta) = of_theta {
            self.sink.give(Gradient::Host(of_theta), |sum, new| {
                if let (Gradient::Host(sum), Gradient::Host(new)) = (sum, new) {
                    pointwise::add_all(sum, new);
                }
                Ok(())
            })?;
        }
        let of_x = of_x.map(|data| Tensor::from_vec(data, x.shape(), x.device())).transpose()?;
        Ok(vec![None, of_x])
    }
}

pub(super) fn bf16_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return tiles::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Hands out the elements of a vector for writing.
struct InPlace<F>(Mutex<Option<F>>, Mutex<Result<()>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            return Err(candle_core::Error::Msg("only contiguous f32 vectors change in place".to_owned()));
        };
        let change = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(change), Some(part)) = (change, data.get_mut(start..end)) {
            *self.1.lock().unwrap_or_else(PoisonError::into_inner) = change(part);
        }
        Ok(())
    }
}

pub(super) fn in_place(vector: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let operation = InPlace(Mutex::new(Some(change)), Mutex::new(Ok(())));
    vector.inplace_op1(&operation)?;
    operation.1.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod layers;
#[cfg(test)]
mod tests;
