//! How like two models answer. Activation distance: Golatkar et al., CVPR 2020, <https://arxiv.org/abs/1911.04933>, on softmax
//! outputs. Jensen-Shannon divergence and ZRF: Chundawat et al., AAAI 2023, <https://arxiv.org/abs/2205.08096>, by the
//! paper's formulas (its code swaps the arguments and divides by the classes too). ToW: Zhao et al., NeurIPS 2024,
//! <https://arxiv.org/abs/2406.01257>.

use super::classification::{accuracy, predictions};
use super::{Aim, Answers, Evidence, Measured, Metric, Need, number, reference};
use crate::error::{Error, Result};

pub const AGREEMENT: Metric = Metric {
    name: "agreement",
    about: "share of images that the reference puts in the same class",
    paper: "",
    needs: &[Need::Reference],
    measure: |evidence| by_part(evidence, "agreement", "%", Aim::Higher, agreement),
};

pub const ACTIVATION_DISTANCE: Metric = Metric {
    name: "activation_distance",
    about: "mean distance of the outputs from the reference's",
    paper: "Golatkar et al., CVPR 2020, https://arxiv.org/abs/1911.04933",
    needs: &[Need::Reference],
    measure: |evidence| by_part(evidence, "activation_distance", "", Aim::Lower, |a, b| mean(&distances(a, b))),
};

pub const JS_DIVERGENCE: Metric = Metric {
    name: "js_divergence",
    about: "mean divergence of the outputs from the reference's, in nats",
    paper: "Chundawat et al., AAAI 2023, https://arxiv.org/abs/2205.08096",
    needs: &[Need::Reference],
    measure: |evidence| by_part(evidence, "js_divergence", "", Aim::Lower, |a, b| mean(&divergences(a, b))),
};

pub const TOW: Metric = Metric {
    name: "tow",
    about: "product of 1 - accuracy gap over forget, retain and test",
    paper: "Zhao et al., What makes unlearning hard, NeurIPS 2024, https://arxiv.org/abs/2406.01257",
    needs: &[Need::Reference],
    measure: tug_of_war,
};

pub const ZRF: Metric = Metric {
    name: "zrf",
    about: "likeness of answers on forget to a random network's",
    paper: "Chundawat et al., AAAI 2023, https://arxiv.org/abs/2205.08096",
    needs: &[Need::Random],
    measure: zrf,
};

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// |p - q|, image by image; in [0, sqrt 2].
#[must_use]
pub fn distances(a: &Answers, b: &Answers) -> Vec<f64> {
    let pairs = a.rows().zip(b.rows());
    pairs.map(|((p, _), (q, _))| p.iter().zip(q).map(|(p, q)| (p - q).powi(2)).sum::<f64>().sqrt()).collect()
}

/// Jensen-Shannon divergence, image by image; in [0, log 2].
#[must_use]
pub fn divergences(a: &Answers, b: &Answers) -> Vec<f64> {
    let term = |p: f64, m: f64| if p > 0.0 { p * (p / m).ln() } else { 0.0 };
    let divergence = |p: &[f64], q: &[f64]| {
        let halves = p.iter().zip(q).map(|(&p, &q)| term(p, f64::midpoint(p, q)) + term(q, f64::midpoint(p, q)));
        halves.sum::<f64>() / 2.0
    };
    a.rows().zip(b.rows()).map(|((p, _), (q, _))| divergence(p, q)).collect()
}

fn agreement(a: &Answers, b: &Answers) -> f64 {
    let same = predictions(a).iter().zip(predictions(b)).filter(|(a, b)| **a == *b).count();
    100.0 * same as f64 / a.labels.len().max(1) as f64
}

/// (1 - |gap|) of forget, retain and test accuracies in [0, 1], multiplied.
#[must_use]
pub fn tow(mine: [f64; 3], theirs: [f64; 3]) -> f64 {
    mine.iter().zip(theirs).map(|(mine, theirs)| 1.0 - (mine - theirs).abs()).product()
}

fn by_part(
    evidence: &Evidence,
    name: &str,
    unit: &str,
    aim: Aim,
    measure: impl Fn(&Answers, &Answers) -> f64,
) -> Result<Measured> {
    let other = reference(evidence)?;
    let parts = [("forget", &evidence.forget, &other.forget), ("test", &evidence.test, &other.test)];
    let there = parts.into_iter().filter(|(_, mine, _)| !mine.is_empty());
    let number = |(part, mine, theirs)| number(&format!("{name}.{part}"), measure(mine, theirs), unit, aim);
    Ok(Measured::numbers(there.map(number).collect()))
}

fn tug_of_war(evidence: &Evidence) -> Result<Measured> {
    let other = reference(evidence)?;
    let of = |forget: &Answers, retain: &Answers, test: &Answers| {
        Some([accuracy(forget, |_| true)?, accuracy(retain, |_| true)?, accuracy(test, |_| true)?])
    };
    let mine = of(&evidence.forget, &evidence.retain, &evidence.test);
    let Some((mine, theirs)) = mine.zip(of(&other.forget, &other.retain, &other.test)) else {
        return Ok(Measured::nothing("tow: left out, it needs forget, retain and test images"));
    };
    Ok(Measured::numbers(vec![number("tow", tow(mine, theirs), "", Aim::Higher)]))
}

fn zrf(evidence: &Evidence) -> Result<Measured> {
    let random = evidence.random.as_ref().ok_or_else(|| Error::invalid("zrf needs a random network's answers"))?;
    let value = 1.0 - mean(&divergences(&evidence.forget, random));
    Ok(Measured::numbers(vec![number("zrf", value, "", Aim::LikeOracle)]))
}
