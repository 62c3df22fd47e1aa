//! Selective synaptic dampening: Foster et al., AAAI 2024, <https://arxiv.org/abs/2308.07707>. I = mean over batches of
//! the squared gradient of the batch's mean CE, in evaluation mode, as in the released code (not per image); I_D over
//! all data, the forget set included. Where I_f > alpha I_D, w is multiplied by min(lambda I_D / I_f, 1). No training.

use super::{Method, Registered, Scene, number, slopes};
use crate::batches::Loader;
use crate::error::Result;
use crate::nn::model::Model;
use crate::settings::{Entry, Field, POSITIVE};
use crate::stage::Desk;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "ssd",
        about: "shrinks weights that the forget set needs most",
        paper: "Foster et al., Selective synaptic dampening, AAAI 2024, https://arxiv.org/abs/2308.07707",
        version: 1,
        fields: &[
            Field::or("alpha", POSITIVE, "10.0", "chosen: importance above that many times the one for all data"),
            Field::or("lambda", POSITIVE, "1.0", "what the ratio of importances is multiplied by"),
        ],
    },
    teacher: false,
    make: |settings| Ok(Box::new(Ssd { alpha: number(settings, "alpha")?, lambda: number(settings, "lambda")? })),
};

#[derive(Debug)]
struct Ssd {
    alpha: f64,
    lambda: f64,
}

impl Method for Ssd {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let all = importance(student, &scene.forget.with(scene.retain), scene.desk)?;
        let forget = importance(student, scene.forget, scene.desk)?;
        let keep = scene.mask.clone();
        student.update(|theta| {
            let factors = factors(&all, &forget, self.alpha, self.lambda);
            for (index, (weight, factor)) in theta.iter_mut().zip(factors).enumerate() {
                let open = keep.as_ref().is_none_or(|keep| keep.get(index).is_some_and(|&k| k != 0.0));
                if let Some(factor) = factor.filter(|_| open) {
                    *weight *= factor;
                }
            }
            Ok(())
        })
    }
}

/// The importance of each parameter for the loader's first epoch.
pub fn importance(model: &Model, loader: &Loader, desk: &dyn Desk) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; model.len()];
    let batches = slopes(model, loader, desk, |gradient| {
        sum.iter_mut().zip(gradient).for_each(|(sum, &g)| *sum += f64::from(g).powi(2));
    })?;
    Ok(sum.into_iter().map(|sum| sum / batches.max(1) as f64).collect())
}

/// What each weight is multiplied by; none where it stays.
#[must_use]
pub fn factors(all: &[f64], forget: &[f64], alpha: f64, lambda: f64) -> Vec<Option<f32>> {
    let factor =
        |(&all, &forget): (&f64, &f64)| (forget > alpha * all).then(|| (lambda * all / forget).min(1.0) as f32);
    all.iter().zip(forget).map(factor).collect()
}
