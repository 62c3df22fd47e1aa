//! SimCLR: Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020,
//! <https://arxiv.org/abs/2002.05709>. Two views of each image go through the network and a head; NT-Xent draws the two
//! projections of one image together and pushes those of all others apart.
//!
//! Defaults are the paper's for CIFAR-10 (appendix B.9: colour strength 0.5, no blur, temperature 0.5, batch 512, weight
//! decay 1e-6, half a cosine), but for the optimiser: LARS is made for batches of thousands, and at these Adam at 0.001
//! does as well without its knobs.

use candle_core::Tensor;
use serde::Deserialize;

use super::{Pretraining, Registered};
use crate::batches::{Drawn, Loader, Views};
use crate::error::{Error, Result};
use crate::nn::head::{self, project};
use crate::nn::loss::nt_xent;
use crate::nn::model::Model;
use crate::nn::optim::{self, Rule};
use crate::nn::schedule::{self, Schedule};
use crate::nn::view::{self, View};
use crate::rng::Rng;
use crate::settings::{COUNT, Default, Entry, Field, POSITIVE, TEMPERATURE, read};
use crate::stage::Desk;
use crate::trainer::{Recipe, Trainer};

const fn or(field: Field, default: &'static str) -> Field {
    Field { default: Default::Is(default), ..field }
}

pub(super) const PRETRAINING: Registered = Registered {
    entry: Entry {
        name: "simclr",
        about: "two views of an image together, others apart",
        paper: "Chen et al., SimCLR, ICML 2020, https://arxiv.org/abs/2002.05709",
        version: 1,
        fields: &[
            Field::required("epochs", COUNT, "passes over the images"),
            Field::or("lr", POSITIVE, "0.001", "learning rate"),
            or(optim::FIELD, "{ name = \"adam\", weight_decay = 1e-6 }"),
            or(schedule::FIELD, "\"cosine\""),
            Field::or("temperature", TEMPERATURE, "0.5", "cosines are divided by it"),
            Field::or("projection", COUNT, "128", "width of the head's projections"),
            view::CROP,
            view::FLIP,
            or(view::JITTER, "0.4"),
            view::JITTER_CHANCE,
            view::GRAYSCALE,
            or(view::BLUR, "0.0"),
            view::NOISE,
        ],
    },
    make: |settings| Ok(Box::new(SimClr { view: read(settings)?, setting: read(settings)? })),
};

#[derive(Debug, Deserialize)]
struct Setting {
    epochs: usize,
    lr: f64,
    optimizer: Rule,
    schedule: Schedule,
    temperature: f64,
    projection: usize,
}

#[derive(Debug)]
struct SimClr {
    view: View,
    setting: Setting,
}

impl Pretraining for SimClr {
    fn pretrain(&self, network: &mut Model, images: Drawn, rng: &Rng, desk: &dyn Desk) -> Result<Model> {
        let Setting { epochs, lr, temperature, projection, .. } = self.setting;
        let recipe = Recipe { lr, optimizer: self.setting.optimizer.clone(), schedule: self.setting.schedule.clone() };
        let mut head = head::init(network, projection, &rng.fork("head"))?;
        let loader = Loader::Drawn(Drawn { views: Some(Views { view: self.view, both: true }), ..images });
        // No gradient reaches the last layer, but weight decay would.
        let mask = network.only(&["fc."])?.iter().map(|last| 1.0 - last).collect();
        let mut trainer = Trainer::new(network, &recipe, loader.steps(epochs), Some(mask), desk)?
            .beside("head", &mut head, &recipe, None)?;
        for epoch in 0..epochs {
            trainer.epoch(epoch, &loader, |crew, batch, _| {
                let other = batch.view.as_ref().ok_or_else(|| Error::invalid("the batch has no second view"))?;
                let features = crew.train(&Tensor::cat(&[&batch.x, other], 0)?)?.features;
                nt_xent(&project(crew.model(1), &features)?, temperature)
            })?;
        }
        drop(trainer);
        Ok(head)
    }
}
