//! Losses: means over the batch, natural logarithms.

use candle_core::Tensor;

use crate::error::Result;

/// Mean cross-entropy of logits `[B, C]` with labels `[B]` (u32).
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::loss::cross_entropy(logits, labels)?)
}
