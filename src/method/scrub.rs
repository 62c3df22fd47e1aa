//! SCRUB: Kurmanji et al., NeurIPS 2023, <https://arxiv.org/abs/2302.09880>. With d = T^2 KL(original || student), both
//! softened by T: max steps on the forget set minimise -d, min steps on the retain set gamma CE_r + alpha d. In each
//! epoch first the max steps, in the first `msteps` epochs, then the min steps; one optimiser does both.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::Result;
use crate::nn::loss::{cross_entropy, distill};
use crate::nn::model::Model;
use crate::settings::{Entry, Field, NATURAL, POSITIVE, TEMPERATURE};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "scrub",
        about: "away from the original on forget, towards it on retain",
        paper: "Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023, https://arxiv.org/abs/2302.09880",
        version: 1,
        fields: &[
            epochs("5"),
            lr("0.0005"),
            Field::or("msteps", NATURAL, "3", "epochs that begin with a pass over the forget set"),
            Field::or("gamma", POSITIVE, "1.0", "weight of the retain cross-entropy"),
            Field::or("alpha", POSITIVE, "0.5", "weight of the retain divergence"),
            Field::or("temperature", TEMPERATURE, "4.0", "softens both outputs"),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    make: |settings| {
        Ok(Box::new(Scrub {
            epochs: count(settings, "epochs")?,
            msteps: count(settings, "msteps")?,
            gamma: number(settings, "gamma")?,
            alpha: number(settings, "alpha")?,
            temperature: number(settings, "temperature")?,
            recipe: recipe(settings)?,
        }))
    },
};

#[derive(Debug)]
struct Scrub {
    epochs: usize,
    msteps: usize,
    gamma: f64,
    alpha: f64,
    temperature: f64,
    recipe: Recipe,
}

impl Method for Scrub {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let teacher = student.teacher()?;
        let square = self.temperature * self.temperature;
        let steps = scene.forget.steps(self.msteps.min(self.epochs)) + scene.retain.steps(self.epochs);
        let mut trainer = scene.trainer(student, &self.recipe, steps)?;
        for epoch in 0..self.epochs {
            if epoch < self.msteps {
                trainer.epoch(epoch, scene.forget, |student, batch, _| {
                    let far = distill(&student.train(&batch.x)?.logits, &teacher.logits(&batch.x)?, self.temperature)?;
                    Ok((far * -square)?)
                })?;
            }
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                let logits = student.train(&batch.x)?.logits;
                let far = distill(&logits, &teacher.logits(&batch.x)?, self.temperature)?;
                Ok(((cross_entropy(&logits, &batch.y)? * self.gamma)? + (far * (self.alpha * square))?)?)
            })?;
        }
        Ok(())
    }
}
