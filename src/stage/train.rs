//! `train`: a network from scratch: the original on all training images, or the oracle on what is retained.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Weights};
use crate::batches::{Drawn, Loader};
use crate::data::Images;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::method;
use crate::nn::arch::{self, Arch};
use crate::nn::loss::cross_entropy;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::nn::{optim, schedule};
use crate::rng::Rng;
use crate::settings::{COUNT, Field, POSITIVE, SEED, Type, read};
use crate::trainer::{Recipe, Trainer};

pub(super) const DATA: Field = Field::required("data", Type::Stage(&[Kind::Images, Kind::Split]), "what to train on");
pub(super) const ON: Field =
    Field::optional("on", Type::Choice(&["retain", "forget"]), "which side of a split; needed where `data` is one");
pub(super) const ARCH: Field =
    Field::required("arch", Type::Named { noun: "architecture", entries: arch::entries }, "the network");
pub(super) const BATCH: Field = Field::or("batch", COUNT, "128", "images a step");

pub const KIND: StageKind = StageKind {
    name: "train",
    about: "trains a network from scratch",
    // 2: the bias of a linear layer starts as PyTorch draws it, not at 0
    version: 2,
    makes: Makes::Always(Kind::Model),
    fields: &[
        DATA,
        ON,
        ARCH,
        Field::required("epochs", COUNT, "passes over the data"),
        BATCH,
        Field::or("lr", POSITIVE, "0.1", "learning rate"),
        optim::FIELD,
        schedule::FIELD,
        transform::FIELD,
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| {
        let setting = read::<Setting>(settings)?;
        Ok(Box::new(Train { setting, recipe: method::recipe(settings)? }))
    },
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct Setting {
    on: Option<String>,
    arch: Value,
    epochs: usize,
    batch: usize,
    transform: Value,
    seed: u64,
}

#[derive(Debug)]
struct Train {
    setting: Setting,
    recipe: Recipe,
}

impl Stage for Train {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let setting = &self.setting;
        let (images, indices, words) = chosen(inputs, setting.on.as_deref())?;
        let arch = Arch::new(&setting.arch, images.classes.len(), images.size, &images.mean, &images.std)?;
        let rng = Rng::new(setting.seed);
        let mut model = Model::init(&arch, &rng.fork("init"), context.device)?;
        let loader = Loader::Drawn(Drawn {
            part: images.train.clone(),
            images,
            indices,
            batch: setting.batch,
            transform: Transform::new(&setting.transform)?,
            rng: rng.fork("train"),
            device: context.device.clone(),
            labels: None,
            views: None,
        });
        let steps = loader.steps(setting.epochs);
        let mut trainer = Trainer::new(&mut model, &self.recipe, steps, None, context.desk)?;
        for epoch in 0..setting.epochs {
            trainer.epoch(epoch, &loader, |model, batch, _| cross_entropy(&model.train(&batch.x)?.logits, &batch.y))?;
        }
        Ok(Artifact::Model(Weights::of(&model, words)?.into()))
    }
}

/// The images to train on, as indices into their training part, with words for what they are: all of it, or the side
/// `on` of a split.
pub(super) fn chosen(inputs: &Inputs, on: Option<&str>) -> Result<(Arc<Images>, Vec<u32>, String)> {
    match (inputs.get("data")?, on) {
        (Artifact::Images(images), None) => {
            Ok((images.clone(), (0..images.train.len() as u32).collect(), format!("all of {}", images.name)))
        }
        (Artifact::Images(_), Some(_)) => {
            Err(Error::invalid("`on` is for a split, but `data` is images: leave it out"))
        }
        (Artifact::Split(split), Some(side)) => {
            let indices = if side == "forget" { &split.forget } else { &split.retain };
            Ok((split.images.clone(), indices.clone(), format!("the {side} set of {}", split.images.name)))
        }
        _ => Err(Error::invalid("`data` is a split: say `on = \"retain\"` or `on = \"forget\"`")),
    }
}
