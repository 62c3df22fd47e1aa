//! SalUn: Fan et al., ICLR 2024, <https://arxiv.org/abs/2310.12508>: random labels, only on the weights that matter most
//! for the forget set: the largest share `keep` of |sum over forget batches of the gradient of CE_f| in evaluation mode,
//! all parameters ranked together. The others keep every bit: neither weight decay nor momentum moves them.
//!
//! SalUn-soft (the paper's appendix, as its published code has it) knows no mask: after each step all weights are drawn
//! back towards the original's by soft thresholding, theta_o + sign(d) max(|d| - tau, 0) with d = theta - theta_o, tau such
//! that a share (1 - keep) (1 - t / T) of them comes to lie at the original's values; the share falls to 0 at the end.

use super::random_label::{LABELS, RandomLabel};
use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, epochs, lr, number, slopes};
use crate::batches::Loader;
use crate::error::Result;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE, SHARE, Type};
use crate::stage::Desk;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "salun",
        about: "random labels, on the most salient weights alone",
        paper: "Fan et al., SalUn, ICLR 2024, https://arxiv.org/abs/2310.12508",
        version: 1,
        fields: &[
            epochs("10"),
            lr("0.013"),
            Field::or("keep", SHARE, "0.5", "share of the weights that may move"),
            Field::or("retain_weight", POSITIVE, "1.0", "weight of the retain loss"),
            LABELS,
            Field::or(
                "soft",
                Type::Bool,
                "false",
                "SalUn-soft: all weights move, but are drawn back to the original's",
            ),
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    teacher: false,
    make: |settings| {
        let (keep, inner) = (number(settings, "keep")?, RandomLabel::new(settings)?);
        Ok(Box::new(Salun { keep, soft: settings.get("soft").is_some_and(|soft| soft == true), inner }))
    },
};

#[derive(Debug)]
struct Salun {
    keep: f64,
    soft: bool,
    inner: RandomLabel,
}

impl Method for Salun {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        if self.soft {
            let original = student.theta()?;
            return self.inner.train(student, scene, |student| {
                let (done, all) = student.steps();
                let share = (1.0 - self.keep) * (1.0 - done as f64 / all.max(1) as f64);
                student.update(|theta| {
                    drawn_back(theta, &original, if done == 0 { 0.0 } else { share });
                    Ok(())
                })
            });
        }
        let mask = largest(&saliency(student, scene.forget, scene.desk)?, self.keep);
        self.inner.unlearn(student, &scene.masked(mask))
    }
}

/// Soft thresholding of theta - original, by the threshold under which that share of the weights, rounded down, comes to
/// lie at the original's values.
pub fn drawn_back(theta: &mut [f32], original: &[f32], share: f64) {
    let mut far: Vec<f32> = theta.iter().zip(original).map(|(weight, o)| (weight - o).abs()).collect();
    let count = (share * far.len() as f64).floor() as usize;
    if count == 0 {
        return;
    }
    let threshold = *far.select_nth_unstable_by(count - 1, f32::total_cmp).1;
    for (weight, &o) in theta.iter_mut().zip(original) {
        let d = *weight - o;
        *weight = if d.abs() > threshold { o + d - threshold.copysign(d) } else { o };
    }
}

/// |sum of the gradients of the batches' mean CE| over the loader's first epoch, by parameter.
pub fn saliency(model: &Model, loader: &Loader, desk: &dyn Desk) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; model.len()];
    slopes(model, loader, desk, |gradient| {
        sum.iter_mut().zip(gradient).for_each(|(sum, &g)| *sum += f64::from(g));
    })?;
    Ok(sum.into_iter().map(f64::abs).collect())
}

/// Ones for the largest share of the values, rounded down; of equal values the first.
#[must_use]
pub fn largest(values: &[f64], share: f64) -> Vec<f32> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let mut mask = vec![0.0; values.len()];
    for &index in order.iter().take((share * values.len() as f64).floor() as usize) {
        mask[index] = 1.0;
    }
    mask
}
