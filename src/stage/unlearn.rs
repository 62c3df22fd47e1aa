//! `unlearn`: a method makes a copy of a model forget.

use candle_core::Device;
use serde::Deserialize;
use serde_json::Value;

use super::train::BATCH;
use super::{Choice, Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Weights};
use crate::batches::{Drawn, Loader};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::method::{self, Method, Scene};
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{Field, SEED, Settings, Type, read};

pub const KIND: StageKind = StageKind {
    name: "unlearn",
    about: "makes a copy of a model forget, by a method",
    version: 1,
    makes: Makes::Always(Kind::Model),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model]), "what is to forget"),
        Field::required("data", Type::Stage(&[Kind::Split]), "what to forget and what to keep"),
        Field::optional("mask", Type::Stage(&[Kind::Mask]), "which weights may move; all, where there is none"),
        BATCH,
        transform::FIELD,
        SEED,
    ],
    choice: Some(Choice { key: "method", noun: "method", entries: method::entries }),
    collects: false,
    make: |settings| {
        let name = settings.get("method").and_then(|name| name.as_str()).unwrap_or_default().to_owned();
        let method = method::make(&name, settings)?;
        Ok(Box::new(Unlearn { method, name, setting: read(settings)? }))
    },
    check,
};

#[derive(Debug, Deserialize)]
struct Setting {
    batch: usize,
    transform: Value,
    seed: u64,
}

#[derive(Debug)]
struct Unlearn {
    method: Box<dyn Method>,
    name: String,
    setting: Setting,
}

impl Stage for Unlearn {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let (Artifact::Model(weights), Artifact::Split(split)) = (inputs.get("model")?, inputs.get("data")?) else {
            return Err(Error::invalid("`model` and `data` are not a model and a split"));
        };
        let arch = fitting(weights, split)?;
        let mask = match inputs.by_role.get("mask") {
            None => None,
            Some(Artifact::Mask(mask)) if Arch::from_value(&mask.arch)? == arch => Some(mask.keep.to_vec1::<f32>()?),
            Some(_) => return Err(Error::invalid("the mask was made for another network than the model")),
        };
        let mut student = Model::from_tensors(&arch, &weights.tensors, context.device)?;
        let rng = Rng::new(self.setting.seed);
        let transform = Transform::new(&self.setting.transform)?;
        let side = |indices: &[u32], purpose: &str| {
            let batches = (self.setting.batch, transform, rng.fork(purpose));
            side(split, indices, batches, context.device)
        };
        let (forget, retain) = (side(&split.forget, "forget"), side(&split.retain, "retain"));
        let scene = Scene { forget: &forget, retain: &retain, rng: rng.fork("method"), mask, desk: context.desk };
        self.method.unlearn(&mut student, &scene)?;
        let trained_on = format!("{}, unlearned by {}", weights.trained_on, self.name);
        Ok(Artifact::Model(Weights { arch: weights.arch.clone(), tensors: student.tensors()?, trained_on }.into()))
    }
}

/// Mistakes of several settings together.
fn check(settings: &Settings) -> Vec<(String, String)> {
    let get = |name: &str| settings.get(name).and_then(Value::as_u64);
    match (get("msteps"), get("epochs")) {
        (Some(msteps), Some(epochs)) if msteps > epochs => {
            vec![("msteps".to_owned(), format!("`msteps` is {msteps}, but there are {epochs} epochs"))]
        }
        _ => Vec::new(),
    }
}

/// The model's network; an error where it was made for other images than the split's.
pub(super) fn fitting(weights: &Weights, split: &Split) -> Result<Arch> {
    let arch = Arch::from_value(&weights.arch)?;
    if (arch.size, arch.classes) == (split.images.size, split.images.classes.len()) {
        return Ok(arch);
    }
    Err(Error::invalid(format!(
        "the model was made for images of {:?} in {} classes, but {} has {:?} in {}",
        arch.size,
        arch.classes,
        split.images.name,
        split.images.size,
        split.images.classes.len()
    )))
}

/// Batches of one side of a split: their size, transform and draws.
pub(super) fn side(split: &Split, indices: &[u32], batches: (usize, Transform, Rng), device: &Device) -> Loader {
    let (batch, transform, rng) = batches;
    Loader::Drawn(Drawn {
        images: split.images.clone(),
        part: split.images.train.clone(),
        indices: indices.to_vec(),
        batch,
        transform,
        rng,
        device: device.clone(),
        labels: None,
    })
}
