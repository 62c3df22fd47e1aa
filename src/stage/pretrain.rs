//! `pretrain`: a network without labels, with the projection head that its loss looked through.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::train::{ARCH, BATCH, DATA, ON, chosen};
use super::{Choice, Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Encoder, Weights};
use crate::batches::Drawn;
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::transform::Transform;
use crate::pretrain::{self, Pretraining};
use crate::rng::Rng;
use crate::settings::{Default, Field, SEED, Type, read};

pub const KIND: StageKind = StageKind {
    name: "pretrain",
    about: "trains a network without labels, by a method",
    version: 1,
    makes: Makes::Always(Kind::Encoder),
    fields: &[
        DATA,
        ON,
        Field::or("part", Type::Choice(&["train", "unlabelled"]), "\"train\"", "which part of the images"),
        ARCH,
        Field { default: Default::Is("512"), ..BATCH },
        SEED,
    ],
    choice: Some(Choice { key: "method", noun: "pretraining", entries: pretrain::entries }),
    collects: false,
    make: |settings| {
        let name = settings.get("method").and_then(Value::as_str).unwrap_or_default();
        Ok(Box::new(Pretrain { method: pretrain::make(name, settings)?, setting: read(settings)? }))
    },
    check: |settings| {
        if settings.contains_key("on") && settings.get("part").is_some_and(|part| part == "unlabelled") {
            return vec![(
                "on".to_owned(),
                "a split divides the training part: `on` needs `part = \"train\"`".to_owned(),
            )];
        }
        Vec::new()
    },
};

#[derive(Debug, Deserialize)]
struct Setting {
    on: Option<String>,
    part: String,
    arch: Value,
    batch: usize,
    seed: u64,
}

#[derive(Debug)]
struct Pretrain {
    method: Box<dyn Pretraining>,
    setting: Setting,
}

impl Stage for Pretrain {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let (images, part, indices, trained_on) = self.chosen(inputs)?;
        let arch = Arch::new(&self.setting.arch, images.classes.len(), images.size, &images.mean, &images.std)?;
        let rng = Rng::new(self.setting.seed);
        let mut network = Model::init(&arch, &rng.fork("init"), context.device)?;
        let drawn = Drawn {
            images,
            part,
            indices,
            batch: self.setting.batch,
            transform: Transform::default(),
            rng: rng.fork("pretrain"),
            device: context.device.clone(),
            labels: None,
            views: None,
        };
        let head = self.method.pretrain(&mut network, drawn, &rng.fork("method"), context.desk)?;
        let weights =
            |model: &Model| -> Result<Weights> { Weights::of(model, format!("{trained_on}, without labels")) };
        Ok(Artifact::Encoder(Encoder { network: weights(&network)?, head: weights(&head)? }.into()))
    }
}

impl Pretrain {
    fn chosen(&self, inputs: &Inputs) -> Result<(Arc<Images>, Part, Vec<u32>, String)> {
        if self.setting.part == "train" {
            let (images, indices, words) = chosen(inputs, self.setting.on.as_deref())?;
            return Ok((images.clone(), images.train.clone(), indices, words));
        }
        match inputs.get("data")? {
            Artifact::Images(images) if images.unlabelled.is_empty() => {
                Err(Error::invalid(format!("{} has no unlabelled part: leave `part` out", images.name)))
            }
            Artifact::Images(images) => {
                let (all, words) =
                    (0..images.unlabelled.len() as u32, format!("the unlabelled part of {}", images.name));
                Ok((images.clone(), images.unlabelled.clone(), all.collect(), words))
            }
            _ => Err(Error::invalid("`data` is a split, which has no unlabelled part: name the images")),
        }
    }
}
