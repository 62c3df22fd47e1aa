//! SCRUB in one step, as the research repository that Recant replaces had it: towards the original on the retain images of
//! a mixed batch and away from it on the forget images, 0.5 (KL_r n_r - KL_f n_f) / B with KL(p_original || p_student) as
//! a mean over a side's images. No cross-entropy and no square of the temperature. A side may be empty. With a generator of
//! features the same with the second teacher is added.

use candle_core::Tensor;

use super::ssl::{self, Gone};
use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::{Error, Result};
use crate::nn::loss::distill;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, TEMPERATURE};
use crate::trainer::{Loss, Recipe};

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "scrub_joint",
        about: "scrub with both sides in one step, no cross-entropy",
        paper: "after Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023, https://arxiv.org/abs/2302.09880",
        version: 1,
        fields: &[
            epochs("2"),
            lr("0.005"),
            Field::or("temperature", TEMPERATURE, "1.0", "softens both outputs"),
            OPTIMIZER,
            SCHEDULE,
            ssl::FIELD,
        ],
    },
    teacher: true,
    make: |settings| {
        let temperature = number(settings, "temperature")?;
        Ok(Box::new(ScrubJoint { epochs: count(settings, "epochs")?, temperature, recipe: recipe(settings)? }))
    },
};

#[derive(Debug)]
struct ScrubJoint {
    epochs: usize,
    temperature: f64,
    recipe: Recipe,
}

impl Method for ScrubJoint {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let teacher = student.teacher()?;
        let second = scene.second(&teacher, &teacher)?;
        let mixed = scene.forget.mixed(scene.retain);
        let mut trainer = scene.trainer(student, &self.recipe, mixed.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, &mixed, |student, batch, index| {
                let mut teachers = vec![teacher.logits(&batch.x)?];
                if let Some(second) = &second {
                    teachers.push(second.logits(&batch.x, ("mixed", epoch, index))?);
                }
                let output = student.train(&batch.x)?;
                let loss = loss(&output.logits, &teachers, &batch.y, self.temperature)?;
                Ok(Loss::from(loss).and("ssl", scene.ssl(student, &output, batch, Gone::Marked)?))
            })?;
        }
        Ok(())
    }
}

/// The loss: a sum over teachers, of logits `[B, C]`; `forget` is 1 for images to forget, 0 for others.
pub fn loss(student: &Tensor, teachers: &[Tensor], forget: &Tensor, temperature: f64) -> Result<Tensor> {
    let mut terms = teachers.iter().map(|teacher| joint(student, teacher, forget, temperature));
    let first = terms.next().ok_or_else(|| Error::invalid("there is no teacher"))??;
    terms.try_fold(first, |sum, term| Ok((sum + term?)?))
}

fn joint(student: &Tensor, teacher: &Tensor, forget: &Tensor, temperature: f64) -> Result<Tensor> {
    let sides = forget.to_vec1::<u32>()?;
    let mut loss: Option<Tensor> = None;
    for (side, weight) in [(0, 0.5), (1, -0.5)] {
        let rows: Vec<u32> = (0..sides.len() as u32).filter(|&row| sides[row as usize] == side).collect();
        if rows.is_empty() {
            continue;
        }
        let share = weight * rows.len() as f64 / sides.len() as f64;
        let rows = Tensor::new(rows, student.device())?;
        let far = distill(&student.index_select(&rows, 0)?, &teacher.index_select(&rows, 0)?, temperature)?;
        let term = (far * share)?;
        loss = Some(loss.map_or(Ok(term.clone()), |other| other + term)?);
    }
    loss.ok_or_else(|| Error::invalid("the batch is empty"))
}
