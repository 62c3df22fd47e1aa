//! `checkpoint`: a model from a file: safetensors, or PyTorch's zip format with torchvision's names. Complete, or an
//! error that names the parameter. And the way out: a model as such a file.

mod names;
mod pytorch;
pub(crate) mod record;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Weights};
use crate::error::{Error, Result, listed};
use crate::kind::Kind;
use crate::nn::arch::{self, Arch};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::settings::{Field, SEED, Type, read};
use crate::tensors;
pub use write::{Form, write};

pub const KIND: StageKind = StageKind {
    name: "checkpoint",
    about: "a model from a safetensors or PyTorch file",
    version: 1,
    makes: Makes::Always(Kind::Model),
    fields: &[
        Field::required("path", Type::Path, "the file: .safetensors, or .pth, .pth.tar, .pt, .bin"),
        Field::required("arch", Type::Named { noun: "architecture", entries: arch::entries }, "the network"),
        Field::required("trained_on", Type::Stage(&[Kind::Images, Kind::Split]), "what it is said to be trained on"),
        Field::or("fresh", Type::List(&Type::Text), "[]", "first letters of names that start anew, not from the file"),
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Checkpoint>(settings)?)),
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct Checkpoint {
    arch: Value,
    fresh: Vec<String>,
    seed: u64,
}

impl Stage for Checkpoint {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let (images, words) = match inputs.get("trained_on")? {
            Artifact::Images(images) => (images.clone(), format!("all of {}", images.name)),
            Artifact::Split(split) => (split.images.clone(), format!("the retain set of {}", split.images.name)),
            other => return Err(Error::invalid(format!("`trained_on` is {}", other.kind()))),
        };
        let path = context.files.get("path").ok_or_else(|| Error::invalid("the checkpoint's file is not known"))?;
        let arch = Arch::new(&self.arch, images.classes.len(), images.size, &images.mean, &images.std)?;
        let mut tensors = load(path)?;
        record::check(path, &arch)?;
        let fresh = |name: &str| self.fresh.iter().any(|prefix| name.starts_with(prefix.as_str()));
        if !self.fresh.is_empty() {
            tensors.retain(|name, _| !fresh(name));
            let start = Model::init(&arch, &Rng::new(self.seed).fork("init"), &Device::Cpu)?.tensors()?;
            tensors.extend(start.into_iter().filter(|(name, _)| fresh(name)));
        }
        let heads = names::without_heads(&mut tensors);
        if !heads.is_empty() {
            context.desk.note(&format!("left out, as heads beside the classifier: {}", listed(&heads, "and")));
        }
        let model = Model::from_tensors(&arch, &tensors, &Device::Cpu).map_err(|error| {
            Error::bad_file(path, names::no_classifier(&tensors).unwrap_or_else(|| error.to_string()))
        })?;
        let trained_on = format!("{words} (as the recipe says)");
        let weights = Weights::of(&model, trained_on).map_err(|error| Error::bad_file(path, error.to_string()))?;
        Ok(Artifact::Model(weights.into()))
    }
}

/// Named tensors of a file, with wrappers and prefixes taken off.
pub fn load(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let tensors: BTreeMap<String, Tensor> = if path.extension().is_some_and(|extension| extension == "safetensors") {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        tensors::read(&bytes).map_err(|why| Error::bad_file(path, why))?
    } else {
        pytorch::read(path)?
    };
    let mut named = BTreeMap::new();
    for (name, tensor) in tensors {
        let short = names::bare(&name).to_owned();
        if named.insert(short.clone(), tensor).is_some() {
            return Err(Error::bad_file(path, format!("it has `{short}` twice, with and without a wrapper's prefix")));
        }
    }
    Ok(named)
}
