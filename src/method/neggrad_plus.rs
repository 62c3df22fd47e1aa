//! NegGrad+: descent on the retain set and ascent on the forget set in one step, Kurmanji et al., NeurIPS 2023,
//! <https://arxiv.org/abs/2302.09880>: min a CE_r - (1 - a) CE_f. The forget batches go round, from the first one in
//! every epoch; each side has its own forward pass, the retain batch first.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, SHARE};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "neggrad_plus",
        about: "descent on the retain set, ascent on the forget set",
        paper: "Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023, https://arxiv.org/abs/2302.09880",
        version: 1,
        fields: &[
            epochs("10"),
            lr("0.01"),
            Field::or("a", SHARE, "0.95", "weight of the retain loss; the forget loss has 1 - a"),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    teacher: false,
    make: |settings| {
        let a = number(settings, "a")?;
        Ok(Box::new(NegGradPlus { epochs: count(settings, "epochs")?, a, recipe: recipe(settings)? }))
    },
};

#[derive(Debug)]
struct NegGradPlus {
    epochs: usize,
    a: f64,
    recipe: Recipe,
}

impl Method for NegGradPlus {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let mut trainer = scene.trainer(student, &self.recipe, scene.retain.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            let forget = scene.forget.epoch(epoch);
            trainer.epoch(epoch, scene.retain, |student, retain, index| {
                let forget = forget.batch(index)?;
                let kept = cross_entropy(&student.train(&retain.x)?.logits, &retain.y)?;
                let forgotten = cross_entropy(&student.train(&forget.x)?.logits, &forget.y)?;
                Ok(((kept * self.a)? - (forgotten * (1.0 - self.a))?)?)
            })?;
        }
        Ok(())
    }
}
