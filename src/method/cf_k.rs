//! CF-k: Goel et al., 2022, <https://arxiv.org/abs/2201.06640>: fine-tunes the last parts on the retain set. The rest is
//! frozen: no gradient, no weight decay, batch norms in evaluation mode.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, recipe};
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::{Model, Pass};
use crate::settings::{COUNT, Entry, Field, Settings};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "cf_k",
        about: "fine-tunes the last parts of the network, on retain",
        paper: "Goel et al., Towards adversarial evaluations, 2022, https://arxiv.org/abs/2201.06640",
        version: 1,
        fields: &[epochs("10"), lr("0.01"), PARTS, OPTIMIZER, SCHEDULE],
    },
    teacher: false,
    make: |settings| Ok(Box::new(CfK::new(settings)?)),
};

pub(super) const PARTS: Field =
    Field::or("parts", COUNT, "2", "last parts that train, by name; 2 is layer4 and fc of a ResNet");

#[derive(Debug)]
pub(super) struct CfK {
    epochs: usize,
    pub(super) parts: usize,
    recipe: Recipe,
}

impl CfK {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let parts = count(settings, "parts")?;
        Ok(Self { epochs: count(settings, "epochs")?, parts, recipe: recipe(settings)? })
    }
}

impl Method for CfK {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let parts = last(student, self.parts);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let pass = Pass::train_only(&parts);
        let scene = scene.masked(student.only(&parts)?);
        let mut trainer = scene.trainer(student, &self.recipe, scene.retain.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                cross_entropy(&student.train_with(&batch.x, &pass)?.logits, &batch.y)
            })?;
        }
        Ok(())
    }
}

/// The last parts of a network, as prefixes of names: `layer4.`, `fc.`.
pub(super) fn last(model: &Model, count: usize) -> Vec<String> {
    let first = |name: &str| format!("{}.", name.split('.').next().unwrap_or_default());
    let mut parts: Vec<String> = model.spans().iter().map(|span| first(&span.name)).collect();
    parts.dedup();
    parts.split_off(parts.len().saturating_sub(count))
}
