//! Penalties on the parameters themselves.

use candle_core::Tensor;

use super::Model;
use crate::error::Result;

impl Model {
    /// The sum of |w| over all parameters, tracked; its slope at 0 is 0.
    pub fn l1(&self) -> Result<Tensor> {
        let mut sum = Tensor::zeros((), self.dtype, &self.device)?;
        for piece in &self.pieces {
            // candle's slope of an absolute value is 1 at 0
            let sign = piece.as_detached_tensor().sign()?;
            sum = (sum + (piece.as_tensor() * sign)?.sum_all()?)?;
        }
        Ok(sum)
    }
}
