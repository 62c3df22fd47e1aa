//! Centred kernel alignment of two models' layers: Kornblith et al., ICML 2019, <https://arxiv.org/abs/1905.00414>, from
//! unbiased HSIC (Song et al., JMLR 2012, equation 5) summed over batches (Nguyen et al., ICLR 2021,
//! <https://arxiv.org/abs/2010.15327>). 1 where one layer's features are the other's, turned and scaled.

use candle_core::{DType, Tensor};

use super::figure::{Figure, Shape};
use super::{Aim, Evidence, Measured, Metric, Need, number};
use crate::error::{Error, Result};

pub const CKA: Metric = Metric {
    name: "cka",
    about: "likeness of each layer to the reference's, on forget",
    paper: "Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414",
    needs: &[Need::Reference, Need::Layers],
    measure,
};

/// Images a batch, and at most in all: the unbiased estimate does not need more.
pub const BATCH: usize = 64;
pub const IMAGES: usize = 2_048;

/// Sums over batches of HSIC(K, L), HSIC(K, K) and HSIC(L, L).
#[derive(Clone, Copy, Debug, Default)]
pub struct Alignment([f64; 3]);

impl Alignment {
    /// Takes in a batch of features, n x anything each, n above 3; gives its three terms.
    pub fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<[f64; 3]> {
        let (k, l) = (gram(x)?, gram(y)?);
        let terms = [hsic(&k, &l)?, hsic(&k, &k)?, hsic(&l, &l)?];
        self.0.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        Ok(terms)
    }

    /// None where a layer does not vary.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        let [both, one, other] = self.0;
        let value = both / (one * other).sqrt();
        value.is_finite().then_some(value)
    }
}

/// X X', without its diagonal, row by row.
fn gram(x: &Tensor) -> Result<Vec<Vec<f64>>> {
    let x = x.to_dtype(DType::F64)?.flatten_from(1)?;
    let mut rows = x.matmul(&x.t()?)?.to_vec2::<f64>()?;
    rows.iter_mut().enumerate().for_each(|(index, row)| row[index] = 0.0);
    Ok(rows)
}

fn hsic(k: &[Vec<f64>], l: &[Vec<f64>]) -> Result<f64> {
    if k.len() != l.len() || k.len() < 4 {
        return Err(Error::invalid(format!(
            "CKA needs 4 images and as many from both, not {} and {}",
            k.len(),
            l.len()
        )));
    }
    let n = k.len() as f64;
    let sums = |rows: &[Vec<f64>]| rows.iter().map(|row| row.iter().sum::<f64>()).collect::<Vec<f64>>();
    let (k_sums, l_sums) = (sums(k), sums(l));
    let trace: f64 = k.iter().zip(l).map(|(k, l)| k.iter().zip(l).map(|(a, b)| a * b).sum::<f64>()).sum();
    let all = k_sums.iter().sum::<f64>() * l_sums.iter().sum::<f64>();
    let cross: f64 = k_sums.iter().zip(&l_sums).map(|(a, b)| a * b).sum();
    Ok((trace + all / ((n - 1.0) * (n - 2.0)) - 2.0 / (n - 2.0) * cross) / (n * (n - 3.0)))
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    if evidence.layers.is_empty() {
        return Ok(Measured::nothing("cka: left out, it needs 4 forget images and a layer that varies"));
    }
    let images = evidence.forget.labels.len().min(IMAGES);
    let numbers = evidence.layers.iter().map(|(layer, value)| number(&format!("cka.{layer}"), *value, "", Aim::Higher));
    let (names, values) = evidence.layers.iter().cloned().unzip();
    let bars = Shape::Bars { axis: "CKA with the reference".to_owned(), names, values };
    Ok(Measured::numbers(numbers.collect())
        .figure(Figure::new("cka", "Likeness to the reference by layer", bars))
        .note(format!("cka: {images} forget images, {BATCH} a batch")))
}
