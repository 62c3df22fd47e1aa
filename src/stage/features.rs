//! `features`: what a layer of a model makes of every image of a split, in evaluation mode and without transforms.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::unlearn::fitting;
use super::{Context, Inputs, Makes, Progress, Stage, StageKind};
use crate::artifact::{Artifact, Features};
use crate::error::{Error, Result, finite};
use crate::kind::Kind;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{Field, Type, read};

/// Images a forward pass; no result depends on it.
const BATCH: usize = 256;

pub const KIND: StageKind = StageKind {
    name: "features",
    about: "keeps what a layer makes of every image of a split",
    version: 1,
    makes: Makes::Always(Kind::Features),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model, Kind::Encoder]), "whose layer"),
        Field::required("data", Type::Stage(&[Kind::Split]), "the images"),
        Field::or("layer", Type::Text, "\"pooled\"", "\"pooled\" is what the last layer reads; others by name, flat"),
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<FeaturesStage>(settings)?)),
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct FeaturesStage {
    layer: String,
}

impl Stage for FeaturesStage {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let Artifact::Split(split) = inputs.get("data")? else {
            return Err(Error::invalid("`data` is not a split"));
        };
        let weights = match inputs.get("model")? {
            Artifact::Model(weights) => weights,
            Artifact::Encoder(encoder) => &encoder.network,
            _ => return Err(Error::invalid("`model` is not a model")),
        };
        let model = Model::from_tensors(&fitting(weights, split)?, &weights.tensors, context.device)?;
        let images = &split.images;
        let parts = split.parts();
        let total = parts.iter().map(|(.., indices)| indices.len()).sum();
        let (mut done, mut width) = (0, 0);
        let mut features = Features { arch: weights.arch.clone(), layer: self.layer.clone(), parts: [].into() };
        for (name, part, indices) in &parts {
            let mut values = Vec::new();
            for chunk in indices.chunks(BATCH) {
                let x = transform::batch(images, part, chunk, Transform::default(), &Rng::new(0), context.device)?;
                let seen = self.look(&model, &x)?;
                width = seen.elem_count() / chunk.len();
                values.extend(seen.flatten_all()?.to_vec1::<f32>()?);
                done += chunk.len();
                context.desk.progress(Progress { done, total, loss: None, images: done });
                context.desk.halt()?;
            }
            finite(&values, &format!("the features of layer `{}`", self.layer))?;
            let values = Tensor::from_vec(values, (indices.len(), width), &Device::Cpu)?;
            let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
            features.parts.insert((*name).to_owned(), (values, labels));
        }
        Ok(Artifact::Features(features.into()))
    }
}

impl FeaturesStage {
    fn look(&self, model: &Model, x: &Tensor) -> Result<Tensor> {
        if self.layer == "pooled" {
            return model.features(x);
        }
        let mut seen = model.taps_of(x, &[self.layer.as_str()])?;
        seen.remove(&self.layer).ok_or_else(|| Error::invalid(format!("there is no layer `{}`", self.layer)))
    }
}
