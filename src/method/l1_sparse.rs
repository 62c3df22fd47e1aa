//! Sparsity-aware unlearning: Jia et al., NeurIPS 2023, <https://arxiv.org/abs/2304.04934>: min CE_r + gamma_t |w|_1,
//! gamma_t = gamma (1 - t / epochs) in epoch t = 0, 1, ..; every parameter is penalised, batch norms and biases too.

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE};
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "l1_sparse",
        about: "fine-tuning with an L1 penalty that fades",
        paper: "Jia et al., Model sparsity can simplify unlearning, NeurIPS 2023, https://arxiv.org/abs/2304.04934",
        version: 1,
        fields: &[
            epochs("10"),
            lr("0.01"),
            Field::or("gamma", POSITIVE, "0.0001", "weight of the penalty in the first epoch"),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    teacher: false,
    make: |settings| {
        let gamma = number(settings, "gamma")?;
        Ok(Box::new(L1Sparse { epochs: count(settings, "epochs")?, gamma, recipe: recipe(settings)? }))
    },
};

#[derive(Debug)]
struct L1Sparse {
    epochs: usize,
    gamma: f64,
    recipe: Recipe,
}

impl Method for L1Sparse {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let mut trainer = scene.trainer(student, &self.recipe, scene.retain.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            let gamma = self.gamma * (1.0 - epoch as f64 / self.epochs as f64);
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                let kept = cross_entropy(&student.train(&batch.x)?.logits, &batch.y)?;
                Ok((kept + (student.l1()? * gamma)?)?)
            })?;
        }
        Ok(())
    }
}
