//! SCRUB: Kurmanji et al., NeurIPS 2023, <https://arxiv.org/abs/2302.09880>. With d = T^2 KL(original || student), both
//! softened by T: max steps on the forget set minimise -d, min steps on the retain set gamma CE_r + alpha d. In each
//! epoch first the max steps, in the first `msteps` epochs, then the min steps; one optimiser does both. With a generator of
//! features d is the sum over both teachers, as in `scrub_joint`.
//!
//! SCRUB+R (section 3.2, rewinding), for requests where privacy counts: forgetting too much shows as well as too little. Of
//! all epochs the one is taken whose error on the forget set is nearest to the error that the last one has on images of
//! the same classes that were never trained on: the validation part.

use candle_core::Tensor;

use super::ssl::{self, Gone};
use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, count, epochs, error_rate, lr, number, recipe};
use crate::error::{Error, Result};
use crate::nn::loss::{cross_entropy, distill};
use crate::nn::model::Model;
use crate::settings::{Entry, Field, NATURAL, POSITIVE, TEMPERATURE, Type};
use crate::trainer::{Loss, Recipe};

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
            Field::or(
                "rewind",
                Type::Bool,
                "false",
                "SCRUB+R: back to the epoch that forgot as an unseen image would be",
            ),
            OPTIMIZER,
            SCHEDULE,
            ssl::FIELD,
        ],
    },
    teacher: true,
    make: |settings| {
        Ok(Box::new(Scrub {
            epochs: count(settings, "epochs")?,
            msteps: count(settings, "msteps")?,
            gamma: number(settings, "gamma")?,
            alpha: number(settings, "alpha")?,
            temperature: number(settings, "temperature")?,
            rewind: settings.get("rewind").is_some_and(|rewind| rewind == true),
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
    rewind: bool,
    recipe: Recipe,
}

impl Method for Scrub {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let teacher = student.teacher()?;
        let square = self.temperature * self.temperature;
        let second = scene.second(&teacher, &teacher)?;
        let far = |student: &Tensor, x: &Tensor, at: (&str, usize, usize)| -> Result<Tensor> {
            let far = distill(student, &teacher.logits(x)?, self.temperature)?;
            let Some(second) = &second else { return Ok(far) };
            Ok((far + distill(student, &second.logits(x, at)?, self.temperature)?)?)
        };
        let steps = scene.forget.steps(self.msteps.min(self.epochs)) + scene.retain.steps(self.epochs);
        let mut trainer = scene.trainer(student, &self.recipe, steps)?;
        let mut states = Vec::new();
        for epoch in 0..self.epochs {
            if epoch < self.msteps {
                trainer.epoch(epoch, scene.forget, |student, batch, index| {
                    let output = student.train(&batch.x)?;
                    let far = far(&output.logits, &batch.x, ("forget", epoch, index))?;
                    Ok(Loss::from((far * -square)?).and("ssl", scene.ssl(student, &output, batch, Gone::All)?))
                })?;
            }
            trainer.epoch(epoch, scene.retain, |student, batch, index| {
                let output = student.train(&batch.x)?;
                let far = far(&output.logits, &batch.x, ("retain", epoch, index))?;
                let near = ((cross_entropy(&output.logits, &batch.y)? * self.gamma)? + (far * (self.alpha * square))?)?;
                Ok(Loss::from(near).and("ssl", scene.ssl(student, &output, batch, Gone::Nothing)?))
            })?;
            if self.rewind {
                let error = trainer.keep(&format!("error {epoch}"), |student| {
                    Ok(Tensor::new(error_rate(student, scene.forget, scene.desk)?, &candle_core::Device::Cpu)?)
                })?;
                let theta = trainer.keep(&format!("theta {epoch}"), |student| student.theta_tensor())?;
                let stats = trainer.keep(&format!("stats {epoch}"), |student| Ok(student.stats()))?;
                states.push((error.to_scalar::<f64>()?, theta, stats));
            }
        }
        if self.rewind {
            let unseen = scene.validation.ok_or_else(|| {
                Error::invalid(
                    "`rewind` needs images that were never trained on: give the data set a `validation` part",
                )
            })?;
            let aim = trainer.aside(|student| error_rate(student, unseen, scene.desk))?;
            let far = |error: f64| (error - aim).abs();
            // of equal ones the last
            let nearest = states.iter().enumerate().rev().min_by(|a, b| far(a.1.0).total_cmp(&far(b.1.0)));
            let (epoch, (error, theta, stats)) =
                nearest.ok_or_else(|| Error::invalid("there is no epoch to go back to"))?;
            let (error, aim) = (100.0 * error, 100.0 * aim);
            scene.desk.note(&format!(
                "rewound to epoch {} of {}: forget error {error:.2} %, unseen images {aim:.2} %",
                epoch + 1,
                self.epochs
            ));
            drop(trainer);
            student.set_theta_tensor(theta)?;
            student.set_stats(stats)?;
        }
        Ok(())
    }
}
