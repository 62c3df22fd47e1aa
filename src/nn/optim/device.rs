//! The same rules on tensors, for parameters that live on an accelerator: one launch where the device has a kernel for it,
//! else a few operations of candle.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use super::{Rule, count};
use crate::error::{Error, Result};
use crate::kernels::{self, Numbers};

/// A rule at work on one vector on any device.
#[derive(Clone, Debug)]
pub struct DeviceStepper {
    rule: Rule,
    first: Tensor,
    /// Adam's; of length 0 for SGD.
    second: Tensor,
    steps: u64,
    /// Not 0 where a weight moves.
    mask: Option<Tensor>,
}

impl DeviceStepper {
    /// For theta `[N]` on that device; a weight moves where the mask `[N]` is not 0.
    pub fn new(rule: Rule, length: usize, mask: Option<&Tensor>, device: &Device) -> Result<Self> {
        let second = if matches!(rule, Rule::Sgd { .. }) { 0 } else { length };
        let zeros = |length: usize| Tensor::zeros(length, DType::F32, device);
        let mask = mask.map(|mask| mask.to_device(device)?.to_dtype(DType::F32)?.contiguous()).transpose()?;
        Ok(Self { rule, first: zeros(length)?, second: zeros(second)?, steps: 0, mask })
    }

    /// Moves theta against the gradient, in place where the device can; `momentum` as in `Stepper::step_with`.
    pub fn step_in_place(&mut self, theta: &Var, gradient: &Tensor, rate: f64, momentum: Option<f64>) -> Result<()> {
        let numbers = self.rule.at(self.steps + 1, rate, momentum);
        let state = [&self.first, &self.second];
        if kernels::step(numbers, theta.as_tensor(), state, gradient, self.mask.as_ref())? {
            self.steps += 1;
            return Ok(());
        }
        let moved = self.step(&theta.as_detached_tensor(), gradient, rate, momentum)?;
        Ok(theta.set(&moved)?)
    }

    /// Theta after one step against the gradient, by candle's operations.
    pub fn step(&mut self, theta: &Tensor, gradient: &Tensor, rate: f64, momentum: Option<f64>) -> Result<Tensor> {
        self.steps += 1;
        let (moved, first, second) = match self.rule.at(self.steps, rate, momentum) {
            Numbers::Sgd { rate, momentum, weight_decay, nesterov } => {
                let g = (gradient + (theta * weight_decay)?)?;
                let first = ((&self.first * momentum)? + &g)?;
                let step = if nesterov { (g + (&first * momentum)?)? } else { first.clone() };
                ((theta - (step * rate)?)?, first, self.second.clone())
            }
            Numbers::Adam { size, keep, betas: [one, two], root, eps, decay } => {
                let g = (gradient + (theta * decay)?)?;
                let first = ((&self.first * one)? + (&g * (1.0 - one))?)?;
                let second = ((&self.second * two)? + (g.sqr()? * (1.0 - two))?)?;
                let scale = ((second.sqrt()? / root)? + eps)?;
                (((theta * keep)? - ((&first * size)? / scale)?)?, first, second)
            }
        };
        let Some(mask) = &self.mask else {
            (self.first, self.second) = (first, second);
            return Ok(moved);
        };
        let open = mask.ne(&mask.zeros_like()?)?;
        self.first = open.where_cond(&first, &self.first)?;
        if second.elem_count() > 0 {
            self.second = open.where_cond(&second, &self.second)?;
        }
        Ok(open.where_cond(&moved, theta)?)
    }

    /// What a checkpoint must keep: the same as that of `Stepper`.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([
            ("first".to_owned(), self.first.to_device(&Device::Cpu)?),
            ("steps".to_owned(), Tensor::from_slice(&[self.steps as i64], 1, &Device::Cpu)?),
        ]);
        if self.second.elem_count() > 0 {
            state.insert("second".to_owned(), self.second.to_device(&Device::Cpu)?);
        }
        Ok(state)
    }

    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let get = |name: &str, like: &Tensor| -> Result<Tensor> {
            let lacks = || Error::invalid(format!("the optimizer's state lacks `{name}`"));
            let tensor = state.get(name).ok_or_else(lacks)?.to_device(like.device())?;
            if tensor.dims() == like.dims() {
                return Ok(tensor);
            }
            Err(Error::invalid("the optimizer's state is of another network"))
        };
        let first = get("first", &self.first)?;
        let second = if self.second.elem_count() > 0 { get("second", &self.second)? } else { self.second.clone() };
        let lacks = || Error::invalid("the optimizer's state lacks `steps`");
        (self.first, self.second, self.steps) = (first, second, count(state.get("steps").ok_or_else(lacks)?)?);
        Ok(())
    }
}
