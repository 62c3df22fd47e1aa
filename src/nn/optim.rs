//! Optimisers with PyTorch's semantics, on theta as one vector. The mask applies to the step, after weight decay and
//! momentum, so that masked-out weights keep every bit and gather no momentum.

mod device;
mod optimizer;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::Numbers;
use crate::settings::{Entry, Field, POSITIVE, SHARE, Type};
use crate::wide::wide;

pub use device::DeviceStepper;
pub use optimizer::Optimizer;

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

/// Weights of one piece of work; no result depends on it or on the number of threads.
const CHUNK: usize = 1 << 14;

/// A rule at work on one vector in main memory.
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
    /// For theta of that length; a weight moves where the mask is not 0.
    #[must_use]
    pub fn new(rule: Rule, length: usize, mask: Option<Vec<f32>>) -> Self {
        let second = if matches!(rule, Rule::Sgd { .. }) { 0 } else { length };
        Self { rule, first: vec![0.0; length], second: vec![0.0; second], steps: 0, mask }
    }

    /// One step: moves theta against the gradient.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], rate: f64) -> Result<()> {
        self.step_with(theta, gradient, rate, None)
    }

    /// The same with another momentum (Adam: first beta) for this step, as one-cycle schedules want it. SGD without
    /// momentum stays without.
    pub fn step_with(&mut self, theta: &mut [f32], gradient: &[f32], rate: f64, momentum: Option<f64>) -> Result<()> {
        let masked = self.mask.as_ref().map_or(theta.len(), Vec::len);
        if [self.first.len(), gradient.len(), masked] != [theta.len(); 3] {
            return Err(Error::invalid(format!(
                "the optimizer was made for {} parameters, not {} with {} gradients and a mask of {masked}",
                self.first.len(),
                theta.len(),
                gradient.len()
            )));
        }
        self.steps += 1;
        let mask = self.mask.as_deref();
        match self.rule.at(self.steps, rate, momentum) {
            Numbers::Sgd { rate, momentum, weight_decay, nesterov } => {
                let [rate, momentum, decay] = [rate, momentum, weight_decay].map(|x| x as f32);
                let chunks = theta.par_chunks_mut(CHUNK).zip(self.first.par_chunks_mut(CHUNK));
                chunks.zip(gradient.par_chunks(CHUNK)).enumerate().for_each(|(index, ((theta, first), gradient))| {
                    sgd(theta, first, gradient, piece(mask, index), [rate, momentum, decay], nesterov);
                });
            }
            Numbers::Adam { size, keep, betas, root, eps, decay } => {
                let [size, keep, one, two, root, eps, decay] =
                    [size, keep, betas[0], betas[1], root, eps, decay].map(|x| x as f32);
                let [rest_one, rest_two] = betas.map(|beta| (1.0 - beta) as f32);
                let numbers = [size, keep, one, two, rest_one, rest_two, root, eps, decay];
                let chunks = theta.par_chunks_mut(CHUNK).zip(self.first.par_chunks_mut(CHUNK));
                let chunks = chunks.zip(self.second.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
                chunks.enumerate().for_each(|(index, (((theta, first), second), gradient))| {
                    adam(theta, [first, second], gradient, piece(mask, index), numbers);
                });
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
        (self.first, self.second, self.steps) = (first, second, count(get("steps")?)?);
        Ok(())
    }
}

/// The steps done, as a state keeps them.
fn count(steps: &Tensor) -> Result<u64> {
    let steps: Vec<i64> = steps.to_vec1()?;
    let first = steps.first().and_then(|&steps| u64::try_from(steps).ok());
    first.ok_or_else(|| Error::invalid("the optimizer's state does not say how many steps were done"))
}

/// A chunk's part of the mask.
fn piece(mask: Option<&[f32]>, index: usize) -> Option<&[f32]> {
    mask.map(|mask| &mask[index * CHUNK..((index + 1) * CHUNK).min(mask.len())])
}

wide! {
    fn sgd(
        theta: &mut [f32],
        first: &mut [f32],
        gradient: &[f32],
        mask: Option<&[f32]>,
        numbers: [f32; 3],
        nesterov: bool,
    ) {
        let [rate, momentum, decay] = numbers;
        each(theta.iter_mut().zip(first).zip(gradient), mask, |((theta, first), gradient)| {
            let g = gradient + decay * *theta;
            *first = momentum * *first + g;
            *theta -= rate * if nesterov { g + momentum * *first } else { *first };
        });
    }
}

wide! {
    fn adam(theta: &mut [f32], means: [&mut [f32]; 2], gradient: &[f32], mask: Option<&[f32]>, numbers: [f32; 9]) {
        let [size, keep, one, two, rest_one, rest_two, root, eps, decay] = numbers;
        let [first, second] = means;
        each(theta.iter_mut().zip(first).zip(second).zip(gradient), mask, |(((theta, first), second), gradient)| {
            let g = gradient + decay * *theta;
            *first = one * *first + rest_one * g;
            *second = two * *second + rest_two * g * g;
            *theta = *theta * keep - size * *first / (second.sqrt() / root + eps);
        });
    }
}

/// For those where the mask is open.
#[expect(clippy::inline_always, reason = "part of wide loops")]
#[inline(always)]
fn each<T>(all: impl Iterator<Item = T>, mask: Option<&[f32]>, mut step: impl FnMut(T)) {
    match mask {
        None => all.for_each(step),
        Some(mask) => all.zip(mask).filter(|(_, open)| **open != 0.0).for_each(|(item, _)| step(item)),
    }
}

impl Rule {
    /// `step` counts from 1.
    fn at(&self, step: u64, rate: f64, other: Option<f64>) -> Numbers {
        match *self {
            Rule::Sgd { momentum, weight_decay, nesterov } => {
                let momentum = other.filter(|_| momentum > 0.0).unwrap_or(momentum);
                Numbers::Sgd { rate, momentum, weight_decay, nesterov }
            }
            Rule::Adam { betas, eps, weight_decay } | Rule::Adamw { betas, eps, weight_decay } => {
                let betas = [other.unwrap_or(betas[0]), betas[1]];
                let [one, two] = betas.map(|beta| 1.0 - beta.powf(step as f64));
                let coupled = matches!(self, Rule::Adam { .. });
                let (keep, decay) = if coupled { (1.0, weight_decay) } else { (1.0 - rate * weight_decay, 0.0) };
                Numbers::Adam { size: rate / one, keep, betas, root: two.sqrt(), eps, decay }
            }
        }
    }
}
