//! What stages hand on, and how each is kept: named tensors and one JSON record, in one safetensors file.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use crate::data::{Images, Split};
use crate::kind::Kind;

/// The weights of a network, on the CPU, by torchvision's names, batch-norm statistics among them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// How the network is built, with classes, image size and normalisation: what `nn::Arch` reads and writes.
    pub arch: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// What it was trained on, in words, and whether we know or were told: printed with results.
    pub trained_on: String,
}

/// Ones for parameters that may move, zeros for those that may not: one vector over all parameters.
#[derive(Clone, Debug)]
pub struct Mask {
    pub arch: Value,
    pub keep: Tensor,
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
    Mask(Arc<Mask>),
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
            Artifact::Mask(_) => Kind::Mask,
            Artifact::Scores(_) => Kind::Scores,
            Artifact::Table(_) => Kind::Table,
        }
    }
}
