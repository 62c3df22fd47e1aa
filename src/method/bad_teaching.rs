//! Bad teaching: Chundawat et al., AAAI 2023, <https://arxiv.org/abs/2205.08096>: the student follows a network of random
//! weights on the forget set and the original on the retain set, in batches drawn from both together:
//! min KL(l p_bad + (1 - l) p_original || p_student), l = 1 on forget, p = softmax(logits / T), a mean over images. Both
//! teachers are in evaluation mode. With a generator of features, as the research repository that Recant replaces had it,
//! half of that and half of the same with the second teacher's answers in place of p_bad.

use candle_core::Tensor;

use super::ssl::{self, Gone};
use super::{Method, Registered, SCHEDULE, Scene, count, epochs, lr, number, recipe};
use crate::error::Result;
use crate::nn::loss::{kl_to, softened};
use crate::nn::model::{Model, Teacher};
use crate::nn::optim;
use crate::settings::{Entry, Field, SHARE, Settings, TEMPERATURE, Type};
use crate::trainer::{Loss, Recipe};

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "bad_teaching",
        about: "a random teacher on forget, the original on retain",
        paper: "Chundawat et al., Can bad teaching induce forgetting?, AAAI 2023, https://arxiv.org/abs/2205.08096",
        version: 1,
        fields: &[
            epochs("1"),
            lr("0.0001"),
            Field::or("retain_share", SHARE, "0.3", "share of the retain set that is used, drawn once"),
            Field::or("temperature", TEMPERATURE, "1.0", "softens all outputs"),
            Field::or(
                "reduction",
                Type::Choice(&["image", "value"]),
                "\"image\"",
                "mean over images (the paper) or also over classes (its code)",
            ),
            Field::or(
                "fake_teacher",
                Type::Choice(&["original", "bad"]),
                "\"original\"",
                "whose last layer answers for features that a generator made up",
            ),
            Field { default: crate::settings::Default::Is("\"adam\""), ..optim::FIELD },
            SCHEDULE,
            ssl::FIELD,
        ],
    },
    teacher: true,
    make: |settings| Ok(Box::new(BadTeaching::new(settings)?)),
};

#[derive(Debug)]
pub struct BadTeaching {
    epochs: usize,
    retain_share: f64,
    temperature: f64,
    /// Whether the mean is over classes too.
    by_value: bool,
    /// Whether it is the bad teacher that answers for made-up features.
    bad_on_fakes: bool,
    recipe: Recipe,
}

impl BadTeaching {
    pub fn new(settings: &Settings) -> Result<Self> {
        Ok(Self {
            epochs: count(settings, "epochs")?,
            retain_share: number(settings, "retain_share")?,
            temperature: number(settings, "temperature")?,
            by_value: settings.get("reduction").is_some_and(|reduction| reduction == "value"),
            bad_on_fakes: settings.get("fake_teacher").is_some_and(|teacher| teacher == "bad"),
            recipe: recipe(settings)?,
        })
    }

    /// Unlearns with that network for the bad teacher.
    pub fn follow(&self, student: &mut Model, scene: &Scene, bad: &Teacher) -> Result<()> {
        let original = student.teacher()?;
        let second = scene.second(&original, if self.bad_on_fakes { bad } else { &original })?;
        let retain = scene.retain.sample(self.retain_share, &scene.rng.fork("retain share"));
        let mixed = scene.forget.mixed(&retain);
        let share = if self.by_value { 1.0 / student.arch().classes as f64 } else { 1.0 };
        let mut trainer = scene.trainer(student, &self.recipe, mixed.steps(self.epochs))?;
        for epoch in 0..self.epochs {
            trainer.epoch(epoch, &mixed, |student, batch, index| {
                let second = second.as_ref().map(|second| second.logits(&batch.x, ("mixed", epoch, index)));
                let second = second.transpose()?;
                let [bad, good] = [bad.logits(&batch.x)?, original.logits(&batch.x)?];
                let output = student.train(&batch.x)?;
                let loss = loss(&output.logits, [&bad, &good], second.as_ref(), &batch.y, self.temperature)?;
                Ok(Loss::from((loss * share)?).and("ssl", scene.ssl(student, &output, batch, Gone::Marked)?))
            })?;
        }
        Ok(())
    }
}

/// The loss, of logits `[B, C]`; `forget` is 1 for images to forget, 0 for others.
pub fn loss(
    student: &Tensor,
    [bad, good]: [&Tensor; 2],
    second: Option<&Tensor>,
    forget: &Tensor,
    temperature: f64,
) -> Result<Tensor> {
    let good = softened(good, temperature)?;
    let forget = forget.to_dtype(good.dtype())?.unsqueeze(1)?;
    let follow = |other: &Tensor| -> Result<Tensor> {
        let other = softened(other, temperature)?;
        let target = (&good + (other - &good)?.broadcast_mul(&forget)?)?;
        kl_to(&target, student, temperature)
    };
    let first = follow(bad)?;
    let Some(second) = second else { return Ok(first) };
    Ok(((first + follow(second)?)? * 0.5)?)
}

impl Method for BadTeaching {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        // A stream of its own: never the start that the original had.
        let bad = Model::init(student.arch(), &scene.rng.fork("bad teacher"), student.device())?.teacher()?;
        self.follow(student, scene, &bad)
    }
}
