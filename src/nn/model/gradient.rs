//! Gradients by whole models: one vector each, as long as theta.

use candle_core::{DType, Tensor};

use super::Model;
use crate::error::{Error, Result};

impl Model {
    /// The gradient of a loss, as one vector. A loss that reaches no parameter is an error.
    pub fn gradient(&self, loss: &Tensor) -> Result<Vec<f32>> {
        let [gradient] = gradients(loss, [self])?;
        Ok(gradient.to_dtype(DType::F32)?.to_vec1()?)
    }
}

/// One backward; for each model the gradient of the loss as one vector as long as its theta: zeros where the loss does
/// not reach. An error where it reaches none of them.
pub fn gradients<const N: usize>(loss: &Tensor, models: [&Model; N]) -> Result<[Tensor; N]> {
    gradients_of(loss, &models)?.try_into().map_err(|_| Error::invalid("a model has no gradient"))
}

/// `gradients` of any number of models.
pub fn gradients_of(loss: &Tensor, models: &[&Model]) -> Result<Vec<Tensor>> {
    let store = loss.backward()?;
    let mut reached = false;
    let mut all = Vec::with_capacity(models.len());
    for model in models {
        let mut parts = Vec::with_capacity(model.pieces.len());
        for piece in &model.pieces {
            match store.get(piece.as_tensor()) {
                Some(gradient) => {
                    reached = true;
                    parts.push(gradient.flatten_all()?);
                }
                None => parts.push(piece.zeros_like()?),
            }
        }
        all.push(if let [one] = parts.as_slice() { one.clone() } else { Tensor::cat(&parts, 0)? });
    }
    if reached { Ok(all) } else { Err(Error::NoGradient("loss".to_owned())) }
}
