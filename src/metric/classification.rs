//! Accuracy, loss and confusion, over samples (not means of batch means).

use super::figure::{Figure, Shape};
use super::{Aim, Answers, Evidence, Measured, Metric, number};
use crate::error::Result;

pub const ACCURACY: Metric = Metric {
    name: "accuracy",
    about: "share of images classified right, by part, in percent",
    paper: "",
    needs: &[],
    measure: accuracies,
};

pub const LOSS: Metric =
    Metric { name: "loss", about: "mean cross-entropy by part, in nats", paper: "", needs: &[], measure: losses };

pub const BY_CLASS: Metric = Metric {
    name: "by_class",
    about: "precision, recall and specificity of each class, on test",
    paper: "",
    needs: &[],
    measure: by_class,
};

pub const CONFUSION: Metric = Metric {
    name: "confusion",
    about: "test images by true and by predicted class, a figure",
    paper: "",
    needs: &[],
    measure: confused,
};

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
    Ok(Measured::numbers(numbers))
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
    let numbers = numbers.map(|(name, answers, aim)| number(name, mean(answers), "", aim));
    Ok(Measured::numbers(numbers.collect()))
}

/// Counts, row by row: true class by predicted class.
#[must_use]
pub fn confusion(answers: &Answers) -> Vec<Vec<u64>> {
    let mut counts = vec![vec![0; answers.classes]; answers.classes];
    for (guess, &label) in predictions(answers).into_iter().zip(&answers.labels) {
        counts[label as usize][guess as usize] += 1;
    }
    counts
}

fn confused(evidence: &Evidence) -> Result<Measured> {
    if evidence.test.is_empty() {
        return Ok(Measured::nothing("confusion: left out, it needs test images"));
    }
    let counts = confusion(&evidence.test);
    let shape = Shape::Matrix {
        row_axis: "true class".to_owned(),
        column_axis: "predicted class".to_owned(),
        rows: evidence.classes.clone(),
        columns: evidence.classes.clone(),
        values: counts.into_iter().map(|row| row.into_iter().map(|count| Some(count as f64)).collect()).collect(),
    };
    Ok(Measured::default()
        .figure(Figure::new("confusion", "Test images by true and predicted class", shape))
        .note(format!("confusion: {} test images", evidence.test.labels.len())))
}

const SHARES: [&str; 3] = ["precision", "recall", "specificity"];

/// Shares that have no image to count are left out.
fn by_class(evidence: &Evidence) -> Result<Measured> {
    let counts = confusion(&evidence.test);
    let all: u64 = counts.iter().flatten().sum();
    let (mut numbers, mut values) = (Vec::new(), Vec::new());
    for (class, row) in counts.iter().enumerate() {
        let hit = row[class];
        let (own, called) = (row.iter().sum::<u64>(), counts.iter().map(|row| row[class]).sum::<u64>());
        let gone = evidence.forgotten.contains(&(class as u32));
        let aim = if gone { Aim::LikeOracle } else { Aim::Higher };
        let others = all - own;
        let shares = [(hit, called), (hit, own), (others - (called - hit), others)]
            .map(|(part, whole)| (whole > 0).then(|| 100.0 * part as f64 / whole as f64));
        for (name, share) in SHARES.into_iter().zip(shares) {
            numbers.extend(share.map(|share| number(&format!("{name}.{class}"), share, "%", aim)));
        }
        values.push(shares.to_vec());
    }
    let shape = Shape::Matrix {
        row_axis: "class".to_owned(),
        column_axis: "%".to_owned(),
        rows: evidence.classes.clone(),
        columns: SHARES.map(str::to_owned).to_vec(),
        values,
    };
    Ok(Measured::numbers(numbers).figure(Figure::new("by_class", "Shares of each class, on test", shape)))
}
