//! Trains a copy of a model on the forget set until it knows it again.

use candle_core::Device;

use super::look::{Tell, logits};
use crate::data::Split;
use crate::error::{Result, finite};
use crate::metric::Answers;
use crate::metric::relearn::{BATCH, Course, MOMENTUM, RATE, WATCHED};
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::nn::optim::{Rule, Stepper};
use crate::nn::transform::Transform;
use crate::rng::Rng;
use crate::stage::unlearn::side;

/// Down to the loss that is wanted; `tell` hears of each look at the forget set.
pub(super) fn relearn(
    model: &Model,
    split: &Split,
    wanted: f64,
    rng: &Rng,
    device: &Device,
    tell: &mut Tell,
) -> Result<Course> {
    let mut watched = split.forget.clone();
    rng.fork("watched").shuffle(&mut watched);
    watched.truncate(WATCHED);
    watched.sort_unstable();
    let images = &split.images;
    let labels: Vec<u32> = watched.iter().map(|&index| images.train.labels[index as usize]).collect();
    let mut look = |copy: &Model| -> Result<f64> {
        let mut quiet = |_: usize| tell(0);
        let logits = logits(copy, images, &images.train, &watched, &mut quiet)?;
        if finite(&logits, "the logits").is_err() {
            return Ok(f64::NAN);
        }
        let losses = Answers::new(&logits, labels.clone(), images.classes.len()).losses();
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    };
    let mut course = Course { wanted, losses: Vec::new(), watched: watched.len() };
    if watched.is_empty() || !wanted.is_finite() {
        return Ok(course);
    }
    let mut copy = model.copy()?;
    course.losses.push(look(&copy)?);
    let rule = Rule::Sgd { momentum: MOMENTUM, weight_decay: 0.0, nesterov: false };
    let mut stepper = Stepper::new(rule, copy.len(), None);
    let loader =
        side((split, &images.train), &split.forget, (BATCH, Transform::default(), rng.fork("batches")), device);
    for number in 0.. {
        let epoch = loader.epoch(number);
        for index in 0..epoch.len {
            if course.is_over() {
                return Ok(course);
            }
            let batch = epoch.batch(index)?;
            let loss = cross_entropy(&copy.train(&batch.x)?.logits, &batch.y)?;
            let gradient = copy.gradient(&loss)?;
            copy.update(|theta| stepper.step(theta, &gradient, RATE))?;
            course.losses.push(look(&copy)?);
        }
    }
    Ok(course)
}
