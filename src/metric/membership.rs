//! Membership inference. `mia_confidence` is SalUn's MIA-efficacy (Fan et al., ICLR 2024,
//! <https://arxiv.org/abs/2310.12508>): an SVC (RBF, C = 3, gamma = 1/features) learns members (retain) from non-members
//! (test) by the confidence in the true class; the value is the share of the forget set that it calls non-members. The other
//! SVC attacks differ in the feature alone (Song and Mittal, USENIX Security 2021), always of softmax outputs.
//! `mia_loss` is that of the NeurIPS 2023 unlearning challenge: a logistic regression tells forget from test losses; its
//! cross-validated accuracy is 0.5 where nothing leaks.

use rayon::prelude::*;

use super::entropy::{entropy, modified_entropy};
use super::svc::Svc;
use super::{Aim, Answers, Evidence, Measured, Metric, number};
use crate::error::{Error, Result};
use crate::rng::Rng;

const SONG: &str = "Song and Mittal, USENIX Security 2021, https://arxiv.org/abs/2003.10595";

pub const CONFIDENCE: Metric = Metric {
    name: "mia_confidence",
    about: "share of the forget set an SVC on confidence calls unseen",
    paper: "Fan et al., SalUn, ICLR 2024, https://arxiv.org/abs/2310.12508",
    needs: &[],
    measure: |evidence| attack(evidence, "mia_confidence", |row, label| vec![row[label as usize]]),
};

pub const CORRECTNESS: Metric = Metric {
    name: "mia_correctness",
    about: "the same, on whether the answer is right",
    paper: SONG,
    needs: &[],
    measure: |evidence| {
        attack(evidence, "mia_correctness", |row, label| {
            // as in `predictions`, ties go to the first
            let first = row.iter().position(|&p| p == row.iter().copied().fold(0.0, f64::max));
            vec![f64::from(u8::from(first == Some(label as usize)))]
        })
    },
};

pub const ENTROPY: Metric = Metric {
    name: "mia_entropy",
    about: "the same, on the entropy of the output",
    paper: SONG,
    needs: &[],
    measure: |evidence| attack(evidence, "mia_entropy", |row, _| vec![entropy(row)]),
};

pub const MODIFIED_ENTROPY: Metric = Metric {
    name: "mia_modified_entropy",
    about: "the same, on the modified entropy",
    paper: SONG,
    needs: &[],
    measure: |evidence| attack(evidence, "mia_modified_entropy", |row, label| vec![modified_entropy(row, label)]),
};

pub const PROBABILITIES: Metric = Metric {
    name: "mia_probabilities",
    about: "the same, on all probabilities",
    paper: SONG,
    needs: &[],
    measure: |evidence| attack(evidence, "mia_probabilities", |row, _| row.to_vec()),
};

pub const LOSS: Metric = Metric {
    name: "mia_loss",
    about: "accuracy of telling forget from test losses, 0.5 is best",
    paper: "Triantafillou et al., NeurIPS 2023 unlearning challenge, https://arxiv.org/abs/2406.09073",
    needs: &[],
    measure: loss,
};

/// Most members, and most non-members, that the SVC learns from, by one feature and by several: its time grows with the
/// square.
const SHADOWS: [usize; 2] = [10_000, 5_000];
/// Of the SVC.
const PENALTY: f64 = 3.0;
/// Most losses a side.
const LOSSES: usize = 10_000;
const FOLDS: usize = 10;

/// A draw without replacement.
fn sample<T: Clone>(values: &[T], count: usize, mut rng: Rng) -> Vec<T> {
    let mut values = values.to_vec();
    rng.shuffle(&mut values);
    values.truncate(count);
    values
}

/// The share of the forget set that an SVC, trained to tell retain from test images by that feature, calls unseen.
fn attack(evidence: &Evidence, name: &str, feature: fn(&[f64], u32) -> Vec<f64>) -> Result<Measured> {
    let of = |answers: &Answers| answers.rows().map(|(row, label)| feature(row, label)).collect::<Vec<_>>();
    let (retain, test) = (of(&evidence.retain), of(&evidence.test));
    let width = retain.first().map_or(1, Vec::len);
    let count = retain.len().min(test.len()).min(SHADOWS[usize::from(width > 1)]);
    if count == 0 {
        return Err(Error::invalid(format!("{name} needs retain and test images")));
    }
    // The same images for every feature.
    let members = sample(&retain, count, evidence.rng.fork("mia members"));
    let strangers = sample(&test, count, evidence.rng.fork("mia strangers"));
    let asked = of(&evidence.forget);
    if [&members, &strangers, &asked].into_iter().flatten().flatten().any(|value| !value.is_finite()) {
        return Ok(Measured::nothing(format!("{name}: left out, a feature is no number")));
    }
    let svc = Svc::fit(&members, &strangers, (PENALTY, 1.0 / width as f64), evidence.halt)?;
    let strange = svc.decide(&asked, evidence.halt)?.into_iter().filter(|value| *value <= 0.0).count();
    let share = strange as f64 / asked.len().max(1) as f64;
    let note = format!("{name}: SVC trained on {count} retain and {count} test images");
    Ok(Measured::numbers(vec![number(name, 100.0 * share, "%", Aim::LikeOracle)]).note(note))
}

fn loss(evidence: &Evidence) -> Result<Measured> {
    let (forget, test) = (evidence.forget.losses(), evidence.test.losses());
    let count = forget.len().min(test.len()).min(LOSSES);
    if count < FOLDS {
        let note = format!("mia_loss: left out, {count} images a side are too few for {FOLDS} folds");
        return Ok(Measured::nothing(note));
    }
    let losses =
        [sample(&forget, count, evidence.rng.fork("mia forget")), sample(&test, count, evidence.rng.fork("mia test"))]
            .concat();
    // Stratified folds: both sides are in random order already.
    let folds: Vec<Vec<usize>> =
        (0..FOLDS).map(|fold| (0..2 * count).filter(|i| i % count % FOLDS == fold).collect()).collect();
    let member: Vec<bool> = (0..2 * count).map(|i| i < count).collect();
    let fits = cross_validate(&losses, &member, &folds);
    let accuracy = fits.iter().map(|fit| fit.accuracy).sum::<f64>() / FOLDS as f64;
    let note = format!("mia_loss: {count} forget and {count} test losses, {FOLDS} folds");
    Ok(Measured::numbers(vec![number("mia_loss", accuracy, "", Aim::Value(0.5))]).note(note))
}

/// A logistic regression and its accuracy on the rows that were held out.
#[derive(Clone, Debug)]
pub struct Fit1 {
    pub weight: f64,
    pub bias: f64,
    pub accuracy: f64,
}

/// One fit a fold, on the rows outside it.
#[must_use]
pub fn cross_validate(losses: &[f64], member: &[bool], folds: &[Vec<usize>]) -> Vec<Fit1> {
    folds
        .par_iter()
        .map(|held| {
            let mut out = vec![false; losses.len()];
            for &i in held {
                out[i] = true;
            }
            let rows: Vec<(f64, f64)> = (0..losses.len())
                .filter(|&i| !out[i])
                .map(|i| (losses[i], if member[i] { 1.0 } else { -1.0 }))
                .collect();
            let (weight, bias) = logistic(&rows);
            let right = held.iter().filter(|&&i| (weight * losses[i] + bias > 0.0) == member[i]).count();
            Fit1 { weight, bias, accuracy: right as f64 / held.len().max(1) as f64 }
        })
        .collect()
}

/// Minimises w^2/2 + sum log(1 + exp(-s (w x + b))) by Newton's method with halved steps: convex, so it is the optimum.
fn logistic(rows: &[(f64, f64)]) -> (f64, f64) {
    let value = |w: f64, b: f64| -> f64 {
        let softplus = |z: f64| if z > 0.0 { z + (-z).exp().ln_1p() } else { z.exp().ln_1p() };
        w * w / 2.0 + rows.iter().map(|(x, s)| softplus(-s * (w * x + b))).sum::<f64>()
    };
    let (mut w, mut b) = (0.0, 0.0);
    for _ in 0..100 {
        // gradient and Hessian
        let (mut gw, mut gb, mut hww, mut hwb, mut hbb) = (w, 0.0, 1.0, 0.0, 1e-12);
        for &(x, s) in rows {
            let p = 1.0 / (1.0 + (s * (w * x + b)).exp());
            let curve = p * (1.0 - p);
            gw -= s * x * p;
            gb -= s * p;
            hww += curve * x * x;
            hwb += curve * x;
            hbb += curve;
        }
        let det = hww * hbb - hwb * hwb;
        let (dw, db) = ((hbb * gw - hwb * gb) / det, (hww * gb - hwb * gw) / det);
        let here = value(w, b);
        let mut step = 1.0;
        while step > 1e-10 && value(w - step * dw, b - step * db) > here {
            step /= 2.0;
        }
        (w, b) = (w - step * dw, b - step * db);
        if (step * dw).abs().max((step * db).abs()) < 1e-12 * (1.0 + w.abs() + b.abs()) {
            break;
        }
    }
    (w, b)
}
