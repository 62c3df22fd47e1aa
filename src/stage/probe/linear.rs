//! A linear layer on frozen features: multinomial logistic regression, mean cross-entropy plus l2 / 2 times the squared
//! weights (biases are free), by L-BFGS over all images at once, as in Chen et al., ICML 2020,
//! <https://arxiv.org/abs/2002.05709>, appendix B.8. Convex, so its optimum is where its slope is 0. Features are brought to
//! mean 0 and deviation 1 first. L-BFGS: Nocedal and Wright, Numerical optimization, 2006, algorithms 7.4 and 3.1.

use std::collections::VecDeque;

use rayon::prelude::*;

use super::Rows;
use super::knn::first_largest;
use crate::error::Result;
use crate::halt::Halt;

/// Pairs of steps and slopes that L-BFGS remembers.
const MEMORY: usize = 10;
/// It stops where no slope is larger.
const FLAT: f64 = 1e-6;
/// Pieces that a pass is cut into; their sums are added in order, so that no result depends on threads.
const PIECES: usize = 64;

/// The layer at the end of its training.
#[derive(Clone, Debug)]
pub struct Linear {
    /// For each class the weights of the features, then the bias.
    pub theta: Vec<f64>,
    /// Mean and deviation of each feature on the training images.
    pub moments: Vec<(f64, f64)>,
    pub classes: usize,
    /// The largest slope of the loss, in absolute value.
    pub slope: f64,
    pub steps: usize,
}

impl Linear {
    pub fn fit(train: &Rows, classes: usize, l2: f64, iterations: usize, halt: &Halt) -> Result<Self> {
        let moments = moments(train);
        let rows: Vec<f32> = train.each().flat_map(|row| standard(row, &moments)).map(|x| x as f32).collect();
        let problem = Problem { rows, width: train.width, labels: &train.labels, l2 };
        let mut theta = vec![0.0; classes * (train.width + 1)];
        let (mut value, mut slope) = problem.at(&theta);
        let mut past: VecDeque<Pair> = VecDeque::new();
        let mut steps = 0;
        while steps < iterations && largest(&slope) > FLAT {
            halt()?;
            let way = way(&slope, &past);
            let fall = dot(&way, &slope);
            let mut length = if past.is_empty() { 1.0 / dot(&slope, &slope).sqrt() } else { 1.0 };
            let next = loop {
                let moved: Vec<f64> = theta.iter().zip(&way).map(|(t, w)| t + length * w).collect();
                let (there, slope) = problem.at(&moved);
                if there <= value + 1e-4 * length * fall {
                    break Some((moved, there, slope));
                }
                length /= 2.0;
                if length < 1e-12 {
                    break None;
                }
            };
            // No step falls any more: as flat as the numbers allow.
            let Some((moved, there, new)) = next else { break };
            let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
            let pair = Pair { step: minus(&moved, &theta), change: minus(&new, &slope) };
            if dot(&pair.step, &pair.change) > 1e-12 * dot(&pair.change, &pair.change) {
                past.push_back(pair);
            }
            if past.len() > MEMORY {
                past.pop_front();
            }
            (theta, value, slope) = (moved, there, new);
            steps += 1;
        }
        Ok(Self { theta, moments, classes, slope: largest(&slope), steps })
    }

    /// The likeliest class of each image.
    #[must_use]
    pub fn answers(&self, rows: &Rows) -> Vec<u32> {
        let answer = |row: &[f32]| {
            let row: Vec<f32> = standard(row, &self.moments).map(|x| x as f32).collect();
            first_largest(&self.theta.chunks_exact(row.len() + 1).map(|own| logit(own, &row)).collect::<Vec<f64>>())
        };
        rows.each().map(answer).collect()
    }
}

/// A step and how the slope changed by it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
}

/// Down the slope, bent by what is known of the curvature.
fn way(slope: &[f64], past: &VecDeque<Pair>) -> Vec<f64> {
    let mut way: Vec<f64> = slope.iter().map(|s| -s).collect();
    let mut shares = Vec::with_capacity(past.len());
    let add = |way: &mut [f64], by: f64, other: &[f64]| way.iter_mut().zip(other).for_each(|(w, o)| *w += by * o);
    for Pair { step, change } in past.iter().rev() {
        let share = dot(step, &way) / dot(step, change);
        add(&mut way, -share, change);
        shares.push(share);
    }
    if let Some(Pair { step, change }) = past.back() {
        let scale = dot(step, change) / dot(change, change);
        way = way.into_iter().map(|w| scale * w).collect();
    }
    for (Pair { step, change }, share) in past.iter().zip(shares.into_iter().rev()) {
        let back = dot(change, &way) / dot(step, change);
        add(&mut way, share - back, step);
    }
    way
}

struct Problem<'a> {
    rows: Vec<f32>,
    width: usize,
    labels: &'a [u32],
    l2: f64,
}

impl Problem<'_> {
    /// Loss and slope.
    fn at(&self, theta: &[f64]) -> (f64, Vec<f64>) {
        let each = self.labels.len().div_ceil(PIECES).max(1);
        let pieces: Vec<(f64, Vec<f64>)> = self
            .rows
            .par_chunks(each * self.width.max(1))
            .zip(self.labels.par_chunks(each))
            .map(|(rows, labels)| self.piece(theta, rows, labels))
            .collect();
        let share = 1.0 / self.labels.len().max(1) as f64;
        let (mut loss, mut slope) = (0.0, vec![0.0; theta.len()]);
        for (value, part) in pieces {
            loss += share * value;
            slope.iter_mut().zip(part).for_each(|(slope, part)| *slope += share * part);
        }
        for (index, (slope, weight)) in slope.iter_mut().zip(theta).enumerate() {
            if index % (self.width + 1) < self.width {
                loss += self.l2 / 2.0 * weight * weight;
                *slope += self.l2 * weight;
            }
        }
        (loss, slope)
    }

    /// Sums of the cross-entropy and its slope over some rows.
    fn piece(&self, theta: &[f64], rows: &[f32], labels: &[u32]) -> (f64, Vec<f64>) {
        let (mut loss, mut slope) = (0.0, vec![0.0; theta.len()]);
        for (row, &label) in rows.chunks_exact(self.width.max(1)).zip(labels) {
            let logits: Vec<f64> = theta.chunks_exact(self.width + 1).map(|own| logit(own, row)).collect();
            let top = logits.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(x));
            let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
            loss += top + sum.ln() - logits[label as usize];
            for (class, own) in slope.chunks_exact_mut(self.width + 1).enumerate() {
                let pull = (logits[class] - top).exp() / sum - f64::from(u8::from(class == label as usize));
                own.iter_mut().zip(row).for_each(|(own, &x)| *own += pull * f64::from(x));
                own[self.width] += pull;
            }
        }
        (loss, slope)
    }
}

/// Weights and bias on a row.
fn logit(own: &[f64], row: &[f32]) -> f64 {
    own.iter().zip(row).map(|(w, &x)| w * f64::from(x)).sum::<f64>() + own[row.len()]
}

fn moments(rows: &Rows) -> Vec<(f64, f64)> {
    let share = 1.0 / rows.labels.len().max(1) as f64;
    let (mut means, mut squares) = (vec![0.0; rows.width], vec![0.0; rows.width]);
    for row in rows.each() {
        means.iter_mut().zip(row).for_each(|(mean, &x)| *mean += share * f64::from(x));
    }
    for row in rows.each() {
        let all = squares.iter_mut().zip(row).zip(&means);
        all.for_each(|((square, &x), mean)| *square += share * (f64::from(x) - mean).powi(2));
    }
    let deviation = |square: f64| if square > 0.0 { square.sqrt() } else { 1.0 };
    means.into_iter().zip(squares).map(|(mean, square)| (mean, deviation(square))).collect()
}

fn standard<'a>(row: &'a [f32], moments: &'a [(f64, f64)]) -> impl Iterator<Item = f64> + 'a {
    row.iter().zip(moments).map(|(&x, (mean, deviation))| (f64::from(x) - mean) / deviation)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |top: f64, x| top.max(x.abs()))
}
