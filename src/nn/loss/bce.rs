//! Binary cross-entropy, the loss of adversaries.

use candle_core::Tensor;

use super::{composed, fused};
use crate::error::{Error, Result};

/// Mean of -(t log p + (1 - t) log(1 - p)) over probabilities p of any shape, for one target t in [0, 1]. As in PyTorch
/// logarithms are not below -100 and p (1 - p), which the gradient is divided by, not below 1e-12.
pub fn binary_cross_entropy(probability: &Tensor, target: f64) -> Result<Tensor> {
    if probability.elem_count() == 0 || !(0.0..=1.0).contains(&target) {
        let shape = probability.dims();
        return Err(Error::invalid(format!("no binary cross-entropy of {shape:?} probabilities with target {target}")));
    }
    if !probability.device().is_cpu() {
        return composed::binary_cross_entropy(probability, target);
    }
    fused::one("binary_cross_entropy", probability, move |p| {
        let share = 1.0 / p.len() as f64;
        // clamp, unlike max, leaves what is no number
        let log = |x: f64| x.ln().clamp(-100.0, 0.0);
        let value: f64 = p.iter().map(|p| -target * log(*p) - (1.0 - target) * log(1.0 - p)).sum();
        let slopes = p.iter().map(|p| share * (p - target) / (p * (1.0 - p)).max(1e-12)).collect();
        (value * share, slopes)
    })
}
