//! Metrics: each a function from evidence to named numbers that say their unit and what they aim at. A newcomer adds a
//! file and an entry of `METRICS`.

pub mod agreement;
pub mod cka;
pub mod classification;
pub mod entropy;
pub mod membership;
pub mod open_set;
pub mod roc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::Rng;

/// Which value is best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    Higher,
    Lower,
    /// As near to the retrained oracle's as can be.
    LikeOracle,
    Value(f64),
}

/// One number of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// `accuracy.forget`.
    pub name: String,
    pub value: f64,
    /// `%`, or empty.
    pub unit: String,
    pub aim: Aim,
}

/// What a model says of some images.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Row by row: classes numbers an image, softmax.
    pub probabilities: Vec<f64>,
    pub labels: Vec<u32>,
    pub classes: usize,
}

impl Answers {
    /// From logits, row by row.
    #[must_use]
    pub fn new(logits: &[f32], labels: Vec<u32>, classes: usize) -> Self {
        let rows = logits.chunks_exact(classes.max(1));
        Self { probabilities: rows.flat_map(softmax).collect(), labels, classes }
    }

    pub fn rows(&self) -> impl Iterator<Item = (&[f64], u32)> {
        self.probabilities.chunks_exact(self.classes.max(1)).zip(self.labels.iter().copied())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The probability of the true class, by image.
    #[must_use]
    pub fn confidence(&self) -> Vec<f64> {
        self.rows().map(|(row, label)| row[label as usize]).collect()
    }

    /// Cross-entropy, by image.
    #[must_use]
    pub fn losses(&self) -> Vec<f64> {
        self.confidence().into_iter().map(|p| -p.max(1e-300).ln()).collect()
    }
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(f64::from(x)));
    let powers: Vec<f64> = row.iter().map(|&x| (f64::from(x) - top).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// All that a metric may look at, about one model.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub forget: Answers,
    pub retain: Answers,
    /// Empty where the data set keeps none apart.
    pub validation: Answers,
    pub test: Answers,
    /// Classes that are forgotten whole.
    pub forgotten: Vec<u32>,
    /// What the reference says, where a metric needs it.
    pub reference: Option<Reference>,
    /// What a network of random weights says of the forget set, where a metric needs it.
    pub random: Option<Answers>,
    /// Likeness to the reference by layer, where a metric needs it.
    pub layers: Vec<(String, f64)>,
    pub rng: Rng,
}

/// What the model that others are measured against says.
#[derive(Clone, Debug)]
pub struct Reference {
    pub forget: Answers,
    pub retain: Answers,
    pub test: Answers,
}

/// What a metric needs beside the model's own answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    pub reference: bool,
    pub random: bool,
    pub layers: bool,
}

impl Needs {
    pub const NOTHING: Self = Self { reference: false, random: false, layers: false };
    pub const REFERENCE: Self = Self { reference: true, ..Self::NOTHING };

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            reference: self.reference || other.reference,
            random: self.random || other.random,
            layers: self.layers || other.layers,
        }
    }
}

/// Numbers, and notes on how they came about (sample sizes).
pub type Measured = (Vec<Number>, Vec<String>);

/// A registered metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub about: &'static str,
    pub paper: &'static str,
    pub needs: Needs,
    pub measure: fn(&Evidence) -> Result<Measured>,
}

/// The metrics, as a recipe names them.
pub const METRICS: &[Metric] = &[
    classification::ACCURACY,
    classification::LOSS,
    classification::BY_CLASS,
    entropy::ENTROPY,
    membership::CONFIDENCE,
    membership::CORRECTNESS,
    membership::ENTROPY,
    membership::MODIFIED_ENTROPY,
    membership::PROBABILITIES,
    membership::LOSS,
    roc::ROC,
    agreement::AGREEMENT,
    agreement::ACTIVATION_DISTANCE,
    agreement::JS_DIVERGENCE,
    agreement::TOW,
    agreement::ZRF,
    cka::CKA,
];

#[must_use]
pub fn names() -> Vec<&'static str> {
    METRICS.iter().map(|metric| metric.name).collect()
}

pub fn find(name: &str) -> Result<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| Error::invalid(format!("unknown metric `{name}`")))
}

/// All that these metrics need together; unknown names need nothing.
#[must_use]
pub fn needs<'a>(names: impl IntoIterator<Item = &'a str>) -> Needs {
    names.into_iter().filter_map(|name| find(name).ok()).fold(Needs::NOTHING, |all, metric| all.with(metric.needs))
}

fn number(name: &str, value: f64, unit: &str, aim: Aim) -> Number {
    Number { name: name.to_owned(), value, unit: unit.to_owned(), aim }
}
