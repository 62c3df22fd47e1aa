//! What was seen of the steps whose loss and gradient nobody has looked at yet. On an accelerator a look waits for the device,
//! so steps are taken first and looked at together; a step that went wrong is found some steps later, and named as if at once.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::Result;
use crate::nn::model::{Measure, Running};

/// Rounds between two looks on a device. Whoever is asked to stop waits for so many at most.
pub(super) const ROUNDS: usize = 16;

/// One step of some models.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) round: usize,
    pub(super) rate: f64,
    pub(super) loss: Tensor,
    /// Where there are several.
    pub(super) terms: Vec<(&'static str, Tensor)>,
    pub(super) whose: Option<&'static str>,
    pub(super) may_rest: bool,
    /// Model by model, the length of the gradient.
    pub(super) lengths: Vec<(usize, Measure)>,
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) steps: Vec<Seen>,
    /// Of all models at the end of each round.
    pub(super) statistics: Vec<(usize, f64, Vec<Running>)>,
    /// By the first model that made the step, the loss that was looked at last.
    pub(super) shown: BTreeMap<usize, f64>,
}

/// A scalar's value. Waits for the device.
pub(super) fn value(scalar: &Tensor) -> Result<f64> {
    Ok(f64::from(scalar.to_scalar::<f32>()?))
}
