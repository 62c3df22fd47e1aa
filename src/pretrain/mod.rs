//! Pretraining without labels: each method a file with its paper, its settings and one function. A newcomer adds a file and
//! an entry of `PRETRAININGS`.

mod simclr;

use crate::batches::Drawn;
use crate::error::{Error, Result};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::settings::{Entry, Settings};
use crate::stage::Desk;

pub trait Pretraining: std::fmt::Debug + Send + Sync {
    /// Trains the network in place, all but its last layer, and gives the head that its loss looked through.
    fn pretrain(&self, network: &mut Model, images: Drawn, rng: &Rng, desk: &dyn Desk) -> Result<Model>;
}

/// A registered method of pretraining.
#[derive(Debug)]
pub struct Registered {
    pub entry: Entry,
    pub make: fn(&Settings) -> Result<Box<dyn Pretraining>>,
}

/// The methods of pretraining, as a recipe names them.
pub static PRETRAININGS: &[Registered] = &[simclr::PRETRAINING];

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    PRETRAININGS.iter().map(|one| &one.entry).collect()
}

pub fn make(name: &str, settings: &Settings) -> Result<Box<dyn Pretraining>> {
    let found = PRETRAININGS.iter().find(|one| one.entry.name == name);
    (found.ok_or_else(|| Error::invalid(format!("unknown pretraining `{name}`")))?.make)(settings)
}
