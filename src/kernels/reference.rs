//! The slow, obvious twin: candle operations with PyTorch's gradients, on any device and float type. Where candle's own
//! gradient differs from PyTorch's (ReLU at 0, padded max-pool), the operation is composed of ones that are right.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};

use super::layer::{Layers, Op};
use crate::error::{Error, Result};

const EPS: f64 = 1e-5;

/// Which statistics the batch-norm layer of that name uses, and whether its running ones move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    Batch,
    Running,
}

/// Mean and unbiased variance of the batch at each layer that used them.
pub type BatchStats = BTreeMap<String, (Tensor, Tensor)>;

/// Values of all nodes.
pub fn forward(
    layers: &Layers,
    parameter: &dyn Fn(&str) -> Result<Tensor>,
    running: &dyn Fn(&str) -> Result<(Tensor, Tensor)>,
    norm: &dyn Fn(&str) -> Norm,
    x: &Tensor,
) -> Result<(Vec<Tensor>, BatchStats)> {
    let mut values: Vec<Tensor> = Vec::with_capacity(layers.nodes.len());
    let mut stats = BatchStats::new();
    for node in &layers.nodes {
        let get = |index: usize| values.get(index).unwrap_or(x);
        let from = get(node.from);
        let value = match &node.op {
            Op::Input => x.clone(),
            Op::Conv { name, stride, padding, .. } => {
                from.conv2d(&parameter(&format!("{name}.weight"))?, *padding, *stride, 1, 1)?
            }
            Op::BatchNorm { name, channels } => {
                let shape = if from.rank() == 4 { vec![1, *channels, 1, 1] } else { vec![1, *channels] };
                let (mean, variance) = match norm(name) {
                    Norm::Running => running(name)?,
                    Norm::Batch => {
                        let (mean, variance) = moments(from, *channels)?;
                        let count = from.elem_count() / channels;
                        if count < 2 {
                            return Err(Error::invalid("batch norm needs more than one value a channel in training"));
                        }
                        let unbiased = (&variance * (count as f64 / (count as f64 - 1.0)))?;
                        stats.insert(name.clone(), (mean.detach(), unbiased.detach()));
                        (mean, variance)
                    }
                };
                let scale = (parameter(&format!("{name}.weight"))? / (variance + EPS)?.sqrt()?)?;
                let centred = from.broadcast_sub(&mean.reshape(shape.as_slice())?)?;
                centred
                    .broadcast_mul(&scale.reshape(shape.as_slice())?)?
                    .broadcast_add(&parameter(&format!("{name}.bias"))?.reshape(shape.as_slice())?)?
            }
            Op::Relu => relu(from)?,
            Op::MaxPool => max_pool(from)?,
            Op::Add { with } => (from + get(*with))?,
            Op::MeanPool => from.mean(D::Minus1)?.mean(D::Minus1)?,
            Op::Flatten => from.flatten_from(1)?,
            Op::Linear { name, .. } => from
                .matmul(&parameter(&format!("{name}.weight"))?.t()?)?
                .broadcast_add(&parameter(&format!("{name}.bias"))?)?,
        };
        values.push(value);
    }
    Ok((values, stats))
}

/// Mean and biased variance a channel.
fn moments(x: &Tensor, channels: usize) -> Result<(Tensor, Tensor)> {
    let rows = if x.rank() == 4 { x.transpose(0, 1)?.contiguous()? } else { x.t()?.contiguous()? };
    let rows = rows.reshape((channels, ()))?;
    let mean = rows.mean_keepdim(1)?;
    let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
    Ok((mean.squeeze(1)?, variance))
}

/// max(x, 0) with gradient 0 at 0.
fn relu(x: &Tensor) -> Result<Tensor> {
    let above = x.gt(&x.zeros_like()?)?.to_dtype(x.dtype())?;
    Ok((x * above)?)
}

/// Window 3, stride 2, padding 1; ties go to the first. A clamped index reads an edge twice, which changes no maximum.
fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let mut best: Option<Tensor> = None;
    for dy in 0..3 {
        let rows = x.index_select(&window(height, dy, x.device())?, 2)?;
        for dx in 0..3 {
            let shifted = rows.index_select(&window(width, dx, x.device())?, 3)?;
            best = Some(match best {
                None => shifted,
                Some(best) => shifted.gt(&best)?.where_cond(&shifted, &best)?,
            });
        }
    }
    best.ok_or_else(|| Error::invalid("an empty pooling window"))
}

fn window(length: usize, offset: usize, device: &Device) -> Result<Tensor> {
    let count = (length + 2 - 3) / 2 + 1;
    let at = |i: usize| (2 * i + offset).saturating_sub(1).min(length - 1) as u32;
    Ok(Tensor::from_iter((0..count).map(at), device)?)
}
