//! Unlearning methods: each a file with its paper, its settings and one function. A newcomer adds a file and an entry
//! of `METHODS`; the conformance tests run it unasked.

pub mod bad_teaching;
mod cf_k;
mod eu_k;
pub mod fakes;
mod finetune;
mod l1_sparse;
mod neggrad;
mod neggrad_plus;
mod nothing;
pub mod random_label;
pub mod salun;
mod scrub;
pub mod scrub_joint;
pub mod ssd;
pub mod ssl;

use candle_core::Tensor;

use crate::batches::{Batch, Loader};
use crate::error::{Error, Result, finite};
use crate::nn::loss::cross_entropy;
use crate::nn::model::{Model, Output, Pass};
use crate::nn::optim::{self, Rule};
use crate::nn::schedule::{self, Schedule};
use crate::rng::Rng;
use crate::settings::{COUNT, Entry, Field, POSITIVE, Settings};
use crate::stage::{Desk, Progress};
use crate::trainer::{Crew, Recipe, Trainer};
pub use fakes::Fakes;
use ssl::{Gone, Ssl};

/// What a method may see: batches of both sides, and streams to draw from.
#[derive(Clone)]
pub struct Scene<'a> {
    pub forget: &'a Loader,
    pub retain: &'a Loader,
    /// Images like those to forget that no model was trained on, where the data set keeps some apart.
    pub validation: Option<&'a Loader>,
    pub rng: Rng,
    /// Features made up by a generator, for methods that follow a teacher.
    pub fakes: Option<&'a Fakes>,
    /// Zeros for parameters that must not move.
    pub mask: Option<Vec<f32>>,
    /// What adds a self-supervised term to each loss, where the recipe asks for one.
    pub ssl: Option<&'a Ssl>,
    pub desk: &'a dyn Desk,
}

impl<'a> Scene<'a> {
    /// Both sides and nothing else.
    #[must_use]
    pub fn new(forget: &'a Loader, retain: &'a Loader, rng: Rng, desk: &'a dyn Desk) -> Self {
        Self { forget, retain, validation: None, fakes: None, rng, mask: None, ssl: None, desk }
    }

    /// A trainer of the student for that many steps, under the scene's mask; of a self-supervised term's head beside it.
    pub fn trainer<'b>(&'b self, student: &'b mut Model, recipe: &Recipe, steps: usize) -> Result<Trainer<'b>> {
        let trainer = Trainer::new(student, recipe, steps, self.mask.clone(), self.desk)?;
        match self.ssl.and_then(Ssl::trained) {
            Some(head) => trainer.with("head", head.copy()?, recipe),
            None => Ok(trainer),
        }
    }

    /// The self-supervised term of a batch whose images gave that output, where there is one.
    fn ssl(&self, crew: &Crew, output: &Output, batch: &Batch, gone: Gone) -> Result<Option<Tensor>> {
        self.ssl.map_or(Ok(None), |ssl| ssl.term(crew, output, batch, gone))
    }

    /// The same scene where only what both masks leave open may move.
    #[must_use]
    pub fn masked(&self, mut mask: Vec<f32>) -> Scene<'a> {
        if let Some(own) = &self.mask {
            mask.iter_mut().zip(own).for_each(|(open, own)| *open *= own);
        }
        Scene { mask: Some(mask), ..self.clone() }
    }
}

pub trait Method: std::fmt::Debug + Send + Sync {
    /// Makes the student forget, in place.
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()>;
}

/// A registered method.
#[derive(Debug)]
pub struct Registered {
    pub entry: Entry,
    /// Whether it follows a teacher's answers: then a generator may give it a second one.
    pub teacher: bool,
    pub make: fn(&Settings) -> Result<Box<dyn Method>>,
}

/// The one that leaves the model as it is.
pub const NOTHING: &str = nothing::METHOD.entry.name;

/// The methods, as a recipe names them.
pub static METHODS: &[Registered] = &[
    nothing::METHOD,
    finetune::METHOD,
    neggrad::METHOD,
    neggrad_plus::METHOD,
    random_label::METHOD,
    salun::METHOD,
    scrub::METHOD,
    l1_sparse::METHOD,
    ssd::METHOD,
    cf_k::METHOD,
    eu_k::METHOD,
    bad_teaching::METHOD,
    scrub_joint::METHOD,
];

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    METHODS.iter().map(|method| &method.entry).collect()
}

/// The names of those that follow a teacher.
#[must_use]
pub fn with_teachers() -> Vec<&'static str> {
    METHODS.iter().filter(|method| method.teacher).map(|method| method.entry.name).collect()
}

pub fn make(name: &str, settings: &Settings) -> Result<Box<dyn Method>> {
    let method = METHODS.iter().find(|method| method.entry.name == name);
    (method.ok_or_else(|| Error::invalid(format!("unknown method `{name}`")))?.make)(settings)
}

/// Hands on the gradient of each batch's mean cross-entropy, over the loader's first epoch in evaluation mode, and says
/// how many there were.
fn slopes(model: &Model, loader: &Loader, desk: &dyn Desk, mut see: impl FnMut(&[f32])) -> Result<usize> {
    let batches = loader.epoch(0);
    let mut images = 0;
    for index in 0..batches.len {
        desk.halt()?;
        let batch = batches.batch(index)?;
        let loss = cross_entropy(&model.forward(&batch.x, &Pass::eval())?.logits, &batch.y)?;
        let gradient = model.gradient(&loss)?;
        finite(&gradient, "the model's gradients")?;
        see(&gradient);
        images += batch.y.elem_count();
        desk.progress(Progress { done: index + 1, total: batches.len, loss: None, images });
    }
    Ok(batches.len)
}

/// The share of the loader's images that the model takes for another class, in evaluation mode and without transforms.
fn error_rate(model: &Model, loader: &Loader, desk: &dyn Desk) -> Result<f64> {
    let plain = loader.plain();
    let batches = plain.epoch(0);
    let (mut wrong, mut seen) = (0, 0);
    for index in 0..batches.len {
        desk.halt()?;
        let batch = batches.batch(index)?;
        let answers = model.logits(&batch.x)?.argmax(candle_core::D::Minus1)?.to_vec1::<u32>()?;
        let labels = batch.y.to_vec1::<u32>()?;
        wrong += answers.iter().zip(&labels).filter(|(answer, label)| answer != label).count();
        seen += labels.len();
    }
    Ok(wrong as f64 / seen.max(1) as f64)
}

const fn epochs(default: &'static str) -> Field {
    Field::or("epochs", COUNT, default, "passes over what the method trains on")
}

const fn lr(default: &'static str) -> Field {
    Field::or("lr", POSITIVE, default, "learning rate")
}

/// The settings that every trained method has, beside `epochs` and `lr`.
const OPTIMIZER: Field = optim::FIELD;
const SCHEDULE: Field = schedule::FIELD;

/// `lr`, `optimizer` and `schedule` of checked settings.
pub(crate) fn recipe(settings: &Settings) -> Result<Recipe> {
    let get = |name: &str| settings.get(name).ok_or_else(|| Error::invalid(format!("the setting `{name}` is missing")));
    Ok(Recipe {
        lr: number(settings, "lr")?,
        optimizer: Rule::new(get("optimizer")?)?,
        schedule: Schedule::new(get("schedule")?)?,
    })
}

pub(crate) fn number(settings: &Settings, name: &str) -> Result<f64> {
    let value = settings.get(name).and_then(serde_json::Value::as_f64);
    value.ok_or_else(|| Error::invalid(format!("the setting `{name}` is missing")))
}

pub(crate) fn count(settings: &Settings, name: &str) -> Result<usize> {
    let value = settings.get(name).and_then(serde_json::Value::as_u64);
    value.map(|n| n as usize).ok_or_else(|| Error::invalid(format!("the setting `{name}` is missing")))
}
