//! Learning rates over a training, with the values of PyTorch's schedulers. A rate is a function of the step alone.

use serde::Deserialize;
use serde_json::Value;
use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::settings::{COUNT, Entry, Field, POSITIVE, SHARE, Type};

const CONSTANT: Entry =
    Entry { name: "constant", about: "the same rate throughout", paper: "", version: 1, fields: &[] };
const COSINE: Entry = Entry {
    name: "cosine",
    about: "half a cosine from the rate to `floor`, by steps",
    paper: "Loshchilov and Hutter, SGDR, ICLR 2017, https://arxiv.org/abs/1608.03983",
    version: 1,
    fields: &[Field::or("floor", POSITIVE, "0.0", "the rate at the end")],
};
const MULTI_STEP: Entry = Entry {
    name: "multi_step",
    about: "times `factor` at each of some epochs",
    paper: "",
    version: 1,
    fields: &[
        Field::required("at", Type::List(&COUNT), "epochs after which the rate falls"),
        Field::or("factor", SHARE, "0.1", "what the rate is multiplied by"),
    ],
};
const ONE_CYCLE: Entry = Entry {
    name: "one_cycle",
    about: "up from rate/`div` to the rate, then down, by steps",
    paper: "Smith and Topin, Super-convergence, 2019, https://arxiv.org/abs/1708.07120",
    version: 1,
    fields: &[
        Field::or("rise", SHARE, "0.3", "share of the steps spent rising"),
        Field::or("div", POSITIVE, "25.0", "the first rate is the rate divided by this"),
        Field::or("final_div", POSITIVE, "10000.0", "the last rate is the first divided by this"),
    ],
};

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    vec![&CONSTANT, &COSINE, &MULTI_STEP, &ONE_CYCLE]
}

/// A recipe's `schedule`.
pub const FIELD: Field = Field::or(
    "schedule",
    Type::Tagged { noun: "schedule", entries },
    "\"constant\"",
    "a name, or a table with one key: the name, over its settings",
);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant {},
    Cosine { floor: f64 },
    MultiStep { at: Vec<usize>, factor: f64 },
    OneCycle { rise: f64, div: f64, final_div: f64 },
}

/// Where a training is: `step` counts from 0 over all epochs.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub step: usize,
    pub steps: usize,
    pub epoch: usize,
}

impl Schedule {
    /// From checked settings: `{ cosine = { floor = 0.0 } }`.
    pub fn new(settings: &Value) -> Result<Self> {
        serde_json::from_value(settings.clone())
            .map_err(|error| Error::invalid(format!("the schedule does not fit: {error}")))
    }

    #[must_use]
    pub fn rate(&self, base: f64, at: Moment) -> f64 {
        match self {
            Schedule::Constant {} => base,
            Schedule::Cosine { floor } => {
                floor + (base - floor) * (1.0 + (PI * at.step as f64 / at.steps.max(1) as f64).cos()) / 2.0
            }
            Schedule::MultiStep { at: epochs, factor } => {
                base * factor.powf(epochs.iter().filter(|&&epoch| epoch <= at.epoch).count() as f64)
            }
            Schedule::OneCycle { rise, div, final_div } => {
                let (start, last) = (base / div, at.steps.max(1) as f64 - 1.0);
                let top = rise * at.steps as f64 - 1.0;
                let glide = |from: f64, to: f64, share: f64| to + (from - to) * (1.0 + (PI * share).cos()) / 2.0;
                let step = at.step as f64;
                if step <= top {
                    glide(start, base, step / top)
                } else {
                    glide(base, start / final_div, (step - top) / (last - top))
                }
            }
        }
    }
}
