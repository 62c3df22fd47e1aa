//! SalUn: Fan et al., ICLR 2024, <https://arxiv.org/abs/2310.12508>: random labels, only on the weights that matter most
//! for the forget set: the largest share `keep` of |sum over forget batches of the gradient of CE_f| in evaluation mode,
//! all parameters ranked together. The others keep every bit: neither weight decay nor momentum moves them.

use super::random_label::{LABELS, RandomLabel};
use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, epochs, lr, number, slopes};
use crate::batches::Loader;
use crate::error::Result;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE, SHARE};
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
            OPTIMIZER,
            SCHEDULE,
        ],
    },
    make: |settings| Ok(Box::new(Salun { keep: number(settings, "keep")?, inner: RandomLabel::new(settings)? })),
};

#[derive(Debug)]
struct Salun {
    keep: f64,
    inner: RandomLabel,
}

impl Method for Salun {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let mask = largest(&saliency(student, scene.forget, scene.desk)?, self.keep);
        self.inner.unlearn(student, &scene.masked(mask))
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
