//! Random labels: Graves et al., AAAI 2021, <https://arxiv.org/abs/2010.10981>; as equation 6 of Fan et al. (SalUn),
//! ICLR 2024: min CE_f(y') + weight CE_r(y), y' drawn once, uniform over the wrong classes. Per epoch all forget
//! batches, then all retain batches. SalUn's published code draws over all classes, the true one among them:
//! `labels = "any"`.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::batches::Loader;
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE, Settings, Type};
use crate::trainer::{Crew, Recipe};

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
            LABELS,
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    teacher: false,
    make: |settings| Ok(Box::new(RandomLabel::new(settings)?)),
};

pub(super) const LABELS: Field =
    Field::or("labels", Type::Choice(&["wrong", "any"]), "\"wrong\"", "classes to draw the forget set's labels from");

#[derive(Debug)]
pub struct RandomLabel {
    any: bool,
    epochs: usize,
    retain_weight: f64,
    recipe: Recipe,
}

impl RandomLabel {
    pub fn new(settings: &Settings) -> Result<Self> {
        let retain_weight = number(settings, "retain_weight")?;
        let any = settings.get("labels").is_some_and(|labels| labels == "any");
        Ok(Self { any, epochs: count(settings, "epochs")?, retain_weight, recipe: recipe(settings)? })
    }
}

impl Method for RandomLabel {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        self.train(student, scene, |_| Ok(()))
    }
}

impl RandomLabel {
    /// `before` is called before each step.
    pub(super) fn train(
        &self,
        student: &mut Model,
        scene: &Scene,
        before: impl Fn(&mut Crew) -> Result<()>,
    ) -> Result<()> {
        let forget: Loader = scene.forget.mislabelled(self.any, &scene.rng.fork("labels"));
        let steps = forget.steps(self.epochs) + scene.retain.steps(self.epochs);
        let mut trainer = scene.trainer(student, &self.recipe, steps)?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, &forget, |student, batch, _| {
                before(student)?;
                cross_entropy(&student.train(&batch.x)?.logits, &batch.y)
            })?;
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                before(student)?;
                Ok((cross_entropy(&student.train(&batch.x)?.logits, &batch.y)? * self.retain_weight)?)
            })?;
        }
        Ok(())
    }
}
