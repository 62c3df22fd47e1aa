//! Learning rates over a training, with the values of PyTorch's schedulers. A rate is a function of the step alone,
//! except on a plateau, which is a matter of what was seen: `Course` is a schedule at work.

mod course;
mod plateau;

use serde::Deserialize;
use serde_json::Value;
use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::settings::{COUNT, Entry, Field, NATURAL, POSITIVE, SHARE, Type};

pub use course::Course;
pub use plateau::Plateau;

/// The rate rises in equal parts over these steps and then is what the schedule says; a cosine begins after them.
const WARMUP: Field = Field::or("warmup", SHARE, "0.0", "share of all steps over which the rate rises to its start");
const CONSTANT: Entry =
    Entry { name: "constant", about: "the same rate throughout", paper: "", version: 1, fields: &[WARMUP] };
const COSINE: Entry = Entry {
    name: "cosine",
    about: "half a cosine from the rate to `floor`, by steps",
    paper: "Loshchilov and Hutter, SGDR, ICLR 2017, https://arxiv.org/abs/1608.03983",
    version: 1,
    fields: &[Field::or("floor", POSITIVE, "0.0", "the rate at the end"), WARMUP],
};
const MULTI_STEP: Entry = Entry {
    name: "multi_step",
    about: "times `factor` at each of some epochs",
    paper: "",
    version: 1,
    fields: &[
        Field::required("at", Type::List(&COUNT), "epochs after which the rate falls"),
        Field::or("factor", SHARE, "0.1", "what the rate is multiplied by"),
        WARMUP,
    ],
};
const ONE_CYCLE: Entry = Entry {
    name: "one_cycle",
    about: "up from rate/`div` to the rate, then down, by steps",
    paper: "Smith and Topin, Super-convergence, 2019, https://arxiv.org/abs/1708.07120",
    version: 2,
    fields: &[
        Field::or("rise", SHARE, "0.3", "share of the steps spent rising"),
        Field::or("div", DIVISOR, "25.0", "the first rate is the rate divided by this"),
        Field::or("final_div", DIVISOR, "10000.0", "the last rate is the first divided by this"),
        Field::or("shape", Type::Choice(&["cosine", "linear"]), "\"cosine\"", "how the rate goes up and down"),
        Field::or("cycle_momentum", Type::Bool, "true", "momentum (Adam: first beta) goes down, then up"),
        Field::or("high_momentum", SHARE, "0.95", "momentum at both ends"),
        Field::or("low_momentum", SHARE, "0.85", "momentum where the rate is highest"),
    ],
};
const PLATEAU: Entry = Entry {
    name: "plateau",
    about: "times `factor` where the epoch's loss stops falling",
    paper: "",
    version: 1,
    fields: &[
        Field::or("factor", SHARE, "0.1", "what the rate is multiplied by"),
        Field::or("patience", NATURAL, "10", "epochs without improvement that are put up with"),
        Field::or("threshold", SHARE, "0.0001", "share by which the mean training loss must fall to count"),
        Field::or("cooldown", NATURAL, "0", "epochs after a cut that are not counted"),
        Field::or("floor", POSITIVE, "0.0", "the lowest rate"),
        WARMUP,
    ],
};
const DIVISOR: Type = Type::Float { min: 1e-6, max: f64::MAX };

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    vec![&CONSTANT, &COSINE, &MULTI_STEP, &ONE_CYCLE, &PLATEAU]
}

/// A recipe's `schedule`.
pub const FIELD: Field = Field::or(
    "schedule",
    Type::Tagged { noun: "schedule", entries },
    "\"constant\"",
    "a name, or a table with one key: the name, over its settings",
);

/// How a one-cycle goes from one value to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Glide {
    #[default]
    Cosine,
    Linear,
}

impl Glide {
    fn between(self, from: f64, to: f64, share: f64) -> f64 {
        match self {
            Glide::Cosine => to + (from - to) * (1.0 + (PI * share).cos()) / 2.0,
            Glide::Linear => from + (to - from) * share,
        }
    }
}

/// `warmup` is a share of all steps.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant {
        #[serde(default)]
        warmup: f64,
    },
    Cosine {
        floor: f64,
        #[serde(default)]
        warmup: f64,
    },
    MultiStep {
        at: Vec<usize>,
        factor: f64,
        #[serde(default)]
        warmup: f64,
    },
    OneCycle {
        rise: f64,
        div: f64,
        final_div: f64,
        #[serde(default)]
        shape: Glide,
        cycle_momentum: bool,
        high_momentum: f64,
        low_momentum: f64,
    },
    Plateau {
        factor: f64,
        patience: usize,
        threshold: f64,
        cooldown: usize,
        floor: f64,
        #[serde(default)]
        warmup: f64,
    },
}

/// Where a training is: `step` counts from 0 over all epochs, `epoch` from 0.
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

    /// The rate of a step, the base rate being `base`; of a plateau the rate before any cut.
    #[must_use]
    pub fn rate(&self, base: f64, at: Moment) -> f64 {
        let warming = self.warming(at.steps);
        let rise = if at.step < warming { (at.step + 1) as f64 / warming as f64 } else { 1.0 };
        let after = at.step.saturating_sub(warming) as f64;
        let rate = match self {
            Schedule::Constant { .. } | Schedule::Plateau { .. } => base,
            Schedule::Cosine { floor, .. } => {
                let length = at.steps.saturating_sub(warming).max(1);
                Glide::Cosine.between(base, *floor, after / length as f64)
            }
            Schedule::MultiStep { at: epochs, factor, .. } => {
                base * factor.powf(epochs.iter().filter(|&&epoch| epoch <= at.epoch).count() as f64)
            }
            Schedule::OneCycle { div, final_div, .. } => {
                let start = base / div;
                self.cycle(at, [start, base, start / final_div])
            }
        };
        rise * rate
    }

    /// The momentum of a step, where the schedule has a say in it.
    #[must_use]
    pub fn momentum(&self, at: Moment) -> Option<f64> {
        match *self {
            Schedule::OneCycle { cycle_momentum: true, high_momentum, low_momentum, .. } => {
                Some(self.cycle(at, [high_momentum, low_momentum, high_momentum]))
            }
            _ => None,
        }
    }

    /// From the first value to the second at step `rise` x steps - 1, then to the third at the last step.
    fn cycle(&self, at: Moment, [first, second, third]: [f64; 3]) -> f64 {
        let Schedule::OneCycle { rise, shape, .. } = *self else { return second };
        let (step, last) = (at.step as f64, at.steps.max(1) as f64 - 1.0);
        let top = (rise * at.steps as f64 - 1.0).max(0.0);
        if step < top {
            shape.between(first, second, step / top)
        } else if last > top {
            shape.between(second, third, (step - top) / (last - top))
        } else {
            second
        }
    }

    /// Steps of warm-up.
    fn warming(&self, steps: usize) -> usize {
        match *self {
            Schedule::Constant { warmup }
            | Schedule::Cosine { warmup, .. }
            | Schedule::MultiStep { warmup, .. }
            | Schedule::Plateau { warmup, .. } => (warmup * steps as f64).round() as usize,
            Schedule::OneCycle { .. } => 0,
        }
    }
}
