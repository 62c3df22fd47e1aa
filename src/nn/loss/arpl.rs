//! Adversarial reciprocal points learning: Chen et al., TPAMI 2021, <https://arxiv.org/abs/2103.00953>. A class is far
//! from its reciprocal point; the logit of class k is |x - P_k|^2 / d - x . P_k.

use candle_core::{DType, Tensor};

use super::{composed, fused, log_softmax, matrix, warm};
use crate::error::{Error, Result};

/// Knobs of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Arpl {
    /// Divides the logits.
    pub temperature: f64,
    /// Of the margin term.
    pub weight: f64,
    pub margin: f64,
}

/// Logits [B, C] of features [B, d] and points [C, d].
pub fn logits(features: &Tensor, points: &Tensor) -> Result<Tensor> {
    Ok((composed::distances(features, points)? - features.matmul(&points.t()?)?)?)
}

/// Cross-entropy of logits / temperature, plus weight x mean max(0, |x - P_y|^2 / d - radius + margin). `radius` has
/// one element. Gradients go to all three.
pub fn loss(features: &Tensor, points: &Tensor, radius: &Tensor, labels: &Tensor, knobs: Arpl) -> Result<Tensor> {
    let (batch, width, classes) = sizes(features, points)?;
    warm(knobs.temperature)?;
    if labels.dims() != [batch] || radius.elem_count() != 1 {
        return Err(Error::invalid("the labels must be one an image and the radius one number"));
    }
    if !features.device().is_cpu() {
        return composed::arpl(features, points, radius, labels, knobs);
    }
    let labels = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
        return Err(Error::invalid(format!("there is a label {label} among {classes} classes")));
    }
    fused::three("arpl", [features, points, radius], move |inputs| {
        let (x, p, radius) = (&inputs[0], &inputs[1], inputs[2][0]);
        let share = 1.0 / batch as f64;
        let (mut sum, mut slope_radius) = (0.0, 0.0);
        let mut graph = Slopes::new(x, p, width, true);
        for (i, &label) in labels.iter().enumerate() {
            let label = label as usize;
            let mut slopes = vec![0.0; classes];
            log_softmax(&graph.logits(i), knobs.temperature, &mut slopes);
            sum -= slopes[label];
            for slope in &mut slopes {
                *slope = slope.exp() * share / knobs.temperature;
            }
            slopes[label] -= share / knobs.temperature;
            let hinge = graph.distance(i, label) - radius + knobs.margin;
            let pull = if hinge > 0.0 { knobs.weight * share } else { 0.0 };
            sum += knobs.weight * hinge.max(0.0);
            slope_radius -= pull;
            graph.add(i, &slopes);
            graph.add_distance(i, label, pull);
        }
        (sum * share, [graph.by_features, graph.by_points, vec![slope_radius]])
    })
}

/// exp(mean over images of sum p log p): least where generated images get uniform predictions. As the paper's authors
/// released it p comes from the distances alone; else it is the posterior of `loss` at temperature 1.
pub fn fake_loss(features: &Tensor, points: &Tensor, released: bool) -> Result<Tensor> {
    let (batch, width, classes) = sizes(features, points)?;
    if !features.device().is_cpu() {
        return composed::arpl_fake(features, points, released);
    }
    fused::two("arpl_fake", features, points, move |x, p| {
        let mut graph = Slopes::new(x, p, width, !released);
        let mut all = vec![0.0; batch * classes];
        let mut sum = 0.0;
        for (i, slopes) in all.chunks_exact_mut(classes).enumerate() {
            log_softmax(&graph.logits(i), 1.0, slopes);
            let negentropy: f64 = slopes.iter().map(|log| log.exp() * log).sum();
            sum += negentropy;
            for log in slopes {
                *log = log.exp() * (*log - negentropy);
            }
        }
        let value = (sum / batch as f64).exp();
        for (i, slopes) in all.chunks_exact_mut(classes).enumerate() {
            for slope in &mut *slopes {
                *slope *= value / batch as f64;
            }
            graph.add(i, slopes);
        }
        (value, graph.by_features, graph.by_points)
    })
}

fn sizes(features: &Tensor, points: &Tensor) -> Result<(usize, usize, usize)> {
    let ((batch, width), (classes, other)) = (matrix(features, "features")?, matrix(points, "points")?);
    if width == other {
        return Ok((batch, width, classes));
    }
    Err(Error::invalid(format!("features have {width} numbers, reciprocal points {other}")))
}

/// From slopes by logits to slopes by features and points.
struct Slopes<'a> {
    x: &'a [f64],
    p: &'a [f64],
    width: usize,
    /// Whether logits are less the dot product.
    dot: bool,
    by_features: Vec<f64>,
    by_points: Vec<f64>,
}

impl<'a> Slopes<'a> {
    fn new(x: &'a [f64], p: &'a [f64], width: usize, dot: bool) -> Self {
        Self { x, p, width, dot, by_features: vec![0.0; x.len()], by_points: vec![0.0; p.len()] }
    }

    fn row(&self, i: usize, k: usize) -> impl Iterator<Item = (&f64, &f64)> {
        self.x[i * self.width..(i + 1) * self.width].iter().zip(&self.p[k * self.width..(k + 1) * self.width])
    }

    fn distance(&self, i: usize, k: usize) -> f64 {
        self.row(i, k).map(|(x, p)| (x - p) * (x - p)).sum::<f64>() / self.width as f64
    }

    fn logits(&self, i: usize) -> Vec<f64> {
        let product = |k: usize| if self.dot { self.row(i, k).map(|(x, p)| x * p).sum::<f64>() } else { 0.0 };
        (0..self.p.len() / self.width).map(|k| self.distance(i, k) - product(k)).collect()
    }

    fn add_distance(&mut self, i: usize, k: usize, slope: f64) {
        for j in 0..self.width {
            let (at, point) = (i * self.width + j, k * self.width + j);
            let step = 2.0 * slope * (self.x[at] - self.p[point]) / self.width as f64;
            self.by_features[at] += step;
            self.by_points[point] -= step;
        }
    }

    fn add(&mut self, i: usize, slopes: &[f64]) {
        for (k, &slope) in slopes.iter().enumerate() {
            self.add_distance(i, k, slope);
            for j in (0..self.width).filter(|_| self.dot) {
                let (at, point) = (i * self.width + j, k * self.width + j);
                self.by_features[at] -= slope * self.p[point];
                self.by_points[point] -= slope * self.x[at];
            }
        }
    }
}
