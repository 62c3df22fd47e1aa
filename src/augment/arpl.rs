//! ARPL+CS, adversarial reciprocal points with confusing samples: Chen et al., TPAMI 2021,
//! <https://arxiv.org/abs/2103.00953>, as its authors released it. A generator learns to make images that a discriminator takes
//! for real and a classifier for no class in particular; its images, with a label each, are more to forget.

pub mod canvas;
pub mod open_set;
pub mod round;

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::{Augmenter, DATA, Registered, split};
use crate::artifact::Artifact;
use crate::batches::{Drawn, Loader};
use crate::data::{Part, Split};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::arch::{self, Arch, Shape};
use crate::nn::image::Picture;
use crate::nn::loss::arpl::Arpl;
use crate::nn::model::Model;
use crate::nn::optim::{self, Rule};
use crate::nn::schedule::{self, Schedule};
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{COUNT, Entry, Field, POSITIVE, TEMPERATURE, Type, read};
use crate::stage::{Context, Inputs};
use crate::trainer::{Recipe, Trainer};
use canvas::Canvas;
use round::{GENERATOR, POINTS, Round};

pub(super) const AUGMENTER: Registered = Registered {
    entry: Entry {
        name: "arpl",
        about: "a generator of images that confuse a classifier (ARPL+CS)",
        paper: "Chen et al., Adversarial reciprocal points, TPAMI 2021, https://arxiv.org/abs/2103.00953",
        version: 1,
        fields: &[
            DATA,
            Field::or("on", Type::Choice(&["forget", "retain", "all"]), "\"forget\"", "which images it trains on"),
            Field::required("arch", Type::Named { noun: "architecture", entries: arch::entries }, "the classifier"),
            Field::or("epochs", COUNT, "100", "passes over those images; two each with `second_pass`"),
            Field::or("second_pass", Type::Bool, "true", "one of the classifier alone after each, as released"),
            Field::or("batch", COUNT, "64", "images a step"),
            Field::or("lr", POSITIVE, "0.1", "learning rate of classifier and reciprocal points"),
            Field {
                default: crate::settings::Default::Is("{ name = \"sgd\", weight_decay = 0.0001 }"),
                ..optim::FIELD
            },
            schedule::FIELD,
            transform::FIELD,
            Field::or("gan_lr", POSITIVE, "0.0002", "learning rate of generator and discriminator, under Adam"),
            Field::or("beta", POSITIVE, "0.1", "weight of the term that makes generated images confusing"),
            Field::or("weight", POSITIVE, "0.1", "weight of the margin term"),
            Field::or(
                "margin",
                POSITIVE,
                "1.0",
                "how far within the radius distances to the own class's point shall stay",
            ),
            Field::or("temperature", TEMPERATURE, "1.0", "softens the classifier's outputs"),
            Field::or("noise", COUNT, "100", "numbers that a generated image is made from"),
            Field::or("width", COUNT, "64", "half the channels of the generator's last layer but one"),
            Field::or(
                "fake",
                Type::Choice(&["released", "posterior"]),
                "\"released\"",
                "probabilities of generated images: as released, from distances alone, or the classifier's",
            ),
            Field::optional("count", COUNT, "images to make; as many as there are to forget where not said"),
            Field::or(
                "labels",
                Type::Choice(&["random", "predicted"]),
                "\"random\"",
                "drawn among the classes it trained on, or the classifier's answers",
            ),
        ],
    },
    makes: Kind::Images,
    make: |settings| {
        let setting: Setting = read(settings)?;
        let optimizer = Rule::new(&setting.optimizer)?;
        let classifier = Recipe { lr: setting.lr, optimizer, schedule: Schedule::new(&setting.schedule)? };
        Ok(Box::new(Confusing { setting, classifier }))
    },
};

#[derive(Debug, Deserialize)]
struct Setting {
    on: String,
    arch: Value,
    epochs: usize,
    second_pass: bool,
    batch: usize,
    lr: f64,
    optimizer: Value,
    schedule: Value,
    transform: Value,
    gan_lr: f64,
    beta: f64,
    weight: f64,
    margin: f64,
    temperature: f64,
    noise: usize,
    width: usize,
    fake: String,
    count: Option<usize>,
    labels: String,
}

#[derive(Debug)]
struct Confusing {
    setting: Setting,
    /// Of classifier and points.
    classifier: Recipe,
}

/// Images of a split, and the classes among them, which are numbered anew.
struct Known {
    indices: Vec<u32>,
    /// Of each image, the place of its class in `classes`.
    labels: Vec<u32>,
    /// Ascending.
    classes: Vec<u32>,
}

impl Known {
    fn new(split: &Split, on: &str) -> Self {
        let indices = match on {
            "forget" => split.forget.clone(),
            "retain" => split.retain.clone(),
            _ => (0..split.images.train.len() as u32).collect(),
        };
        let truth = |&index: &u32| split.images.train.labels[index as usize];
        let classes: Vec<u32> = indices.iter().map(truth).collect::<BTreeSet<u32>>().into_iter().collect();
        let place = |index: &u32| classes.binary_search(&truth(index)).unwrap_or_default() as u32;
        let labels = indices.iter().map(place).collect();
        Self { indices, labels, classes }
    }
}

impl Augmenter for Confusing {
    fn more(&self, inputs: &Inputs, context: &Context, rng: &Rng) -> Result<Artifact> {
        let (setting, split) = (&self.setting, split(inputs)?);
        let (images, device) = (&split.images, context.device);
        let known = Known::new(split, &setting.on);
        let canvas = Canvas::new(images, device)?;

        let (count, [channels, ..]) = (known.classes.len(), images.size);
        let of_classes = |size: [usize; 3]| Arch::new(&setting.arch, count, size, &images.mean, &images.std);
        let network = of_classes(images.size)?.with_branches(2)?;
        let build = |name: &str, shape, classes, size| -> Result<Arch> {
            Ok(Arch::build(name, shape, classes, size, &[], &[])?.with_precision(network.precision))
        };
        let points = build("reciprocal points", Shape::ReciprocalPoints, count, [network.features()?, 1, 1])?;
        let generator = Shape::DcganGenerator { width: setting.width, side: canvas.side };
        let generator = build("generator", generator, channels, [setting.noise, 1, 1])?;
        let discriminator = Shape::DcganDiscriminator { width: setting.width };
        let discriminator = build("discriminator", discriminator, 1, [channels, canvas.side, canvas.side])?;
        let fresh = |arch: &Arch, name: &str| Model::init(arch, &rng.fork(name), device);
        let mut network = fresh(&network, "network")?;
        let mut points = fresh(&points, "points")?;
        let mut generator = fresh(&generator, "generator")?;

        let first = Drawn {
            part: images.train.clone(),
            images: images.clone(),
            indices: known.indices.clone(),
            batch: setting.batch,
            transform: Transform::new(&setting.transform)?,
            rng: rng.fork("train"),
            device: device.clone(),
            labels: Some(known.labels.clone()),
            views: None,
        };
        let second = Loader::Drawn(Drawn { rng: rng.fork("second pass"), ..first.clone() });
        let first = Loader::Drawn(first);
        let steps = first.steps(setting.epochs) * if setting.second_pass { 2 } else { 1 };
        let knobs = Arpl { temperature: setting.temperature, weight: setting.weight, margin: setting.margin };
        // one class is all there is to be sure of: nothing can confuse
        let beta = if count > 1 { setting.beta } else { 0.0 };
        let released = setting.fake == "released";
        let noise = (setting.noise, rng.fork("noise"));
        let round = Round { canvas: &canvas, knobs, beta, released, noise };
        let rate = setting.gan_lr;
        let optimizer = Rule::Adam { betas: [0.5, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let adversary = Recipe { lr: rate, optimizer, schedule: Schedule::Constant { warmup: 0.0 } };
        let mut trainer = Trainer::new(&mut network, &self.classifier, steps, None, context.desk)?
            .beside("points", &mut points, &self.classifier, None)?
            .beside("generator", &mut generator, &adversary, None)?
            .with("discriminator", fresh(&discriminator, "discriminator")?, &adversary)?;
        for epoch in 0..setting.epochs {
            trainer.rounds(epoch, &first, |crew, batch, index| round.play(crew, batch, (epoch, index)))?;
            if setting.second_pass {
                trainer.rounds(epoch, &second, |crew, batch, _| round.classify(crew, batch, None))?;
            }
        }

        let wanted = setting.count.unwrap_or(split.forget.len());
        let (mut pixels, mut made) = (Vec::new(), open_set::Answers::default());
        let note = trainer.aside(|crew| {
            let points = crew.model(POINTS).parameter("points")?.detach();
            for start in (0..wanted).step_by(setting.batch) {
                context.desk.halt()?;
                let images: Vec<u64> = (start..(start + setting.batch).min(wanted)).map(|image| image as u64).collect();
                let noise = round::noise(setting.noise, &rng.fork("images"), &images, device)?;
                let fake = crew.model(GENERATOR).logits(&noise)?;
                made.see(&crew.features(&canvas.seen(&fake)?)?, &points)?;
                pixels.extend(bytes(&canvas.cropped(&fake)?)?);
            }
            let network: &Model = crew;
            open_set::note((network, &points), images, &known.classes, &made, &|| context.desk.halt())
        })?;
        context.desk.note(&note);
        let draw = |image: usize| rng.fork("labels").at(image as u64).below(count as u64) as u32;
        let place = |image: usize| if setting.labels == "random" { draw(image) } else { made.classes[image] };
        let labels = (0..wanted).map(|image| known.classes[place(image) as usize]).collect();
        super::images("arpl", images, Part { pixels: Arc::new(pixels), labels: Arc::new(labels) })
    }
}

/// From [B, C, H, W] in [0, 1] to bytes, height x width x channels.
fn bytes(images: &Tensor) -> Result<Vec<u8>> {
    let (_, channels, height, width) = images.dims4()?;
    let values = images.flatten_all()?.to_vec1::<f32>()?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::invalid(format!("the generator makes images with {value} in them: lower `gan_lr`")));
    }
    let pictures = values.chunks_exact((channels * height * width).max(1));
    let bytes = |values: &[f32]| Picture { size: [channels, height, width], values: values.to_vec() }.to_bytes();
    Ok(pictures.flat_map(bytes).collect())
}
