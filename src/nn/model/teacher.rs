//! A model that can be asked and nothing else: there is no way to train it, by type.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Model;
use crate::error::Result;

/// A frozen copy of a model, in evaluation mode for ever.
#[derive(Debug)]
pub struct Teacher {
    model: Model,
}

impl Teacher {
    pub(super) fn new(model: Model) -> Self {
        Self { model }
    }

    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.model.logits(x)
    }

    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        self.model.features(x)
    }

    /// See `Model::head`.
    pub fn head(&self) -> Result<Self> {
        Ok(Self { model: self.model.head()? })
    }

    /// See `Model::taps`.
    pub fn taps(&self, x: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        self.model.taps(x)
    }

    /// A copy of its parameters.
    pub fn theta(&self) -> Result<Vec<f32>> {
        self.model.theta()
    }
}
