//! A rule at work on a model, wherever the model lives.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{DeviceStepper, Rule, Stepper};
use crate::error::Result;
use crate::nn::model::{Gradient, Model};

#[derive(Debug)]
pub enum Optimizer {
    /// In main memory.
    Host(Stepper),
    /// On the model's device.
    Device(DeviceStepper),
}

impl Optimizer {
    /// For a model; a weight moves where the mask is not 0.
    pub fn new(rule: Rule, model: &Model, mask: Option<Vec<f32>>) -> Result<Self> {
        if model.device().is_cpu() {
            return Ok(Optimizer::Host(Stepper::new(rule, model.len(), mask)));
        }
        let mask = mask.map(|mask| Tensor::from_slice(&mask, mask.len(), model.device())).transpose()?;
        Ok(Optimizer::Device(DeviceStepper::new(rule, model.len(), mask.as_ref(), model.device())?))
    }

    /// One step against the gradient; `momentum` as in `Stepper::step_with`.
    pub fn step(&mut self, model: &mut Model, gradient: &Gradient, rate: f64, momentum: Option<f64>) -> Result<()> {
        match self {
            Optimizer::Host(stepper) => {
                let gradient = gradient.host()?;
                model.update(|theta| stepper.step_with(theta, &gradient, rate, momentum))
            }
            Optimizer::Device(stepper) => {
                let gradient = gradient.on(model.device())?;
                model.update_in_place(|theta| stepper.step_in_place(theta, &gradient, rate, momentum))
            }
        }
    }

    /// What a checkpoint must keep, the same wherever the model lives.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Optimizer::Host(stepper) => stepper.state(),
            Optimizer::Device(stepper) => stepper.state(),
        }
    }

    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        match self {
            Optimizer::Host(stepper) => stepper.load_state(state),
            Optimizer::Device(stepper) => stepper.load_state(state),
        }
    }
}
