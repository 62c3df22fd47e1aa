//! A network with its weights, as methods see it: all parameters are one vector theta, batch-norm statistics another.
//! Theta holds the parameters in the order of `Model::spans`, each in PyTorch's layout and row-major.

mod gradient;
mod head;
mod mask;
mod pass;
mod penalty;
mod teacher;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::arch::Arch;
use super::init;
use crate::error::{Error, Result, listed};
use crate::kernels::{self, Mode, Moments, Network, Program, Sink};
use crate::rng::Rng;
pub use gradient::{Gradient, Measure, gradients, gradients_of};
pub use pass::{Pass, Statistics};
pub use teacher::Teacher;

/// How far running statistics move towards a batch's: PyTorch's momentum of batch norm.
const MOMENTUM: f64 = 0.1;

/// Where a parameter lies in theta, by torchvision's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// Batch-norm statistics of a model as they were at some time.
#[derive(Clone, Debug)]
pub struct Running(Tensor);

/// What a forward gives: tracked, so losses on it have gradients.
#[derive(Debug)]
pub struct Output {
    /// Batch x classes; batch x channels x height x width from a generator.
    pub logits: Tensor,
    /// Batch x features: what the last layer reads.
    pub features: Tensor,
    moments: Option<Moments>,
}

/// Which kernels a model runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The fastest there is for the device and type.
    Fast,
    /// Plain candle operations.
    Reference,
}

/// A network and its weights. Never changed behind its owner's back: copies are deep.
pub struct Model {
    arch: Arch,
    program: Arc<Program>,
    network: Arc<dyn Network>,
    spans: Arc<[Span]>,
    device: Device,
    dtype: DType,
    /// Theta, cut as the network wants it.
    pieces: Vec<Var>,
    /// All batch-norm statistics, as `Program::statistics` says.
    stats: Tensor,
    /// What goes with theta.
    sink: Arc<Sink>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {} parameters)", self.arch.name, self.program.len())
    }
}

impl Model {
    /// Fresh weights, each parameter drawn from the fork of its name: convolutions by Kaiming's rule (normal, fan out,
    /// ReLU), linear layers and all biases uniform in +-1/sqrt(fan in), batch norms 1 and 0.
    pub fn init(arch: &Arch, rng: &Rng, device: &Device) -> Result<Self> {
        let program = Arc::new(arch.program()?);
        let mut theta = Vec::with_capacity(program.len());
        for parameter in &program.parameters {
            theta.extend(init::draw(parameter, rng));
        }
        let stats = weights::fresh_stats(&program);
        Self::assemble(arch, program, theta, stats, device)
    }

    fn assemble(arch: &Arch, program: Arc<Program>, theta: Vec<f32>, stats: Vec<f32>, device: &Device) -> Result<Self> {
        // a GPU has no memory of no bytes
        let home = if stats.is_empty() { &Device::Cpu } else { device };
        let stats = Tensor::from_vec(stats, program.all_statistics(), home)?;
        let network = kernels::network(&program, device, DType::F32)?;
        let spans = program
            .parameters
            .iter()
            .map(|p| Span { name: p.name.clone(), shape: p.shape.clone(), range: p.range.clone() })
            .collect();
        let theta = Tensor::from_vec(theta, program.len(), device)?;
        let pieces = cut(&theta, network.as_ref())?;
        let (arch, device) = (arch.clone(), device.clone());
        Ok(Self { arch, program, network, spans, device, dtype: DType::F32, pieces, stats, sink: Arc::default() })
    }

    /// The same weights on other kernels.
    pub fn with_backend(self, backend: Backend) -> Result<Self> {
        let network = match backend {
            Backend::Fast => kernels::network(&self.program, &self.device, self.dtype)?,
            Backend::Reference => kernels::reference(&self.program),
        };
        let pieces = cut(&self.theta_tensor()?, network.as_ref())?;
        Ok(Self { network, pieces, sink: Arc::default(), ..self })
    }

    /// The same weights as f32 or f64; f64 runs on the reference.
    pub fn with_dtype(self, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(Error::invalid(format!("networks run in f32 or f64, not {dtype:?}")));
        }
        let network = kernels::network(&self.program, &self.device, dtype)?;
        let pieces = cut(&self.theta_tensor()?.to_dtype(dtype)?, network.as_ref())?;
        let stats = self.stats.to_dtype(dtype)?;
        Ok(Self { network, dtype, pieces, stats, sink: Arc::default(), ..self })
    }

    /// A deep copy.
    pub fn copy(&self) -> Result<Self> {
        let backend = if self.network.is_reference() { Backend::Reference } else { Backend::Fast };
        let fresh = Self {
            arch: self.arch.clone(),
            program: self.program.clone(),
            network: self.network.clone(),
            spans: self.spans.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
            pieces: self.pieces.clone(),
            stats: self.stats.clone(),
            sink: Arc::default(),
        };
        fresh.with_backend(backend)
    }

    /// A deep copy that can only be asked.
    pub fn teacher(&self) -> Result<Teacher> {
        Ok(Teacher::new(self.copy()?))
    }

    #[must_use]
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    #[must_use]
    pub fn backend(&self) -> Backend {
        if self.network.is_reference() { Backend::Reference } else { Backend::Fast }
    }

    /// Where each parameter lies in theta.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    fn run(&self, x: &Tensor, mode: &Mode, tracked: bool) -> Result<kernels::Done> {
        let x = x.to_device(&self.device)?.to_dtype(self.dtype)?;
        let theta: Vec<Tensor> = self
            .pieces
            .iter()
            .map(|piece| if tracked { piece.as_tensor().clone() } else { piece.as_detached_tensor() })
            .collect();
        let x = if tracked { x } else { x.detach() };
        self.network.forward(&theta, &self.stats, &x, mode, &self.sink)
    }

    /// One tracked forward. `x`: batch x channels x height x width, normalised. Statistics of the batch come back in
    /// the output and do nothing until `commit`. Walk back before the parameters change.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Output> {
        let done = self.run(x, &pass.mode(&self.program), true)?;
        let moments = done.moments.filter(|_| pass.update_stats);
        Ok(Output { logits: done.logits, features: done.features, moments })
    }

    /// Moves the running statistics towards those of that forward.
    pub fn commit(&mut self, output: &Output) -> Result<()> {
        let Some(Moments { norms, branch, values }) = &output.moments else { return Ok(()) };
        let other = || Error::invalid("the statistics are those of another network");
        if *branch >= self.program.branches || norms.iter().any(|&norm| norm >= self.program.norms.len()) {
            return Err(other());
        }
        // those that follow each other move in one go: mostly all
        let mut runs: Vec<Range<usize>> = Vec::new();
        for range in norms.iter().map(|&norm| self.program.statistics(norm, *branch)) {
            match runs.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                Some(last) if last.end > range.start => return Err(other()),
                _ => runs.push(range),
            }
        }
        if runs.iter().map(Range::len).sum::<usize>() != values.elem_count() {
            return Err(other());
        }
        let (mut parts, mut at, mut from) = (Vec::new(), 0, 0);
        for run in runs {
            let (old, seen) = (self.stats.narrow(0, run.start, run.len())?, values.narrow(0, from, run.len())?);
            parts.push(self.stats.narrow(0, at, run.start - at)?);
            parts.push((old.affine(1.0 - MOMENTUM, 0.0)? + seen.affine(MOMENTUM, 0.0)?)?);
            (at, from) = (run.end, from + run.len());
        }
        parts.push(self.stats.narrow(0, at, self.stats.elem_count() - at)?);
        parts.retain(|part| part.elem_count() > 0);
        self.stats = match parts.as_slice() {
            [all] => all.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        Ok(())
    }

    /// A tracked training pass whose statistics count.
    pub fn train(&mut self, x: &Tensor) -> Result<Output> {
        self.train_with(x, &Pass::train())
    }

    /// `forward` and `commit`.
    pub fn train_with(&mut self, x: &Tensor, pass: &Pass) -> Result<Output> {
        let output = self.forward(x, pass)?;
        self.commit(&output)?;
        Ok(output)
    }

    /// `train_with` where the weights are constants: gradients go to `x` alone.
    pub fn train_through(&mut self, x: &Tensor, pass: &Pass) -> Result<Output> {
        let x = x.to_device(&self.device)?.to_dtype(self.dtype)?;
        let theta: Vec<Tensor> = self.pieces.iter().map(Var::as_detached_tensor).collect();
        let done = self.network.forward(&theta, &self.stats, &x, &pass.mode(&self.program), &self.sink)?;
        let moments = done.moments.filter(|_| pass.update_stats);
        let output = Output { logits: done.logits, features: done.features, moments };
        self.commit(&output)?;
        Ok(output)
    }

    /// A parameter by its name, tracked, in its own shape. Walk back before the parameters change.
    pub fn parameter(&self, name: &str) -> Result<Tensor> {
        let span = self.spans.iter().find(|span| span.name == name);
        let span = span.ok_or_else(|| Error::invalid(format!("`{}` has no parameter `{name}`", self.arch.name)))?;
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.elem_count();
            if (start..end).contains(&span.range.start) {
                let part = piece.as_tensor().narrow(0, span.range.start - start, span.range.len())?;
                return Ok(part.reshape(span.shape.as_slice())?);
            }
            start = end;
        }
        Err(Error::invalid(format!("the parameter `{name}` is empty")))
    }

    /// Evaluation mode, untracked.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x, &Pass::eval().mode(&self.program), false)?.logits)
    }

    /// Evaluation mode, untracked.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x, &Pass::eval().mode(&self.program), false)?.features)
    }

    /// The layers with a name, from the first to the last: `stem`, `layer1`, .., `features`, `logits`.
    #[must_use]
    pub fn layers(&self) -> Vec<&str> {
        self.program.taps.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// All layers with a name, in evaluation mode and untracked.
    pub fn taps(&self, x: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        self.taps_of(x, &self.layers())
    }

    /// Some of them; an error names those there are.
    pub fn taps_of(&self, x: &Tensor, names: &[&str]) -> Result<BTreeMap<String, Tensor>> {
        let mut mode = Pass::eval().mode(&self.program);
        for name in names {
            let found = self.program.taps.iter().find(|(known, _)| known == name).ok_or_else(|| {
                Error::invalid(format!(
                    "`{}` has no layer `{name}` to look at; it has {}",
                    self.arch.name,
                    listed(&self.layers(), "and")
                ))
            })?;
            mode.taps.push(found.1);
        }
        let done = self.run(x, &mode, false)?;
        Ok(names.iter().map(|&name| name.to_owned()).zip(done.taps).collect())
    }

    /// The number of parameters: the length of theta.
    #[must_use]
    pub fn len(&self) -> usize {
        self.program.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.program.is_empty()
    }

    /// A copy of all parameters.
    pub fn theta(&self) -> Result<Vec<f32>> {
        Ok(self.theta_tensor()?.to_dtype(DType::F32)?.to_vec1()?)
    }

    pub fn set_theta(&mut self, theta: &[f32]) -> Result<()> {
        self.set_theta_tensor(&Tensor::from_slice(theta, theta.len(), &self.device)?)
    }

    /// A copy of all parameters, one vector of the model's own type on its device.
    pub fn theta_tensor(&self) -> Result<Tensor> {
        match self.pieces.as_slice() {
            [one] => Ok(one.as_tensor().copy()?.detach()),
            many => {
                let many: Vec<Tensor> = many.iter().map(Var::as_detached_tensor).collect();
                Ok(Tensor::cat(&many, 0)?)
            }
        }
    }

    /// All parameters from one vector.
    pub fn set_theta_tensor(&mut self, theta: &Tensor) -> Result<()> {
        if theta.dims() != [self.program.len()] {
            return Err(Error::invalid(format!(
                "`{}` has {} parameters, but got {:?}",
                self.arch.name,
                self.program.len(),
                theta.dims()
            )));
        }
        self.sink.theta_changed();
        let theta = theta.to_device(&self.device)?.to_dtype(self.dtype)?.detach();
        let mut start = 0;
        for piece in &self.pieces {
            let count = piece.elem_count();
            // a copy: the variable's own storage may be what we are given
            piece.set(&theta.narrow(0, start, count)?.force_contiguous()?)?;
            start += count;
        }
        Ok(())
    }

    /// Changes the parameters in place, without a copy on the CPU's own kernels: for optimisers. f32 alone.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        if self.dtype != DType::F32 {
            return Err(Error::invalid("parameters in f64 change through `set_theta_tensor`"));
        }
        self.sink.theta_changed();
        match self.pieces.as_slice() {
            [one] if self.device.is_cpu() => kernels::in_place(one.as_tensor(), change),
            _ => {
                let mut theta = self.theta()?;
                change(&mut theta)?;
                self.set_theta(&theta)
            }
        }
    }

    /// Changes the parameters where they are, as one vector, without a copy on the device's own kernels.
    pub fn update_in_place(&mut self, change: impl FnOnce(&Var) -> Result<()>) -> Result<()> {
        self.sink.theta_changed();
        if let [one] = self.pieces.as_slice() {
            return change(one);
        }
        let theta = Var::from_tensor(&self.theta_tensor()?)?;
        change(&theta)?;
        self.set_theta_tensor(theta.as_tensor())
    }

    /// All batch-norm statistics, one vector: mean and variance of each batch norm, branch by branch in the order of the layers.
    #[must_use]
    pub fn stats(&self) -> Tensor {
        self.stats.clone()
    }

    /// All batch-norm statistics as they are now. Costs nothing.
    #[must_use]
    pub fn running(&self) -> Running {
        Running(self.stats.clone())
    }

    /// What `stats` gave.
    pub fn set_stats(&mut self, stats: &Tensor) -> Result<()> {
        let total = self.stats.elem_count();
        if stats.dims() != [total] {
            return Err(Error::invalid(format!(
                "`{}` has {total} batch-norm statistics, but got {:?}",
                self.arch.name,
                stats.dims()
            )));
        }
        if total > 0 {
            self.stats = stats.to_device(&self.device)?.to_dtype(self.dtype)?.force_contiguous()?.detach();
        }
        Ok(())
    }
}

/// Theta into fresh variables, one a piece.
fn cut(theta: &Tensor, network: &dyn Network) -> Result<Vec<Var>> {
    network
        .pieces()
        .into_iter()
        .map(|range| Ok(Var::from_tensor(&theta.narrow(0, range.start, range.len())?.force_contiguous()?)?))
        .collect()
}
