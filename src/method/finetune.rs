//! Fine-tuning on what is kept, in the hope that the rest fades: Golatkar et al., CVPR 2020,
//! <https://arxiv.org/abs/1911.04933>; settings of the l1-sparse paper's code (Jia et al. 2023).

use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, recipe};
use crate::error::Result;
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::settings::Entry;
use crate::trainer::Recipe;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "finetune",
        about: "goes on training, on the retain set alone",
        paper: "Golatkar et al., Eternal sunshine, CVPR 2020, https://arxiv.org/abs/1911.04933",
        version: 1,
        fields: &[epochs("10"), lr("0.01"), OPTIMIZER, SCHEDULE],
    },
    teacher: false,
    make: |settings| Ok(Box::new(Finetune { epochs: count(settings, "epochs")?, recipe: recipe(settings)? })),
};

#[derive(Debug)]
struct Finetune {
    epochs: usize,
    recipe: Recipe,
}

impl Method for Finetune {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let mut trainer = scene.trainer(student, &self.recipe, scene.retain.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, scene.retain, |student, batch, _| {
                cross_entropy(&student.train(&batch.x)?.logits, &batch.y)
            })?;
        }
        Ok(())
    }
}
