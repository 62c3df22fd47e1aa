//! Entropies of softmax outputs, in nats: Song and Mittal, USENIX Security 2021, <https://arxiv.org/abs/2003.10595>. The
//! modified one falls where the true class is sure and rises where a wrong one is. Published unlearning code often has it
//! with the wrong index and log p for log(1 - p); this is the paper's.

use super::{Aim, Answers, Evidence, Measured, Metric, number};
use crate::error::Result;

pub const ENTROPY: Metric = Metric {
    name: "entropy",
    about: "mean entropy of the outputs, forget and test, in nats",
    paper: "Song and Mittal, USENIX Security 2021, https://arxiv.org/abs/2003.10595",
    needs: &[],
    measure,
};

/// No logarithm is below that of this.
const FLOOR: f64 = 1e-30;

fn log(p: f64) -> f64 {
    p.max(FLOOR).ln()
}

/// -sum p log p.
#[must_use]
pub fn entropy(row: &[f64]) -> f64 {
    -row.iter().map(|&p| p * log(p)).sum::<f64>()
}

/// -(1 - p_y) log p_y - sum over the other classes of p log(1 - p).
#[must_use]
pub fn modified_entropy(row: &[f64], label: u32) -> f64 {
    let terms = row.iter().enumerate().map(
        |(class, &p)| {
            if class == label as usize { (1.0 - p) * log(p) } else { p * log(1.0 - p) }
        },
    );
    -terms.sum::<f64>()
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let mean =
        |answers: &Answers| answers.rows().map(|(row, _)| entropy(row)).sum::<f64>() / answers.labels.len() as f64;
    let parts = [("entropy.forget", &evidence.forget), ("entropy.test", &evidence.test)];
    let numbers = parts.into_iter().filter(|(_, answers)| !answers.is_empty());
    let numbers = numbers.map(|(name, answers)| number(name, mean(answers), "", Aim::LikeOracle));
    Ok(Measured::numbers(numbers.collect()))
}
