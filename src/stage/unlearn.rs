//! `unlearn`: a method makes a copy of a model forget.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Device;
use serde::Deserialize;
use serde_json::Value;

use super::train::BATCH;
use super::{Choice, Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Weights};
use crate::batches::{Drawn, Loader};
use crate::data::{Images, Part, Split};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::method::ssl::{self, Ssl};
use crate::method::{self, Fakes, Method, Scene};
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{COUNT, Field, SEED, Settings, Type, read};

pub const KIND: StageKind = StageKind {
    name: "unlearn",
    about: "makes a copy of a model forget, by a method",
    version: 1,
    makes: Makes::Always(Kind::Model),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model]), "what is to forget"),
        Field::required("data", Type::Stage(&[Kind::Split]), "what to forget and what to keep"),
        Field::optional(
            "augment",
            Type::Stage(&[Kind::Images, Kind::Generator]),
            "more images to forget, or a generator of features, made from the same split",
        ),
        Field::or("candidates", COUNT, "100", "features to make for an image, of which the nearest is taken"),
        Field::optional("mask", Type::Stage(&[Kind::Mask]), "which weights may move; all, where there is none"),
        BATCH,
        Field::optional("forget_batch", COUNT, "images to forget a step, where a method takes both sides in turn"),
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
    candidates: usize,
    batch: usize,
    forget_batch: Option<usize>,
    transform: Value,
    ssl: Option<Value>,
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
        let (mut part, mut forget, mut fakes) = (split.images.train.clone(), split.forget.clone(), None);
        match inputs.by_role.get("augment") {
            Some(Artifact::Images(more)) => (part, forget) = grown(split, more)?,
            Some(Artifact::Generator(generator)) => {
                fakes = Some(Fakes::new(generator, self.setting.candidates, &arch, context.device)?);
            }
            Some(_) => return Err(Error::invalid("`augment` is neither images nor a generator")),
            None => {}
        }
        let batch = self.setting.batch;
        let side = |part: &Part, indices: &[u32], batch: usize, purpose: &str| {
            let batches = (batch, transform, rng.fork(purpose));
            side((split, part), indices, batches, context.device)
        };
        let ssl = match &self.setting.ssl {
            Some(setting) => {
                Ssl::new(setting, inputs.by_role.get("ssl.reference"), &student, &rng.fork("self-supervision"))?
            }
            None => None,
        };
        let views = ssl.as_ref().and_then(Ssl::views);
        let retain = side(&part, &split.retain, batch, "retain").seen(views);
        let forget = side(&part, &forget, self.setting.forget_batch.unwrap_or(batch), "forget").seen(views);
        let unseen = unseen(split);
        let validation = (!unseen.is_empty()).then(|| side(&split.images.validation, &unseen, batch, "validation"));
        let scene = Scene {
            mask,
            validation: validation.as_ref(),
            ssl: ssl.as_ref(),
            fakes: fakes.as_ref(),
            ..Scene::new(&forget, &retain, rng.fork("method"), context.desk)
        };
        let before = student.theta()?;
        self.method.unlearn(&mut student, &scene)?;
        let same = before.iter().zip(student.theta()?).all(|(before, after)| before.to_bits() == after.to_bits());
        if same && self.name != method::NOTHING {
            let name = &self.name;
            return Err(Error::invalid(format!("`{name}` changed no weight: with these settings it forgets nothing")));
        }
        let trained_on = format!("{}, unlearned by {}", weights.trained_on, self.name);
        Ok(Artifact::Model(Weights::of(&student, trained_on)?.into()))
    }
}

/// Mistakes of several settings together.
fn check(settings: &Settings) -> Vec<(String, String)> {
    let get = |name: &str| settings.get(name).and_then(Value::as_u64);
    let mut mistakes = Vec::new();
    if let (Some(msteps), Some(epochs)) = (get("msteps"), get("epochs"))
        && msteps > epochs
    {
        mistakes.push(("msteps".to_owned(), format!("`msteps` is {msteps}, but there are {epochs} epochs")));
    }
    mistakes.extend(settings.get("ssl").and_then(ssl::mistake).map(|what| ("ssl".to_owned(), what)));
    mistakes
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
pub(super) fn side(
    (split, part): (&Split, &Part),
    indices: &[u32],
    batches: (usize, Transform, Rng),
    device: &Device,
) -> Loader {
    let (batch, transform, rng) = batches;
    Loader::Drawn(Drawn {
        images: split.images.clone(),
        part: part.clone(),
        indices: indices.to_vec(),
        batch,
        transform,
        rng,
        device: device.clone(),
        labels: None,
        views: None,
    })
}

/// Validation images of the classes that are in the forget set.
fn unseen(split: &Split) -> Vec<u32> {
    let images = &split.images;
    let classes: BTreeSet<u32> = split.forget.iter().map(|&index| images.train.labels[index as usize]).collect();
    let labels = images.validation.labels.iter().zip(0..);
    labels.filter(|(label, _)| classes.contains(label)).map(|(_, index)| index).collect()
}

/// The training part with those images behind it, and the forget set with them in it.
fn grown(split: &Split, more: &Images) -> Result<(Part, Vec<u32>)> {
    let images = &split.images;
    if (more.size, &more.classes) != (images.size, &images.classes) {
        return Err(Error::invalid(format!(
            "`augment` has images of {:?} in {} classes, but {} has {:?} in {}",
            more.size,
            more.classes.len(),
            images.name,
            images.size,
            images.classes.len()
        )));
    }
    let part = Part {
        pixels: Arc::new([images.train.pixels.as_slice(), &more.train.pixels].concat()),
        labels: Arc::new([images.train.labels.as_slice(), &more.train.labels].concat()),
    };
    let behind = images.train.len() as u32..part.len() as u32;
    let forget = split.forget.iter().copied().chain(behind).collect();
    Ok((part, forget))
}
