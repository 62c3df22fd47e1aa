//! Metrics: each a function from evidence to named numbers that say their unit and what they aim at, and to figures. A
//! newcomer adds a file and an entry of `METRICS`.

pub mod agreement;
pub mod cka;
pub mod classification;
pub mod entropy;
mod exp;
pub mod figure;
pub mod geo;
pub mod margins;
pub mod membership;
pub mod open_set;
pub mod relearn;
pub mod roc;
pub mod svc;
pub mod tsne;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::halt::Halt;
use crate::rng::Rng;
use figure::Figure;

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
pub struct Evidence<'a> {
    pub forget: Answers,
    pub retain: Answers,
    /// Empty where the data set keeps none apart.
    pub validation: Answers,
    pub test: Answers,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Classes that are forgotten whole.
    pub forgotten: Vec<u32>,
    /// What the reference says, where a metric needs it.
    pub reference: Option<Reference>,
    /// What a network of random weights says of the forget set, where a metric needs it.
    pub random: Option<Answers>,
    /// Likeness to the reference by layer, in the order of the layers, where a metric needs it.
    pub layers: Vec<(String, f64)>,
    /// What the last layer reads, of some images, by part, where a metric needs it: row by row.
    pub features: Vec<(String, Vec<Vec<f64>>)>,
    /// How a copy learned the forget set again, where a metric needs it.
    pub relearned: Option<relearn::Course>,
    pub rng: Rng,
    /// Asked by measures that take long.
    pub halt: &'a Halt<'a>,
}

/// What the model that others are measured against says.
#[derive(Clone, Debug)]
pub struct Reference {
    pub forget: Answers,
    pub retain: Answers,
    pub test: Answers,
}

/// What a metric needs beside the model's own answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Reference,
    /// A network of random weights.
    Random,
    Layers,
    Features,
    /// Training a copy on the forget set.
    Relearning,
}

/// What a metric found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    pub numbers: Vec<Number>,
    pub figures: Vec<Figure>,
    /// How it came about: sample sizes, what was left out.
    pub notes: Vec<String>,
}

impl Measured {
    fn numbers(numbers: Vec<Number>) -> Self {
        Self { numbers, ..Self::default() }
    }

    /// Nothing, and why.
    fn nothing(why: impl Into<String>) -> Self {
        Self::default().note(why)
    }

    fn figure(mut self, figure: Figure) -> Self {
        if !figure.is_finite() {
            return self.note(format!("{}: not drawn, a value is no number", figure.name));
        }
        self.figures.push(figure);
        self
    }

    fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// A registered metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub about: &'static str,
    pub paper: &'static str,
    pub needs: &'static [Need],
    pub measure: fn(&Evidence) -> Result<Measured>,
}

/// The metrics, as a recipe names them.
pub const METRICS: &[Metric] = &[
    classification::ACCURACY,
    classification::LOSS,
    classification::BY_CLASS,
    classification::CONFUSION,
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
    geo::GEO,
    margins::MARGINS,
    cka::CKA,
    relearn::RELEARN,
    tsne::TSNE,
];

#[must_use]
pub fn names() -> Vec<&'static str> {
    METRICS.iter().map(|metric| metric.name).collect()
}

pub fn find(name: &str) -> Result<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| Error::invalid(format!("unknown metric `{name}`")))
}

/// Whether one of these metrics has that need; unknown names need nothing.
pub fn need<'a>(names: impl IntoIterator<Item = &'a str>, wanted: Need) -> bool {
    names.into_iter().filter_map(|name| find(name).ok()).any(|metric| metric.needs.contains(&wanted))
}

/// What the reference says; an error where there is none.
fn reference<'a>(evidence: &'a Evidence) -> Result<&'a Reference> {
    evidence.reference.as_ref().ok_or_else(|| Error::invalid("this metric compares with a `reference`"))
}

fn number(name: &str, value: f64, unit: &str, aim: Aim) -> Number {
    Number { name: name.to_owned(), value, unit: unit.to_owned(), aim }
}
