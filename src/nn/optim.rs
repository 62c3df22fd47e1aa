//! Optimisers with PyTorch's semantics, on theta as one vector. The mask multiplies the step, after weight decay and
//! momentum, so that masked-out weights keep every bit.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::settings::{Entry, Field, POSITIVE, SHARE, Type};

const SGD: Entry = Entry {
    name: "sgd",
    about: "stochastic gradient descent with momentum",
    paper: "",
    version: 1,
    fields: &[
        Field::or("momentum", SHARE, "0.9", "share of the last step in the next, without dampening"),
        Field::or("weight_decay", POSITIVE, "0.0005", "times the weight, added to the gradient"),
        Field::or("nesterov", Type::Bool, "false", "look ahead by the momentum"),
    ],
};
const BETAS: Field = Field::or("betas", Type::List(&SHARE), "[0.9, 0.999]", "decay of the two running means");
const EPS: Field = Field::or("eps", POSITIVE, "1e-8", "added to the root of the second running mean");
const ADAM: Entry = Entry {
    name: "adam",
    about: "Adam, weight decay coupled to the gradient",
    paper: "Kingma and Ba, Adam, ICLR 2015, https://arxiv.org/abs/1412.6980",
    version: 1,
    fields: &[BETAS, EPS, Field::or("weight_decay", POSITIVE, "0.0", "times the weight, added to the gradient")],
};
const ADAMW: Entry = Entry {
    name: "adamw",
    about: "Adam with decoupled weight decay",
    paper: "Loshchilov and Hutter, Decoupled weight decay, ICLR 2019, https://arxiv.org/abs/1711.05101",
    version: 1,
    fields: &[BETAS, EPS, Field::or("weight_decay", POSITIVE, "0.01", "times rate and weight, taken off the weight")],
};

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    vec![&SGD, &ADAM, &ADAMW]
}

/// A recipe's `optimizer`.
pub const FIELD: Field = Field::or(
    "optimizer",
    Type::Named { noun: "optimizer", entries },
    "\"sgd\"",
    "a name, or a table with the name and its settings",
);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Rule {
    Sgd { momentum: f64, weight_decay: f64, nesterov: bool },
    Adam { betas: [f64; 2], eps: f64, weight_decay: f64 },
    Adamw { betas: [f64; 2], eps: f64, weight_decay: f64 },
}

impl Rule {
    /// From checked settings: `{ name = "sgd", momentum = 0.9, ... }`.
    pub fn new(settings: &Value) -> Result<Self> {
        serde_json::from_value(settings.clone())
            .map_err(|error| Error::invalid(format!("the optimizer does not fit: {error}")))
    }
}

/// A rule at work on one vector.
#[derive(Clone, Debug)]
pub struct Stepper {
    rule: Rule,
    /// Momentum, or Adam's running mean.
    first: Vec<f32>,
    /// Adam's running mean of squares; empty for SGD.
    second: Vec<f32>,
    steps: u64,
    mask: Option<Vec<f32>>,
}

impl Stepper {
    #[must_use]
    pub fn new(rule: Rule, length: usize, mask: Option<Vec<f32>>) -> Self {
        let second = if matches!(rule, Rule::Sgd { .. }) { 0 } else { length };
        Self { rule, first: vec![0.0; length], second: vec![0.0; second], steps: 0, mask }
    }

    /// One step: moves theta against the gradient.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], rate: f64) -> Result<()> {
        if theta.len() != self.first.len() || gradient.len() != theta.len() {
            return Err(Error::invalid(format!(
                "the optimizer was made for {} parameters, not {} with {} gradients",
                self.first.len(),
                theta.len(),
                gradient.len()
            )));
        }
        self.steps += 1;
        let open = |i: usize| self.mask.as_ref().is_none_or(|mask| mask[i] != 0.0);
        match self.rule {
            Rule::Sgd { momentum, weight_decay, nesterov } => {
                for i in (0..theta.len()).filter(|&i| open(i)) {
                    let g = gradient[i] + weight_decay as f32 * theta[i];
                    self.first[i] = if self.steps == 1 { g } else { momentum as f32 * self.first[i] + g };
                    let step = if nesterov { g + momentum as f32 * self.first[i] } else { self.first[i] };
                    theta[i] -= rate as f32 * step;
                }
            }
            Rule::Adam { betas, eps, weight_decay } | Rule::Adamw { betas, eps, weight_decay } => {
                let coupled = matches!(self.rule, Rule::Adam { .. });
                let [one, two] = betas;
                let correct = |beta: f64| 1.0 - beta.powf(self.steps as f64);
                let (size, root) = (rate / correct(one), correct(two).sqrt());
                for i in (0..theta.len()).filter(|&i| open(i)) {
                    let mut g = gradient[i];
                    if coupled {
                        g += weight_decay as f32 * theta[i];
                    } else {
                        theta[i] *= (1.0 - rate * weight_decay) as f32;
                    }
                    self.first[i] = one as f32 * self.first[i] + (1.0 - one) as f32 * g;
                    self.second[i] = two as f32 * self.second[i] + (1.0 - two) as f32 * g * g;
                    let scale = self.second[i].sqrt() / root as f32 + eps as f32;
                    theta[i] -= size as f32 * self.first[i] / scale;
                }
            }
        }
        Ok(())
    }

    /// What a checkpoint must keep.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let mut state = BTreeMap::from([
            ("first".to_owned(), vector(&self.first)?),
            ("steps".to_owned(), Tensor::from_slice(&[self.steps as i64], 1, &Device::Cpu)?),
        ]);
        if !self.second.is_empty() {
            state.insert("second".to_owned(), vector(&self.second)?);
        }
        Ok(state)
    }

    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let get =
            |name: &str| state.get(name).ok_or_else(|| Error::invalid(format!("the optimizer's state lacks `{name}`")));
        let first: Vec<f32> = get("first")?.to_vec1()?;
        let second: Vec<f32> = if self.second.is_empty() { Vec::new() } else { get("second")?.to_vec1()? };
        if (first.len(), second.len()) != (self.first.len(), self.second.len()) {
            return Err(Error::invalid("the optimizer's state is of another network"));
        }
        let steps: Vec<i64> = get("steps")?.to_vec1()?;
        (self.first, self.second, self.steps) = (first, second, steps.first().copied().unwrap_or(0) as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_weights_keep_every_bit_under_momentum_and_decay() {
        for rule in [
            Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: true },
            Rule::Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
            Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
        ] {
            let mut stepper = Stepper::new(rule, 2, Some(vec![0.0, 1.0]));
            let mut theta = [0.3, 0.3];
            for _ in 0..3 {
                stepper.step(&mut theta, &[1.0, 1.0], 0.1).unwrap();
            }
            assert_eq!(theta[0].to_bits(), 0.3_f32.to_bits());
            assert!(theta[1] < 0.3);
            assert_eq!(stepper.first[0], 0.0);
        }
    }
}
