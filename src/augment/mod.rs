//! Augmenters: more forget samples from few. Each a file with its settings and one function; a newcomer adds a file and an
//! entry of `AUGMENTERS`.

pub mod arpl;
pub mod opengan;
mod simple;

use std::sync::Arc;

use crate::artifact::Artifact;
use crate::data::{Images, Part, Split};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::rng::Rng;
use crate::settings::{Entry, Field, Settings, Type};
use crate::stage::{Context, Inputs};

pub trait Augmenter: std::fmt::Debug + Send + Sync {
    /// Images for the forget set, or a generator of such.
    fn more(&self, inputs: &Inputs, context: &Context, rng: &Rng) -> Result<Artifact>;
}

/// A registered augmenter.
#[derive(Debug)]
pub struct Registered {
    pub entry: Entry,
    pub makes: Kind,
    pub make: fn(&Settings) -> Result<Box<dyn Augmenter>>,
}

/// The augmenters, as a recipe names them.
pub static AUGMENTERS: &[Registered] = &[simple::AUGMENTER, arpl::AUGMENTER, opengan::AUGMENTER];

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    AUGMENTERS.iter().map(|augmenter| &augmenter.entry).collect()
}

/// What the augmenter of that name makes; images where there is none.
#[must_use]
pub fn makes(name: &str) -> Kind {
    AUGMENTERS.iter().find(|augmenter| augmenter.entry.name == name).map_or(Kind::Images, |augmenter| augmenter.makes)
}

pub fn make(name: &str, settings: &Settings) -> Result<Box<dyn Augmenter>> {
    let augmenter = AUGMENTERS.iter().find(|augmenter| augmenter.entry.name == name);
    (augmenter.ok_or_else(|| Error::invalid(format!("unknown augmenter `{name}`")))?.make)(settings)
}

/// The split whose forget set grows.
const DATA: Field = Field::required("data", Type::Stage(&[Kind::Split]), "whose forget set");

fn split(inputs: &Inputs) -> Result<&Arc<Split>> {
    match inputs.get("data")? {
        Artifact::Split(split) => Ok(split),
        _ => Err(Error::invalid("`data` is not a split")),
    }
}

/// Images of that data set's kind, all in the training part.
fn images(name: &str, of: &Images, train: Part) -> Result<Artifact> {
    let made = Images {
        name: format!("{name} of {}", of.name),
        classes: of.classes.clone(),
        size: of.size,
        mean: of.mean.clone(),
        std: of.std.clone(),
        train,
        validation: Part::default(),
        test: Part::default(),
        unlabelled: Part::default(),
    };
    made.check()?;
    Ok(Artifact::Images(made.into()))
}
