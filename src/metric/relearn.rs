//! Relearn time: how soon a copy of the model knows the forget set again (Golatkar et al., CVPR 2020,
//! <https://arxiv.org/abs/1911.04933>; in steps, as Chundawat et al., Zero-Shot Machine Unlearning, IEEE TIFS 2023,
//! <https://arxiv.org/abs/2201.05629>, count it). Both compare with the original, which an evaluation does not see: here a
//! copy has relearned once its mean loss on the forget set is within a tenth of the reference's on the retain set, which
//! is how an oracle stands to what it was trained on. A model that still holds traces gets there sooner than the oracle.

use super::figure::{Figure, Series, Shape};
use super::{Aim, Evidence, Measured, Metric, Need, number};
use crate::error::{Error, Result};

pub const RELEARN: Metric = Metric {
    name: "relearn",
    about: "steps until a copy knows the forget set again",
    paper: "Golatkar et al., Eternal sunshine, CVPR 2020, https://arxiv.org/abs/1911.04933",
    needs: &[Need::Reference, Need::Relearning],
    measure,
};

/// The recipe of relearning: SGD without weight decay.
pub const RATE: f64 = 0.01;
pub const MOMENTUM: f64 = 0.9;
pub const BATCH: usize = 128;
/// Steps after which it is given up.
pub const STEPS: usize = 500;
/// Forget images, at most, whose mean loss is looked at after each step.
pub const WATCHED: usize = 512;
/// The loss to reach, in the reference's mean loss on retain.
pub const WITHIN: f64 = 1.1;
/// Losses in the figure, at most.
const DRAWN: usize = 200;

/// How the loss on the forget set fell.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// The loss at which a copy has relearned.
    pub wanted: f64,
    /// Mean losses on the images that were watched: before the first step, then after each.
    pub losses: Vec<f64>,
    pub watched: usize,
}

impl Course {
    /// Whether there is nothing left to learn, or no hope.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reached().is_some() || self.losses.len() > STEPS || self.losses.iter().any(|loss| !loss.is_finite())
    }

    /// The steps that it took.
    #[must_use]
    pub fn reached(&self) -> Option<usize> {
        self.losses.iter().position(|&loss| loss <= self.wanted)
    }
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let course = evidence.relearned.as_ref().ok_or_else(|| Error::invalid("relearn needs a copy to train"))?;
    if course.watched == 0 || !course.wanted.is_finite() {
        return Ok(Measured::nothing("relearn: left out, it needs forget and retain images"));
    }
    let Course { wanted, losses, watched } = course;
    if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
        return Ok(Measured::nothing(format!("relearn: left out, the loss is no number after {step} steps")));
    }
    let taken = losses.len().saturating_sub(1);
    let end = course.reached().unwrap_or(taken);
    let mut measured = Measured::numbers(vec![number("relearn.steps", end as f64, "", Aim::LikeOracle)])
        .note(format!("relearn: loss of {watched} forget images, {BATCH} a step at rate {RATE}"));
    if course.reached().is_none() {
        measured = measured.note(format!("relearn: {taken} where that loss was not reached in {taken} steps"));
    }
    let count = |steps: std::ops::RangeInclusive<usize>| steps.map(|step| step as f64).collect();
    let lines = vec![
        Series::new("forget", count(0..=taken), losses.clone()).thinned(DRAWN),
        Series::new("to reach", vec![0.0, taken.max(1) as f64], vec![*wanted; 2]),
    ];
    let (x_axis, y_axis) = ("steps".to_owned(), "mean loss".to_owned());
    let figure = Figure::new("relearn", "Relearning the forget set", Shape::Curve { x_axis, y_axis, lines });
    Ok(measured.figure(figure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_ends_where_the_loss_is_reached_or_no_number_or_steps_run_out() {
        let course = |losses: &[f64]| Course { wanted: 0.1, losses: losses.to_vec(), watched: 3 };
        assert!(!course(&[0.5, 0.2]).is_over());
        assert_eq!(course(&[0.5, 0.2, 0.1]).reached(), Some(2));
        assert_eq!(course(&[0.05]).reached(), Some(0));
        assert!(course(&[0.5, f64::NAN]).is_over() && course(&[0.5, f64::NAN]).reached().is_none());
        assert!(!course(&[0.5; STEPS]).is_over() && course(&[0.5; STEPS + 1]).is_over());
    }
}
