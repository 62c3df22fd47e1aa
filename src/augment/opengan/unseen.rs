//! Validation features that a discriminator is judged by.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};

use super::pick;
use crate::artifact::Features;
use crate::error::Result;
use crate::metric::roc::Curve;
use crate::nn::model::Model;

pub(super) struct Unseen {
    /// Of classes in the forget set, and of those that are retained alone.
    sides: [Tensor; 2],
}

impl Unseen {
    /// None where a side is empty, as when images of every class are forgotten.
    pub(super) fn of(features: &Features) -> Result<Option<Self>> {
        let (Some((_, forgotten)), Some((seen, labels))) =
            (features.parts.get("forget"), features.parts.get("validation"))
        else {
            return Ok(None);
        };
        let forgotten: BTreeSet<u32> = forgotten.iter().copied().collect();
        let (like, unlike): (Vec<u32>, Vec<u32>) =
            (0..labels.len() as u32).partition(|&row| forgotten.contains(&labels[row as usize]));
        if like.is_empty() || unlike.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { sides: [pick(seen, &like)?, pick(seen, &unlike)?] }))
    }

    /// Under the curve of telling one side from the other.
    pub(super) fn area(&self, discriminator: &Model) -> Result<f64> {
        let [like, unlike] = &self.sides;
        let scores = |side: &Tensor| -> Result<Vec<f64>> {
            let scores = discriminator.logits(&side.to_device(discriminator.device())?)?.flatten_all()?;
            Ok(scores.to_dtype(DType::F64)?.to_vec1()?)
        };
        Ok(Curve::new(&scores(like)?, &scores(unlike)?).area())
    }
}
