//! The last layer as a network of its own.

use super::Model;
use crate::error::{Error, Result};
use crate::kernels::Op;
use crate::nn::arch::{Arch, Shape};

impl Model {
    /// From features, `[B, d, 1, 1]`, to logits: a copy of the last layer. An error where it is not a linear one that reads
    /// the features.
    pub fn head(&self) -> Result<Model> {
        let program = &self.program;
        let last = program.layers.last().filter(|layer| layer.from == program.features);
        let Some((name, Op::Linear { .. })) = last.map(|layer| (&layer.name, layer.op)) else {
            return Err(Error::invalid(format!("`{}` has no linear layer on its features", self.arch.name)));
        };
        let size = [program.size(program.features), 1, 1];
        let arch = Arch::build("head", Shape::Mlp { hidden: Vec::new() }, self.arch.classes, size, &[], &[])?;
        let arch = arch.with_precision(self.arch.precision);
        let own =
            |(key, tensor): (String, _)| Some((format!("fc.{}", key.strip_prefix(name)?.strip_prefix('.')?), tensor));
        Model::from_tensors(&arch, &self.tensors()?.into_iter().filter_map(own).collect(), &self.device)
    }
}
