//! Weights by torchvision's names: in, out, and fresh again.

use std::collections::{BTreeMap, BTreeSet};
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
fn fresh(channels: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let (mean, variance) = (Tensor::zeros(channels, dtype, device)?, Tensor::ones(channels, dtype, device)?);
    Ok(Tensor::stack(&[mean, variance], 0)?)
}

pub(super) fn fresh_stats(program: &Program, device: &Device) -> Result<Vec<Tensor>> {
    let sets = program.norms.iter().flat_map(|norm| std::iter::repeat_n(norm, program.branches));
    sets.map(|norm| fresh(norm.channels, DType::F32, device)).collect()
}

const BUFFERS: [&str; 2] = ["running_mean", "running_var"];

/// Names of the statistics, a pair for each batch norm and branch.
fn buffers(program: &Program) -> Vec<(String, usize)> {
    let on =
        |norm: &crate::kernels::Norm| (0..program.branches).map(|b| (norm.on(b), norm.channels)).collect::<Vec<_>>();
    program.norms.iter().flat_map(on).collect()
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
        let mut sets = Vec::new();
        for (name, channels) in buffers(&program) {
            let mut set = Vec::new();
            for buffer in BUFFERS {
                set.extend(values(format!("{name}.{buffer}"), &[channels])?);
            }
            sets.push((set, channels));
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
        let stats = sets
            .into_iter()
            .map(|(set, channels)| Ok(Tensor::from_vec(set, (2, channels), device)?))
            .collect::<Result<_>>()?;
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
        for ((name, _), set) in buffers(&self.program).into_iter().zip(&self.stats) {
            for (row, buffer) in BUFFERS.into_iter().enumerate() {
                named.insert(format!("{name}.{buffer}"), set.to_device(&Device::Cpu)?.get(row)?.force_contiguous()?);
            }
        }
        Ok(named)
    }

    /// The first statistic of those that is no finite number, by its name.
    pub fn odd_statistic(&self, Running(stats): &Running) -> Result<Option<(String, f64)>> {
        let odd = |values: &Tensor| -> Result<Option<f32>> {
            let values = values.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            Ok(values.into_iter().find(|value| !value.is_finite()))
        };
        let flat = stats.iter().map(|set| Ok(set.flatten_all()?)).collect::<Result<Vec<_>>>()?;
        if flat.is_empty() || odd(&Tensor::cat(&flat, 0)?)?.is_none() {
            return Ok(None);
        }
        let mut found = BTreeMap::new();
        for ((name, _), set) in buffers(&self.program).into_iter().zip(stats) {
            for (row, buffer) in BUFFERS.into_iter().enumerate() {
                let value = odd(&set.get(row)?)?;
                found.extend(value.map(|value| (format!("{name}.{buffer}"), f64::from(value))));
            }
        }
        Ok(found.pop_first())
    }

    /// Running statistics by name, for checkpoints; other names are passed over.
    pub fn set_running(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for ((name, channels), set) in buffers(&self.program).into_iter().zip(&mut self.stats) {
            let mut rows = Vec::new();
            for buffer in BUFFERS {
                let name = format!("{name}.{buffer}");
                let value = tensors.get(&name).ok_or_else(|| Error::invalid(format!("no statistics `{name}`")))?;
                if value.dims() != [channels] {
                    return Err(Error::invalid(format!(
                        "`{name}` has the shape {:?}, expected [{channels}]",
                        value.dims()
                    )));
                }
                rows.push(value.to_device(&self.device)?.to_dtype(self.dtype)?);
            }
            *set = Tensor::stack(&rows, 0)?;
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
        for ((name, channels), set) in buffers(&self.program).into_iter().zip(&mut self.stats) {
            if begins(&format!("{name}.{}", BUFFERS[0]), prefixes) {
                *set = fresh(channels, self.dtype, &self.device)?;
            }
        }
        Ok(())
    }
}
