//! Weights by torchvision's names: in, out, and fresh again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::mask::begins;
use super::{Model, Running};
use crate::error::{Error, Result, listed};
use crate::kernels::Program;
use crate::nn::arch::Arch;
use crate::nn::init;
use crate::rng::Rng;

/// Running mean 0, variance 1.
pub(super) fn fresh_stats(program: &Program) -> Vec<f32> {
    buffers(program).iter().flat_map(|(name, range)| vec![fresh(name); range.len()]).collect()
}

fn fresh(buffer: &str) -> f32 {
    if buffer.ends_with("var") { 1.0 } else { 0.0 }
}

/// Names of the statistics, and where they lie, in that order.
fn buffers(program: &Program) -> Vec<(String, Range<usize>)> {
    let both = |norm: usize, branch: usize| {
        let (name, range) = (program.norms[norm].on(branch), program.statistics(norm, branch));
        let middle = range.start + range.len() / 2;
        [(format!("{name}.running_mean"), range.start..middle), (format!("{name}.running_var"), middle..range.end)]
    };
    let norms = 0..program.norms.len();
    (0..program.branches).flat_map(|branch| norms.clone().flat_map(move |norm| both(norm, branch))).collect()
}

impl Model {
    /// From named tensors in PyTorch's layout: complete, or an error that names what is missing, left over or of
    /// another shape. `num_batches_tracked` is passed over.
    pub fn from_tensors(arch: &Arch, tensors: &BTreeMap<String, Tensor>, device: &Device) -> Result<Self> {
        let program = Arc::new(arch.program()?);
        let mut wrong = Vec::new();
        let mut used = BTreeSet::new();
        let mut values = |name: String, shape: &[usize]| -> Result<Vec<f32>> {
            let Some(tensor) = tensors.get(&name) else {
                wrong.push(format!("the checkpoint lacks `{name}`"));
                return Ok(Vec::new());
            };
            if tensor.dims() != shape {
                wrong.push(format!("`{name}` has the shape {:?}, expected {shape:?}", tensor.dims()));
            }
            used.insert(name);
            Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
        };
        // what the program asks for may be more than the tensors hold
        let mut theta = Vec::new();
        for parameter in &program.parameters {
            theta.extend(values(parameter.name.clone(), &parameter.shape)?);
        }
        let mut stats = Vec::new();
        for (name, range) in buffers(&program) {
            stats.extend(values(name, &[range.len()])?);
        }
        let extra: Vec<&String> =
            tensors.keys().filter(|name| !used.contains(*name) && !name.ends_with("num_batches_tracked")).collect();
        if !extra.is_empty() {
            let more = extra.len().saturating_sub(5);
            let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
            let few = &extra[..extra.len() - more];
            wrong.push(format!("the checkpoint has {}{tail}, which belong to no layer", listed(few, "and")));
        }
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(5);
            wrong.truncate(5);
            let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
            return Err(Error::invalid(format!("the weights do not fit `{}`: {}{tail}", arch.name, wrong.join("; "))));
        }
        Self::assemble(arch, program, theta, stats, device)
    }

    /// All weights and statistics by torchvision's names, in PyTorch's layout, on the CPU.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let theta = self.theta_tensor()?.to_device(&Device::Cpu)?;
        let mut named = BTreeMap::new();
        for span in self.spans.iter() {
            let part = theta.narrow(0, span.range.start, span.range.len())?.force_contiguous()?;
            named.insert(span.name.clone(), part.reshape(span.shape.as_slice())?);
        }
        let stats = self.stats.to_device(&Device::Cpu)?;
        for (name, range) in buffers(&self.program) {
            named.insert(name, stats.narrow(0, range.start, range.len())?.force_contiguous()?);
        }
        Ok(named)
    }

    /// The first statistic of those that is no finite number, by its name.
    pub fn odd_statistic(&self, Running(stats): &Running) -> Result<Option<(String, f64)>> {
        let stats = stats.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if stats.iter().all(|value| value.is_finite()) {
            return Ok(None);
        }
        let odd = |(name, range): (String, Range<usize>)| {
            let value = stats[range].iter().find(|value| !value.is_finite())?;
            Some((name, f64::from(*value)))
        };
        Ok(buffers(&self.program).into_iter().filter_map(odd).min_by(|a, b| a.0.cmp(&b.0)))
    }

    /// Running statistics by name, for checkpoints; other names are passed over.
    pub fn set_running(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut parts = Vec::new();
        for (name, range) in buffers(&self.program) {
            let value = tensors.get(&name).ok_or_else(|| Error::invalid(format!("no statistics `{name}`")))?;
            if value.dims() != [range.len()] {
                let (found, wanted) = (value.dims(), range.len());
                return Err(Error::invalid(format!("`{name}` has the shape {found:?}, expected [{wanted}]")));
            }
            parts.push(value.to_device(&self.device)?.to_dtype(self.dtype)?);
        }
        if !parts.is_empty() {
            self.stats = Tensor::cat(&parts, 0)?;
        }
        Ok(())
    }

    /// Fresh values, statistics too, for all that has a name beginning with one of the prefixes.
    pub fn reinit(&mut self, prefixes: &[&str], rng: &Rng) -> Result<()> {
        self.known(prefixes)?;
        let mut parts = Vec::new();
        let old = self.theta_tensor()?;
        for parameter in &self.program.parameters {
            parts.push(if begins(&parameter.name, prefixes) {
                let fresh = init::draw(parameter, rng);
                Tensor::from_vec(fresh, parameter.range.len(), &self.device)?.to_dtype(self.dtype)?
            } else {
                old.narrow(0, parameter.range.start, parameter.range.len())?
            });
        }
        self.set_theta_tensor(&Tensor::cat(&parts, 0)?)?;
        let mut stats = self.stats.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        for (name, range) in buffers(&self.program).into_iter().filter(|(name, _)| begins(name, prefixes)) {
            stats[range].fill(f64::from(fresh(&name)));
        }
        let stats = Tensor::from_vec(stats, self.stats.elem_count(), &Device::Cpu)?;
        self.set_stats(&stats)
    }
}
