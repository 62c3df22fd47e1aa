//! What stages hand on, and how each is kept: named tensors and one JSON record, in one safetensors file.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::data::{Images, Split};
use crate::error::{Result, finite};
use crate::kind::Kind;
use crate::nn::model::Model;

/// The weights of a network, on the CPU, by torchvision's names, batch-norm statistics among them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// How the network is built, with classes, image size and normalisation: what `nn::Arch` reads and writes.
    pub arch: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// What it was trained on, in words, and whether we know or were told: printed with results.
    pub trained_on: String,
}

impl Weights {
    /// Those of a model; an error names the first that is no finite number.
    pub fn of(model: &Model, trained_on: String) -> Result<Self> {
        let tensors = model.tensors()?;
        for (name, tensor) in &tensors {
            let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            finite(&values, &format!("the weights `{name}`"))?;
        }
        Ok(Self { arch: model.arch().to_value()?, tensors, trained_on })
    }
}

/// Ones for parameters that may move, zeros for those that may not: one vector over all parameters.
#[derive(Clone, Debug)]
pub struct Mask {
    pub arch: Value,
    pub keep: Tensor,
}

/// A network pretrained by self-supervision, with the projection head that its loss looked through.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Its last layer, which makes logits, is as it was drawn.
    pub network: Weights,
    /// From features to projections.
    pub head: Weights,
}

/// What the last layer of a model reads, image by image.
#[derive(Clone, Debug)]
pub struct Features {
    /// The model's network.
    pub arch: Value,
    pub layer: String,
    /// By part (forget, retain, validation, test): features `[n, d]` and labels `[n]`.
    pub parts: BTreeMap<String, (Tensor, Vec<u32>)>,
}

/// A network that makes features out of noise.
#[derive(Clone, Debug)]
pub struct Generator {
    pub network: Weights,
    /// The network of the model whose features it imitates.
    pub of: Value,
}

/// Numbers about one model on one split, with the per-sample tensors they came from.
#[derive(Clone, Debug)]
pub struct Scores {
    pub record: Value,
    pub tensors: BTreeMap<String, Tensor>,
}

/// Any artifact. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Artifact {
    Images(Arc<Images>),
    Split(Arc<Split>),
    Model(Arc<Weights>),
    Encoder(Arc<Encoder>),
    Mask(Arc<Mask>),
    Features(Arc<Features>),
    Generator(Arc<Generator>),
    Scores(Arc<Scores>),
    /// The record alone says all.
    Table(Arc<Value>),
}

/// An artifact as it lies on disk.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    pub tensors: BTreeMap<String, Tensor>,
    pub record: Value,
}

impl Artifact {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Artifact::Images(_) => Kind::Images,
            Artifact::Split(_) => Kind::Split,
            Artifact::Model(_) => Kind::Model,
            Artifact::Encoder(_) => Kind::Encoder,
            Artifact::Mask(_) => Kind::Mask,
            Artifact::Features(_) => Kind::Features,
            Artifact::Generator(_) => Kind::Generator,
            Artifact::Scores(_) => Kind::Scores,
            Artifact::Table(_) => Kind::Table,
        }
    }
}
