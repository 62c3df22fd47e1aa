//! `augment`: more forget samples from few.

use super::{Choice, Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::Artifact;
use crate::augment::{self, Augmenter};
use crate::error::Result;
use crate::rng::Rng;
use crate::settings::SEED;

pub const KIND: StageKind = StageKind {
    name: "augment",
    about: "makes more to forget, by a method",
    version: 1,
    makes: Makes::ByChoice(augment::makes),
    fields: &[SEED],
    choice: Some(Choice { key: "method", noun: "augmenter", entries: augment::entries }),
    collects: false,
    make: |settings| {
        let name = settings.get("method").and_then(|name| name.as_str()).unwrap_or_default();
        let seed = settings.get("seed").and_then(serde_json::Value::as_u64).unwrap_or(0);
        Ok(Box::new(Augment { augmenter: augment::make(name, settings)?, seed }))
    },
    check: |_| Vec::new(),
};

#[derive(Debug)]
struct Augment {
    augmenter: Box<dyn Augmenter>,
    seed: u64,
}

impl Stage for Augment {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        self.augmenter.more(inputs, context, &Rng::new(self.seed).fork("augment"))
    }
}
