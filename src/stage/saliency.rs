//! `saliency`: which weights matter most for the forget set, as a mask that any method can take (SalUn: Fan et al., ICLR
//! 2024, <https://arxiv.org/abs/2310.12508>, equation 3).

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::train::BATCH;
use super::unlearn::{fitting, side};
use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Mask};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::method::salun::{largest, saliency};
use crate::nn::model::Model;
use crate::nn::transform::Transform;
use crate::rng::Rng;
use crate::settings::{Field, SEED, SHARE, Type, read};

pub const KIND: StageKind = StageKind {
    name: "saliency",
    about: "finds the weights that matter most for the forget set",
    version: 1,
    makes: Makes::Always(Kind::Mask),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model]), "whose weights"),
        Field::required("data", Type::Stage(&[Kind::Split]), "what is to be forgotten"),
        Field::or("keep", SHARE, "0.5", "share of the weights that may move"),
        BATCH,
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Saliency>(settings)?)),
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct Saliency {
    keep: f64,
    batch: usize,
    seed: u64,
}

impl Stage for Saliency {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let (Artifact::Model(weights), Artifact::Split(split)) = (inputs.get("model")?, inputs.get("data")?) else {
            return Err(Error::invalid("`model` and `data` are not a model and a split"));
        };
        let model = Model::from_tensors(&fitting(weights, split)?, &weights.tensors, context.device)?;
        let batches = (self.batch, Transform::default(), Rng::new(self.seed).fork("forget"));
        let forget = side((split, &split.images.train), &split.forget, batches, context.device);
        let keep = largest(&saliency(&model, &forget, context.desk)?, self.keep);
        let keep = Tensor::from_vec(keep, model.len(), &Device::Cpu)?;
        Ok(Artifact::Mask(Mask { arch: weights.arch.clone(), keep }.into()))
    }
}
