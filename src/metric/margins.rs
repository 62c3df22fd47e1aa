//! Margins of the forget images, one by one: how far the true class's logit stands out from the others, z_y - log sum of
//! exp(z_k) over k != y, as Georgiev et al., Attribute-to-Delete, 2024, <https://arxiv.org/abs/2410.23232>, compare models
//! sample by sample. A model that has forgotten stands above the oracle as often as below.

use super::figure::{Figure, Series, Shape};
use super::{Aim, Answers, Evidence, Measured, Metric, Need, number, reference};
use crate::error::Result;

pub const MARGINS: Metric = Metric {
    name: "margins",
    about: "how far the true class stands out, image by image, on forget",
    paper: "Georgiev et al., Attribute-to-Delete, 2024, https://arxiv.org/abs/2410.23232",
    needs: &[Need::Reference],
    measure,
};

/// Margins are cut off at this and at its negative.
const CLIP: f64 = 100.0;
/// Images in the figure, at most.
const DRAWN: usize = 200;

/// By image, not cut off. From probabilities: log p_y - log of the sum of the others, which f64 holds to the last digits
/// for logits up to 700 apart, as 1 - p_y would not.
#[must_use]
pub fn margins(answers: &Answers) -> Vec<f64> {
    let others = |row: &[f64], label: u32| {
        row.iter().enumerate().filter(|(class, _)| *class != label as usize).map(|(_, p)| p).sum::<f64>()
    };
    answers.rows().map(|(row, label)| row[label as usize].ln() - others(row, label).ln()).collect()
}

/// Share in [0, 1] of pairs whose first is the larger; an equal pair counts half.
fn above(mine: &[f64], theirs: &[f64]) -> f64 {
    let wins = mine.iter().zip(theirs).map(|(a, b)| if a == b { 0.5 } else { f64::from(u8::from(a > b)) });
    wins.sum::<f64>() / mine.len() as f64
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let clipped = |answers| margins(answers).into_iter().map(|m| m.clamp(-CLIP, CLIP)).collect::<Vec<f64>>();
    let (mine, theirs) = (clipped(&evidence.forget), clipped(&reference(evidence)?.forget));
    if mine.is_empty() {
        return Ok(Measured::nothing("margins: left out, they need forget images"));
    }
    let (low, high) = mine.iter().fold((CLIP, -CLIP), |(low, high), &m| (m.min(low), m.max(high)));
    let mean = mine.iter().sum::<f64>() / mine.len() as f64;
    let numbers = vec![
        number("margins.mean", mean, "", Aim::LikeOracle),
        number("margins.min", low, "", Aim::LikeOracle),
        number("margins.max", high, "", Aim::LikeOracle),
        number("margins.above_reference", 100.0 * above(&mine, &theirs), "%", Aim::Value(50.0)),
    ];
    let sorted = |name: &str, mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let share = (1..=values.len()).map(|rank| 100.0 * rank as f64 / values.len() as f64).collect();
        Series::new(name, values, share).thinned(DRAWN)
    };
    let lines = vec![sorted("this model", mine), sorted("reference", theirs)];
    let (x_axis, y_axis) = ("margin".to_owned(), "% of the forget set at or below".to_owned());
    let figure = Figure::new("margins", "Margins of the forget images", Shape::Curve { x_axis, y_axis, lines });
    Ok(Measured::numbers(numbers).figure(figure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_margins_count_half() {
        assert_eq!(above(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 0.5);
        assert_eq!(above(&[1.0, 5.0, 3.0, 0.0], &[1.0, 2.0, 4.0, -1.0]), 0.625);
    }

    /// From logits themselves, 90 apart and more, where 1 - p is 0 in f64.
    #[test]
    fn margins_of_sure_answers_keep_their_digits() {
        let logits = [95.0, 1.0, 2.0, -30.0, 60.0, 3.5];
        let found = margins(&Answers::new(&logits, vec![0, 0], 3));
        let log_sum = |a: f64, b: f64| a.max(b) + (-(a - b).abs()).exp().ln_1p();
        for (found, want) in found.iter().zip([95.0 - log_sum(1.0, 2.0), -30.0 - log_sum(60.0, 3.5)]) {
            assert!((found - want).abs() < 1e-12 * want.abs(), "{found} {want}");
        }
    }
}
