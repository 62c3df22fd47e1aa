//! The same losses, composed of candle's operations: what runs where no hand-written op does, and the twin that the
//! ops are tested against. Shapes are checked by the callers. The largest logit is subtracted as a constant, since
//! candle's gradient of a maximum is not PyTorch's.

use candle_core::{D, DType, Tensor};

use super::arpl::{self, Arpl};
use crate::error::Result;

pub(super) fn log_softmax(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let shifted = (logits.broadcast_sub(&top)? / temperature)?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?;
    Ok(shifted.broadcast_sub(&sum.log()?)?)
}

/// Rows of log probabilities at the labels.
fn pick(log: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(log.gather(&labels.to_dtype(DType::U32)?.unsqueeze(1)?.contiguous()?, 1)?.squeeze(1)?)
}

pub fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    let log = log_softmax(logits, 1.0)?;
    let hit = (pick(&log, labels)?.mean_all()? * (smoothing - 1.0))?;
    Ok((hit - (log.mean_all()? * smoothing)?)?)
}

pub fn distill(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (q, p) = (log_softmax(student, temperature)?, log_softmax(teacher, temperature)?);
    Ok((p.exp()? * (p - q)?)?.sum(1)?.mean(0)?)
}

pub fn kl_to(target: &Tensor, student: &Tensor, temperature: f64) -> Result<Tensor> {
    let target = target.detach().to_dtype(student.dtype())?;
    let log = target.maximum(f64::from(f32::MIN_POSITIVE))?.log()?;
    Ok((&target * (log - log_softmax(student, temperature)?)?)?.sum(1)?.mean(0)?)
}

pub fn binary_cross_entropy(probability: &Tensor, target: f64) -> Result<Tensor> {
    let log = |p: &Tensor| -> Result<Tensor> { Ok(p.maximum(f64::from(f32::MIN_POSITIVE))?.log()?.mean_all()?) };
    let (hit, miss) = (log(probability)?, log(&probability.affine(-1.0, 1.0)?)?);
    Ok(((hit * -target)? - (miss * (1.0 - target))?)?)
}

fn units(rows: &Tensor) -> Result<Tensor> {
    // The guard keeps the slope finite where a row is zero.
    let length = (rows.sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?;
    Ok(rows.broadcast_div(&length)?)
}

/// Of every row with every row.
pub(super) fn all_cosines(rows: &Tensor) -> Result<Tensor> {
    let units = units(rows)?;
    Ok(units.matmul(&units.t()?)?)
}

/// NT-Xent, the logit of row i's positive pair times `signs[i]`.
pub fn contrast(features: &Tensor, temperature: f64, signs: &[f64]) -> Result<Tensor> {
    contrast_of(&all_cosines(features)?, temperature, signs)
}

/// The same of the cosines of all views.
pub fn contrast_of(cosines: &Tensor, temperature: f64, signs: &[f64]) -> Result<Tensor> {
    let (rows, device) = (signs.len(), cosines.device());
    let cell = |i: usize, k: usize| if k == (i + rows / 2) % rows { signs[i] } else { 1.0 };
    let grid = |cell: &dyn Fn(usize, usize) -> f64| -> Result<Tensor> {
        let all: Vec<f64> = (0..rows * rows).map(|at| cell(at / rows, at % rows)).collect();
        Ok(Tensor::from_vec(all, (rows, rows), device)?.to_dtype(cosines.dtype())?)
    };
    let logits = ((cosines * grid(&cell)?)? / temperature)?;
    let diagonal = grid(&|i, k| if i == k { -1e9 } else { 0.0 })?;
    let pairs: Vec<u32> = (0..rows).map(|i| ((i + rows / 2) % rows) as u32).collect();
    cross_entropy(&(logits + diagonal)?, &Tensor::from_vec(pairs, rows, device)?, 0.0)
}

/// Sum of shares x cosine, row by row.
pub fn cosines(projection: &Tensor, target: &Tensor, shares: &[f64]) -> Result<Tensor> {
    let target = target.detach().to_dtype(projection.dtype())?;
    let cosine = (units(projection)? * units(&target)?)?.sum(1)?;
    let shares = Tensor::from_slice(shares, shares.len(), projection.device())?.to_dtype(projection.dtype())?;
    Ok((cosine * shares)?.sum_all()?)
}

/// Mean-square distances [B, C].
pub(super) fn distances(features: &Tensor, points: &Tensor) -> Result<Tensor> {
    Ok(features.unsqueeze(1)?.broadcast_sub(&points.unsqueeze(0)?)?.sqr()?.mean(2)?)
}

pub fn arpl(features: &Tensor, points: &Tensor, radius: &Tensor, labels: &Tensor, knobs: Arpl) -> Result<Tensor> {
    let entropy = cross_entropy(&(arpl::logits(features, points)? / knobs.temperature)?, labels, 0.0)?;
    let own = pick(&distances(features, points)?, labels)?;
    let hinge = (own.broadcast_sub(&radius.flatten_all()?)? + knobs.margin)?;
    let open = hinge.gt(&hinge.zeros_like()?)?.to_dtype(hinge.dtype())?;
    Ok((entropy + ((hinge * open)?.mean_all()? * knobs.weight)?)?)
}

pub fn arpl_fake(features: &Tensor, points: &Tensor, released: bool) -> Result<Tensor> {
    let logits = if released { distances(features, points)? } else { arpl::logits(features, points)? };
    let log = log_softmax(&logits, 1.0)?;
    Ok((log.exp()? * log)?.sum(1)?.mean(0)?.exp()?)
}
