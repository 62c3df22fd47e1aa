//! Models: a student that trains, a teacher that cannot. To a method all parameters are one vector, theta.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};

use super::arch::Arch;
use super::init;
use crate::error::{Error, Result, listed};
use crate::kernels::layer::Layers;
use crate::kernels::reference::{self, BatchStats, Norm};
use crate::rng::Rng;

/// Share of the batch in the running statistics, as PyTorch's.
const MOMENTUM: f64 = 0.1;

/// Where a parameter lies in theta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// How batch norm behaves in a forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    norm: Norm,
    frozen: Vec<String>,
}

impl Pass {
    /// Batch statistics.
    #[must_use]
    pub fn train() -> Self {
        Self { norm: Norm::Batch, frozen: Vec::new() }
    }

    /// Running statistics.
    #[must_use]
    pub fn eval() -> Self {
        Self { norm: Norm::Running, frozen: Vec::new() }
    }

    /// Running statistics, that do not move, for layers whose names begin so.
    #[must_use]
    pub fn frozen(mut self, prefixes: &[&str]) -> Self {
        self.frozen = prefixes.iter().map(|&p| p.to_owned()).collect();
        self
    }
}

/// What a network says of a batch.
#[derive(Debug)]
pub struct Output {
    /// [B, classes].
    pub logits: Tensor,
    /// [B, width]: what the last linear layer reads.
    pub features: Tensor,
    stats: BatchStats,
}

#[derive(Debug)]
pub struct Model {
    arch: Arch,
    layers: Layers,
    spans: Vec<Span>,
    theta: BTreeMap<String, Var>,
    /// Running mean and variance of each batch-norm layer.
    running: BTreeMap<String, (Tensor, Tensor)>,
    device: Device,
}

impl Model {
    /// Freshly initialised; each parameter is drawn from a stream of its own name.
    pub fn init(arch: &Arch, rng: &Rng, device: &Device) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in arch.layers().parameters() {
            let values = init::parameter(&name, &shape, rng);
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        for (name, channels) in arch.layers().batch_norms() {
            tensors.insert(format!("{name}.running_mean"), Tensor::zeros(channels, DType::F32, &Device::Cpu)?);
            tensors.insert(format!("{name}.running_var"), Tensor::ones(channels, DType::F32, &Device::Cpu)?);
        }
        Self::from_tensors(arch, &tensors, device)
    }

    /// From named tensors: complete, with no names left over, or an error that names the parameter.
    pub fn from_tensors(arch: &Arch, tensors: &BTreeMap<String, Tensor>, device: &Device) -> Result<Self> {
        let layers = arch.layers();
        let take = |name: &str, shape: &[usize]| -> Result<Tensor> {
            let tensor = tensors
                .get(name)
                .ok_or_else(|| Error::invalid(format!("the checkpoint lacks `{name}`, which {} needs", arch.name)))?;
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(Error::invalid(format!(
                    "`{name}` has the shape {found:?}, but {} needs {shape:?}",
                    arch.name
                )));
            }
            Ok(tensor.to_device(device)?.to_dtype(DType::F32)?.copy()?)
        };
        let (mut theta, mut spans, mut running, mut start) = (BTreeMap::new(), Vec::new(), BTreeMap::new(), 0);
        for (name, shape) in layers.parameters() {
            theta.insert(name.clone(), Var::from_tensor(&take(&name, &shape)?)?);
            let length: usize = shape.iter().product();
            spans.push(Span { name, shape, range: start..start + length });
            start += length;
        }
        for (name, channels) in layers.batch_norms() {
            let mean = take(&format!("{name}.running_mean"), &[channels])?;
            let variance = take(&format!("{name}.running_var"), &[channels])?;
            running.insert(name, (mean, variance));
        }
        let known = |name: &str| {
            theta.contains_key(name)
                || name.rsplit_once('.').is_some_and(|(layer, buffer)| {
                    running.contains_key(layer)
                        && ["running_mean", "running_var", "num_batches_tracked"].contains(&buffer)
                })
        };
        let extra: Vec<&String> = tensors.keys().filter(|name| !known(name)).collect();
        if !extra.is_empty() {
            return Err(Error::invalid(format!(
                "the checkpoint has {}, which {} lacks",
                listed(&extra, "and"),
                arch.name
            )));
        }
        Ok(Self { arch: arch.clone(), layers, spans, theta, running, device: device.clone() })
    }

    /// Parameters and running statistics by torchvision's names, copied to the CPU.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (name, var) in &self.theta {
            all.insert(name.clone(), var.as_tensor().to_device(&Device::Cpu)?.copy()?);
        }
        for (name, (mean, variance)) in &self.running {
            all.insert(format!("{name}.running_mean"), mean.to_device(&Device::Cpu)?.copy()?);
            all.insert(format!("{name}.running_var"), variance.to_device(&Device::Cpu)?.copy()?);
        }
        Ok(all)
    }

    /// A deep copy that trains on its own.
    pub fn copy(&self) -> Result<Self> {
        Self::from_tensors(&self.arch, &self.tensors()?, &self.device)
    }

    /// A deep copy that cannot be trained.
    pub fn teacher(&self) -> Result<Teacher> {
        Ok(Teacher(self.copy()?))
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
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The number of parameters: the length of theta.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.last().map_or(0, |span| span.range.end)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A tracked forward pass over normalised images [B, C, H, W]. Running statistics do not move until `commit`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Output> {
        let (values, stats) = self.values(x, pass, true)?;
        let missing = || Error::invalid("the network has no layers");
        let logits = values.last().cloned().ok_or_else(missing)?;
        let features = values.get(self.layers.features).cloned().ok_or_else(missing)?;
        Ok(Output { logits, features, stats })
    }

    fn values(&self, x: &Tensor, pass: &Pass, tracked: bool) -> Result<(Vec<Tensor>, BatchStats)> {
        let parameter = |name: &str| -> Result<Tensor> {
            let var = self.theta.get(name).ok_or_else(|| Error::invalid(format!("no parameter `{name}`")))?;
            Ok(if tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
        };
        let running = |name: &str| -> Result<(Tensor, Tensor)> {
            self.running.get(name).cloned().ok_or_else(|| Error::invalid(format!("no statistics `{name}`")))
        };
        let norm = |name: &str| {
            let frozen = pass.frozen.iter().any(|prefix| name.starts_with(prefix.as_str()));
            if frozen { Norm::Running } else { pass.norm }
        };
        reference::forward(&self.layers, &parameter, &running, &norm, x)
    }

    /// Moves the running statistics towards those of that pass.
    pub fn commit(&mut self, output: &Output) -> Result<()> {
        for (name, (mean, variance)) in &output.stats {
            if let Some((old_mean, old_variance)) = self.running.get_mut(name) {
                *old_mean = ((&*old_mean * (1.0 - MOMENTUM))? + (mean * MOMENTUM)?)?;
                *old_variance = ((&*old_variance * (1.0 - MOMENTUM))? + (variance * MOMENTUM)?)?;
            }
        }
        Ok(())
    }

    /// A tracked training pass whose statistics count.
    pub fn train(&mut self, x: &Tensor) -> Result<Output> {
        let output = self.forward(x, &Pass::train())?;
        self.commit(&output)?;
        Ok(output)
    }

    /// Evaluation mode, untracked: [B, classes].
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let (values, _) = self.values(x, &Pass::eval(), false)?;
        values.last().cloned().ok_or_else(|| Error::invalid("the network has no layers"))
    }

    /// Named layers in evaluation mode, untracked: `stem`, `layer1`, ..., `features`.
    pub fn taps(&self, x: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        let (values, _) = self.values(x, &Pass::eval(), false)?;
        let mut taps: BTreeMap<String, Tensor> = BTreeMap::new();
        let named = self.layers.taps.iter().map(|(name, node)| (name.as_str(), *node));
        for (name, node) in named.chain([("features", self.layers.features), ("logits", values.len() - 1)]) {
            if let Some(value) = values.get(node) {
                taps.insert(name.to_owned(), value.clone());
            }
        }
        Ok(taps)
    }

    /// A copy of all parameters.
    pub fn theta(&self) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.len());
        for span in &self.spans {
            if let Some(var) = self.theta.get(&span.name) {
                all.extend(var.as_tensor().flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(all)
    }

    pub fn set_theta(&mut self, theta: &[f32]) -> Result<()> {
        for span in &self.spans {
            let (Some(var), Some(values)) = (self.theta.get(&span.name), theta.get(span.range.clone())) else {
                return Err(Error::invalid(format!("theta has {} values, the network {}", theta.len(), self.len())));
            };
            var.set(&Tensor::from_slice(values, span.shape.as_slice(), &self.device)?)?;
        }
        Ok(())
    }

    /// Running statistics by name, for checkpoints.
    pub fn set_running(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, (mean, variance)) in &mut self.running {
            for (slot, buffer) in [(mean, "running_mean"), (variance, "running_var")] {
                let name = format!("{name}.{buffer}");
                let value = tensors.get(&name).ok_or_else(|| Error::invalid(format!("no statistics `{name}`")))?;
                *slot = value.to_device(&self.device)?;
            }
        }
        Ok(())
    }

    /// Ones where a parameter's name begins so, zeros elsewhere.
    #[must_use]
    pub fn only(&self, prefixes: &[&str]) -> Vec<f32> {
        let mut mask = vec![0.0; self.len()];
        for span in &self.spans {
            if prefixes.iter().any(|prefix| span.name.starts_with(prefix)) {
                mask[span.range.clone()].fill(1.0);
            }
        }
        mask
    }

    /// The gradient of a loss, as one vector. A loss that reaches no parameter is an error.
    pub fn gradient(&self, loss: &Tensor) -> Result<Vec<f32>> {
        let grads = loss.backward()?;
        let mut all = vec![0.0; self.len()];
        let mut reached = false;
        for span in &self.spans {
            let Some(grad) = self.theta.get(&span.name).and_then(|var| grads.get(var.as_tensor())) else { continue };
            reached = true;
            all[span.range.clone()].copy_from_slice(&grad.flatten_all()?.to_vec1::<f32>()?);
        }
        if reached { Ok(all) } else { Err(Error::NoGradient("loss".to_owned())) }
    }
}

/// A frozen copy: its type has no way to train.
#[derive(Debug)]
pub struct Teacher(Model);

impl Teacher {
    /// Evaluation mode, untracked.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.0.logits(x)
    }

    /// For tests: that it did not change.
    pub fn theta(&self) -> Result<Vec<f32>> {
        self.0.theta()
    }
}
