//! Open-set recognition: Dhamija et al., Reducing network agnostophobia, NeurIPS 2018,
//! <https://arxiv.org/abs/1811.04110>.

use super::roc::Curve;

/// The area under the curve of correct classification rate against false positive rate: at a threshold the first is the
/// share of known images that are classified right with a score not below it, the second that share of unknown images.
/// Known: score, and whether the class is right. In [0, 1]; 0 where either side is empty.
#[must_use]
pub fn oscr(known: &[(f64, bool)], unknown: &[f64]) -> f64 {
    let right: Vec<f64> = known.iter().filter(|(_, right)| *right).map(|(score, _)| *score).collect();
    if right.is_empty() || unknown.is_empty() {
        return 0.0;
    }
    // what is classified wrong counts at no threshold: a ROC curve of the rest, as high as their share
    Curve::new(&right, unknown).area() * right.len() as f64 / known.len() as f64
}
