//! How well losses tell forget from test images, at every threshold: an attack by one score, as Carlini et al., S&P 2022,
//! <https://arxiv.org/abs/2112.03570>, ask to see it: the area under the curve, and the true positives at few false ones.

use super::figure::{Figure, Series, Shape};
use super::{Aim, Evidence, Measured, Metric, number};
use crate::error::Result;

pub const ROC: Metric = Metric {
    name: "mia_roc",
    about: "area under the curve of telling forget from test by loss",
    paper: "Carlini et al., S&P 2022, https://arxiv.org/abs/2112.03570",
    needs: &[],
    measure,
};

/// Points of the curve in the figure, at most; the numbers come from all of them.
const DRAWN: usize = 400;

/// A ROC curve: a threshold calls scores at or above it positive.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Distinct scores, falling.
    pub thresholds: Vec<f64>,
    /// Shares called positive: 0 first, then one a threshold.
    pub tpr: Vec<f64>,
    pub fpr: Vec<f64>,
}

impl Curve {
    #[must_use]
    pub fn new(positive: &[f64], negative: &[f64]) -> Self {
        let mut all: Vec<(f64, bool)> = positive.iter().map(|&score| (score, true)).collect();
        all.extend(negative.iter().map(|&score| (score, false)));
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut thresholds, mut tpr, mut fpr) = (Vec::new(), vec![0.0], vec![0.0]);
        let (mut hits, mut alarms) = (0.0, 0.0);
        for (index, &(score, is_positive)) in all.iter().enumerate() {
            if is_positive {
                hits += 1.0;
            } else {
                alarms += 1.0;
            }
            if all.get(index + 1).is_none_or(|next| next.0 != score) {
                thresholds.push(score);
                tpr.push(hits / positive.len() as f64);
                fpr.push(alarms / negative.len() as f64);
            }
        }
        Self { thresholds, tpr, fpr }
    }

    /// P(positive > negative) + P(equal) / 2.
    #[must_use]
    pub fn area(&self) -> f64 {
        let sides = self.tpr.windows(2).zip(self.fpr.windows(2));
        sides.map(|(t, f)| (f[1] - f[0]) * (t[0] + t[1]) / 2.0).sum()
    }

    /// The largest share of true positives with no more than that share of false ones; not interpolated.
    #[must_use]
    pub fn tpr_at(&self, fpr: f64) -> f64 {
        let within = self.tpr.iter().zip(&self.fpr).filter(|(_, f)| **f <= fpr);
        within.fold(0.0, |best, (t, _)| best.max(*t))
    }

    /// The best mean of true positives and true negatives.
    #[must_use]
    pub fn best_balanced_accuracy(&self) -> f64 {
        self.tpr.iter().zip(&self.fpr).fold(0.0, |best, (t, f)| best.max((t + 1.0 - f) / 2.0))
    }
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let score = |losses: Vec<f64>| losses.into_iter().map(|loss| -loss).collect::<Vec<f64>>();
    let (forget, test) = (score(evidence.forget.losses()), score(evidence.test.losses()));
    if forget.is_empty() || test.is_empty() {
        return Ok(Measured::nothing("mia_roc: left out, it needs forget and test images"));
    }
    let curve = Curve::new(&forget, &test);
    let numbers = vec![
        number("mia_roc.area", curve.area(), "", Aim::Value(0.5)),
        number("mia_roc.tpr_at_1", 100.0 * curve.tpr_at(0.01), "%", Aim::Value(1.0)),
    ];
    let note = format!("mia_roc: {} forget and {} test losses", forget.len(), test.len());
    let lines = vec![
        Series::new("loss", curve.fpr, curve.tpr).thinned(DRAWN),
        Series::new("guessing", vec![0.0, 1.0], vec![0.0, 1.0]),
    ];
    let (x_axis, y_axis) = ("false positive rate".to_owned(), "true positive rate".to_owned());
    let figure = Figure::new("mia_roc", "Telling forget from test by loss", Shape::Curve { x_axis, y_axis, lines });
    Ok(Measured::numbers(numbers).figure(figure).note(note))
}
