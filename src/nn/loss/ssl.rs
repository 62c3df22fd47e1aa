//! Self-supervised losses on projections. NT-Xent: Chen et al., A simple framework for contrastive learning of visual
//! representations (SimCLR), ICML 2020, <https://arxiv.org/abs/2002.05709>. The other two use the same cosines to
//! push apart what is to be forgotten.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{composed, fused, matrix, warm};
use crate::error::{Error, Result};
use crate::kernels::{self, Rows};

/// Shortest length that a vector is divided by.
const EPS: f64 = 1e-12;

/// Mean over all rows of -log(exp(s_ip / t) / sum over k != i of exp(s_ik / t)), s the cosine. Features [2B, d]: rows
/// i and i + B are two views of one image.
pub fn nt_xent(features: &Tensor, temperature: f64) -> Result<Tensor> {
    let (rows, _) = matrix(features, "features")?;
    contrast(features, temperature, vec![1.0; rows])
}

/// NT-Xent in which the views of an image to forget are pushed apart: the logit of its positive pair is negated, in the
/// numerator and in the denominator. `forget` has one entry an image, B in all.
pub fn nt_xent_original(features: &Tensor, temperature: f64, forget: &[bool]) -> Result<Tensor> {
    let (rows, _) = matrix(features, "features")?;
    if rows != 2 * forget.len() {
        return Err(Error::invalid(format!("{rows} rows of features are not two views of {} images", forget.len())));
    }
    let signs = forget.iter().chain(forget).map(|&gone| if gone { -1.0 } else { 1.0 });
    contrast(features, temperature, signs.collect())
}

fn contrast(features: &Tensor, temperature: f64, signs: Vec<f64>) -> Result<Tensor> {
    let (rows, width) = matrix(features, "features")?;
    warm(temperature)?;
    if rows % 2 == 1 {
        return Err(Error::invalid(format!("{rows} rows of features are no pairs of views")));
    }
    if !features.device().is_cpu() {
        let cosines = composed::all_cosines(features)?;
        return match kernels::loss(&cosines, Rows::Contrast { signs: &signs, temperature })? {
            Some(told) => fused::told("nt_xent", &[&cosines], told),
            None => composed::contrast_of(&cosines, temperature, &signs),
        };
    }
    fused::one("nt_xent", features, move |z| {
        let lengths: Vec<f64> = z.chunks_exact(width).map(|row| dot(row, row).sqrt().max(EPS)).collect();
        let units: Vec<f64> = z.iter().enumerate().map(|(i, x)| x / lengths[i / width]).collect();
        let unit = |i: usize| &units[i * width..(i + 1) * width];
        let share = 1.0 / (temperature * rows as f64);
        // Row i: the loss of row i and its slopes by the cosines s_ik.
        let (losses, slopes): (Vec<f64>, Vec<Vec<f64>>) = (0..rows)
            .into_par_iter()
            .map(|i| {
                let pair = (i + rows / 2) % rows;
                let sign = |k: usize| if k == pair { signs[i] } else { 1.0 };
                let mut logits: Vec<f64> = (0..rows).map(|k| sign(k) * dot(unit(i), unit(k)) / temperature).collect();
                logits[i] = f64::NEG_INFINITY;
                let top = logits.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(x));
                let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
                let loss = top + sum.ln() - logits[pair];
                let hit = |k: usize| if k == pair { 1.0 } else { 0.0 };
                let slope = |(k, x): (usize, &f64)| sign(k) * ((x - top).exp() / sum - hit(k)) * share;
                (loss, logits.iter().enumerate().map(slope).collect())
            })
            .unzip();
        let gradient = (0..rows).into_par_iter().flat_map_iter(|i| {
            let mut pull = vec![0.0; width];
            for (k, other) in slopes.iter().enumerate() {
                let weight = slopes[i][k] + other[i];
                pull.iter_mut().zip(unit(k)).for_each(|(pull, u)| *pull += weight * u);
            }
            let along = dot(&pull, unit(i));
            let length = lengths[i];
            pull.into_iter().zip(unit(i)).map(move |(pull, u)| (pull - along * u) / length).collect::<Vec<_>>()
        });
        (losses.iter().sum::<f64>() / rows as f64, gradient.collect())
    })
}

/// (1 - w) mean(y s) + w mean((y - 1) s) with s the cosine of projection and target [B, K], y = 1 on images to forget
/// and w = 1 / (1 + exp(1 - 2 n_forget / B)): away from the targets of what is forgotten, towards those of the rest.
/// Targets are constants.
pub fn simple_ssl(projection: &Tensor, target: &Tensor, forget: &[bool]) -> Result<Tensor> {
    let (rows, width) = matrix(projection, "the projections")?;
    if target.dims() != projection.dims() || forget.len() != rows {
        return Err(Error::invalid(format!(
            "projections {:?}, targets {:?} and {} forget marks do not fit",
            projection.dims(),
            target.dims(),
            forget.len()
        )));
    }
    let weight = simple_weight(forget);
    let shares: Vec<f64> = forget.iter().map(|&gone| if gone { 1.0 - weight } else { -weight } / rows as f64).collect();
    if !projection.device().is_cpu() {
        return composed::cosines(projection, target, &shares);
    }
    let target = target.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    fused::one("simple_ssl", projection, move |x| {
        let mut gradient = vec![0.0; x.len()];
        let mut sum = 0.0;
        let rows = x.chunks_exact(width).zip(target.chunks_exact(width)).zip(gradient.chunks_exact_mut(width));
        for (((p, t), slope), share) in rows.zip(&shares) {
            let (length, other) = (dot(p, p).sqrt().max(EPS), dot(t, t).sqrt().max(EPS));
            let cosine = dot(p, t) / (length * other);
            sum += share * cosine;
            for ((slope, p), t) in slope.iter_mut().zip(p).zip(t) {
                *slope = share * (t / other - cosine * p / length) / length;
            }
        }
        (sum, gradient)
    })
}

/// w of `simple_ssl`.
#[must_use]
pub fn simple_weight(forget: &[bool]) -> f64 {
    let gone = forget.iter().filter(|&&gone| gone).count() as f64;
    1.0 / (1.0 + (1.0 - 2.0 * gone / forget.len().max(1) as f64).exp())
}

/// In eight sums side by side, which vector instructions can keep apart.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (whole, other) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = whole.remainder().iter().zip(other.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; LANES];
    for (a, b) in whole.zip(other) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}
