//! Gradient ascent on the forget set: Golatkar et al., CVPR 2020, <https://arxiv.org/abs/1911.04933>; Graves et al.,
//! AAAI 2021. Minimises -weight CE on the forget set.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "neggrad",
        about: "gradient ascent on the forget set",
        paper: "Golatkar et al., Eternal sunshine, CVPR 2020, https://arxiv.org/abs/1911.04933",
        version: 1,
        fields: &[
            epochs("5"),
            lr("0.0001"),
            Field::or("weight", POSITIVE, "1.0", "what the loss is multiplied by before its sign is turned"),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    teacher: false,
    make: |settings| {
        let weight = number(settings, "weight")?;
        Ok(Box::new(NegGrad { epochs: count(settings, "epochs")?, weight, recipe: recipe(settings)? }))
    },
};

#[derive(Debug)]
struct NegGrad {
    epochs: usize,
    weight: f64,
    recipe: Recipe,
}

impl Method for NegGrad {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let mut trainer = scene.trainer(student, &self.recipe, scene.forget.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, scene.forget, |student, batch, _| {
                let loss = cross_entropy(&student.train(&batch.x)?.logits, &batch.y)?;
                Ok((loss * -self.weight)?)
            })?;
        }
        Ok(())
    }
}
