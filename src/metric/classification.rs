//! Accuracy and loss, over samples (not means of batch means).

use super::{Aim, Answers, Evidence, Measured, Metric, number};
use crate::error::Result;

pub const ACCURACY: Metric = Metric {
    name: "accuracy",
    about: "share of images classified right, by part, in percent",
    paper: "",
    measure: accuracies,
};

pub const LOSS: Metric =
    Metric { name: "loss", about: "mean cross-entropy by part, in nats", paper: "", measure: losses };

/// The class of the largest probability, by image; ties go to the first.
#[must_use]
pub fn predictions(answers: &Answers) -> Vec<u32> {
    let top = |row: &[f64]| (0..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best }) as u32;
    answers.rows().map(|(row, _)| top(row)).collect()
}

/// Share in [0, 1] of images classified right, among those whose label is wanted; none where there are none.
#[must_use]
pub fn accuracy(answers: &Answers, wanted: impl Fn(u32) -> bool) -> Option<f64> {
    let pairs = predictions(answers).into_iter().zip(answers.labels.iter().copied());
    let chosen: Vec<bool> = pairs.filter(|&(_, label)| wanted(label)).map(|(guess, label)| guess == label).collect();
    let right = chosen.iter().filter(|&&right| right).count();
    (!chosen.is_empty()).then(|| right as f64 / chosen.len() as f64)
}

fn accuracies(evidence: &Evidence) -> Result<Measured> {
    let mut numbers = Vec::new();
    let mut add = |name: &str, share: Option<f64>, aim: Aim| {
        if let Some(share) = share {
            numbers.push(number(name, 100.0 * share, "%", aim));
        }
    };
    let forget = accuracy(&evidence.forget, |_| true);
    add("accuracy.forget", forget, Aim::LikeOracle);
    add("accuracy.retain", accuracy(&evidence.retain, |_| true), Aim::Higher);
    add("accuracy.validation", accuracy(&evidence.validation, |_| true), Aim::Higher);
    add("accuracy.test", accuracy(&evidence.test, |_| true), Aim::Higher);
    if !evidence.forgotten.is_empty() {
        let gone = |label: u32| evidence.forgotten.contains(&label);
        add("accuracy.test_kept", accuracy(&evidence.test, |label| !gone(label)), Aim::Higher);
        add("accuracy.test_forgotten", accuracy(&evidence.test, gone), Aim::LikeOracle);
    }
    add("unlearning_accuracy", forget.map(|share| 1.0 - share), Aim::LikeOracle);
    Ok((numbers, Vec::new()))
}

fn losses(evidence: &Evidence) -> Result<Measured> {
    let parts = [
        ("loss.forget", &evidence.forget, Aim::LikeOracle),
        ("loss.retain", &evidence.retain, Aim::Lower),
        ("loss.validation", &evidence.validation, Aim::Lower),
        ("loss.test", &evidence.test, Aim::Lower),
    ];
    let mean = |answers: &Answers| answers.losses().iter().sum::<f64>() / answers.labels.len() as f64;
    let numbers = parts.into_iter().filter(|(_, answers, _)| !answers.is_empty());
    Ok((numbers.map(|(name, answers, aim)| number(name, mean(answers), "", aim)).collect(), Vec::new()))
}
