//! Whether a model answers as another program's copy of it does.

use candle_core::{DType, Tensor};

use super::model::Model;
use crate::error::{Error, Result};

/// Images at a time.
const BATCH: usize = 64;

/// How far two tables of logits are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parity {
    pub images: usize,
    /// The largest difference of two logits; infinite where one of them is no number.
    pub absolute: f64,
    /// Of the other program's largest logit.
    pub relative: f64,
    /// Images of which both name the same class.
    pub agree: usize,
}

/// Compares the model's logits for `x` (images x channels x height x width, normalised) with another program's (images x
/// classes). An error where shapes or kinds of numbers do not fit.
pub fn parity(model: &Model, x: &Tensor, logits: &Tensor) -> Result<Parity> {
    let [channels, height, width] = model.arch().size;
    let classes = model.arch().classes;
    let images = x.dims().first().copied().unwrap_or(0);
    if x.dims() != [images, channels, height, width] || images == 0 {
        return Err(Error::invalid(format!(
            "`x` has the shape {:?}, expected images x {channels} x {height} x {width}",
            x.dims()
        )));
    }
    if logits.dims() != [images, classes] {
        return Err(Error::invalid(format!(
            "`logits` has the shape {:?}, expected {images} x {classes}",
            logits.dims()
        )));
    }
    for (name, tensor) in [("x", x), ("logits", logits)] {
        if !tensor.dtype().is_float() {
            let kind = tensor.dtype().as_str();
            return Err(Error::invalid(format!("`{name}` has numbers of the kind {kind}, expected normalised floats")));
        }
    }
    let (mut ours, mut at) = (Vec::new(), 0);
    while at < images {
        let count = BATCH.min(images - at);
        let answers = model.logits(&x.narrow(0, at, count)?.to_dtype(DType::F32)?)?;
        ours.extend(answers.to_dtype(DType::F64)?.to_vec2::<f64>()?);
        at += count;
    }
    let theirs = logits.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    Ok(apart(&ours, &theirs))
}

fn apart(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> Parity {
    let pairs = || ours.iter().flatten().zip(theirs.iter().flatten());
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    let absolute = pairs().map(difference).fold(0.0, f64::max);
    let largest = theirs.iter().flatten().fold(0.0_f64, |largest, b| largest.max(b.abs()));
    let relative = if absolute == 0.0 { 0.0 } else { absolute / largest };
    let agree = ours.iter().zip(theirs).filter(|(a, b)| first_largest(a) == first_largest(b)).count();
    Parity { images: ours.len(), absolute, relative, agree }
}

fn first_largest(row: &[f64]) -> usize {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_the_largest_ones() {
        let parity = apart(&[vec![1.0, 2.0], vec![3.0, -4.0]], &[vec![1.0, 2.5], vec![-1.0, -5.0]]);
        assert_eq!(parity, Parity { images: 2, absolute: 4.0, relative: 0.8, agree: 2 });
        let parity = apart(&[vec![1.0, 2.0]], &[vec![2.0, 2.0]]);
        assert_eq!(parity.agree, 0, "of equal logits the first counts, as in PyTorch");
        assert_eq!(apart(&[vec![0.0]], &[vec![0.0]]).relative, 0.0);
        for (a, b) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, f64::INFINITY), (f64::INFINITY, 1.0)] {
            assert_eq!(apart(&[vec![a]], &[vec![b]]).absolute, f64::INFINITY);
        }
    }
}
