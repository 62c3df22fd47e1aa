//! Unlearning methods: each a file with its paper, its settings and one function. A newcomer adds a file and an entry
//! of `METHODS`; the conformance tests run it unasked.

mod finetune;
mod neggrad;
mod neggrad_plus;
mod nothing;
pub mod random_label;

use crate::batches::Loader;
use crate::error::{Error, Result};
use crate::nn::model::Model;
use crate::nn::optim::{self, Rule};
use crate::nn::schedule::{self, Schedule};
use crate::rng::Rng;
use crate::settings::{COUNT, Entry, Field, POSITIVE, Settings};
use crate::stage::Desk;
use crate::trainer::{Recipe, Trainer};

/// What a method may see: batches of both sides, and streams to draw from.
pub struct Scene<'a> {
    pub forget: &'a Loader,
    pub retain: &'a Loader,
    pub rng: Rng,
    /// Zeros for parameters that must not move.
    pub mask: Option<Vec<f32>>,
    pub desk: &'a dyn Desk,
}

impl Scene<'_> {
    /// A trainer of the student for that many steps, under the scene's mask.
    pub fn trainer<'b>(&'b self, student: &'b mut Model, recipe: &'b Recipe, steps: usize) -> Result<Trainer<'b>> {
        Trainer::new(student, recipe, steps, self.mask.clone(), self.desk)
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
    pub make: fn(&Settings) -> Result<Box<dyn Method>>,
}

/// The methods, as a recipe names them.
pub static METHODS: &[Registered] =
    &[nothing::METHOD, finetune::METHOD, neggrad::METHOD, neggrad_plus::METHOD, random_label::METHOD];

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    METHODS.iter().map(|method| &method.entry).collect()
}

pub fn make(name: &str, settings: &Settings) -> Result<Box<dyn Method>> {
    let method = METHODS.iter().find(|method| method.entry.name == name);
    (method.ok_or_else(|| Error::invalid(format!("unknown method `{name}`")))?.make)(settings)
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
