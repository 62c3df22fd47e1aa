//! Projection heads, through which self-supervised losses look at features: Linear(d, d), ReLU, Linear(d, width), as in
//! Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020,
//! <https://arxiv.org/abs/2002.05709>.

use candle_core::Tensor;

use super::arch::{Arch, Shape};
use super::model::{Model, Pass};
use crate::error::Result;
use crate::rng::Rng;

/// SimCLR's width of projections.
pub const WIDTH: usize = 128;

/// A fresh head for the features of that network, in its precision.
pub fn init(network: &Model, width: usize, rng: &Rng) -> Result<Model> {
    let features = network.arch().features()?;
    let arch = Arch::build("head", Shape::Mlp { hidden: vec![features] }, width, [features, 1, 1], &[], &[])?;
    let arch = arch.with_precision(network.arch().precision);
    Model::init(&arch, rng, network.device())
}

/// Projections [B, width] of features [B, d], tracked through the head and into what the features came from.
pub fn project(head: &Model, features: &Tensor) -> Result<Tensor> {
    Ok(head.forward(&features.unsqueeze(2)?.unsqueeze(3)?, &Pass::eval())?.logits)
}
