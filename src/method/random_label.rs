//! Random labels: Graves et al., AAAI 2021, <https://arxiv.org/abs/2010.10981>; as equation 6 of Fan et al. (SalUn),
//! ICLR 2024: min CE_f(y') + weight CE_r(y), y' drawn once, uniform over the wrong classes. Per epoch all forget
//! batches, then all retain batches.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::batches::Loader;
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE, Settings};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "random_label",
        about: "trains the forget set on wrong labels, then the retain set",
        paper: "Graves et al., Amnesiac machine learning, AAAI 2021, https://arxiv.org/abs/2010.10981",
        version: 1,
        fields: &[
            epochs("10"),
            lr("0.01"),
            Field::or("retain_weight", POSITIVE, "1.0", "weight of the retain loss"),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    make: |settings| Ok(Box::new(RandomLabel::new(settings)?)),
};

#[derive(Debug)]
pub struct RandomLabel {
    epochs: usize,
    retain_weight: f64,
    recipe: Recipe,
}

impl RandomLabel {
    pub fn new(settings: &Settings) -> Result<Self> {
        let retain_weight = number(settings, "retain_weight")?;
        Ok(Self { epochs: count(settings, "epochs")?, retain_weight, recipe: recipe(settings)? })
    }
}

impl Method for RandomLabel {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let forget: Loader = scene.forget.mislabelled(&scene.rng.fork("labels"));
        let steps = forget.steps(self.epochs) + scene.retain.steps(self.epochs);
        let mut trainer = scene.trainer(student, &self.recipe, steps)?;
        for epoch in 0..self.epochs {
            trainer
                .epoch(epoch, &forget, |student, batch, _| cross_entropy(&student.train(&batch.x)?.logits, &batch.y))?;
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                Ok((cross_entropy(&student.train(&batch.x)?.logits, &batch.y)? * self.retain_weight)?)
            })?;
        }
        Ok(())
    }
}
