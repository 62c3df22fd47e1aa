//! `probe`: how much a network's features say of the classes, by two classifiers that learn from the training part and are
//! asked on the test part: the vote of nearest neighbours, and a linear layer.

pub mod knn;
pub mod linear;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::json;

use super::{Context, Inputs, Makes, Progress, Stage, StageKind};
use crate::artifact::{Artifact, Scores};
use crate::data::{Images, Part};
use crate::error::{Error, Result, finite};
use crate::halt::Halt;
use crate::kind::Kind;
use crate::metric::{Aim, Number};
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{COUNT, Field, POSITIVE, TEMPERATURE, Type, read};

/// Images a forward pass; no result depends on it.
const BATCH: usize = 256;

pub const KIND: StageKind = StageKind {
    name: "probe",
    about: "measures how much a network's features say of the classes",
    version: 1,
    makes: Makes::Always(Kind::Scores),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Encoder, Kind::Model]), "whose features"),
        Field::required("data", Type::Stage(&[Kind::Images]), "images: learns from train, is asked on test"),
        Field::or("k", COUNT, "200", "nearest training images that vote"),
        Field::or("temperature", TEMPERATURE, "0.07", "a neighbour's vote counts exp(cosine / temperature)"),
        Field::or("l2", POSITIVE, "0.001", "times half the squared weights of the linear layer"),
        Field::or("iterations", COUNT, "500", "steps of L-BFGS at most, each over all training images"),
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Probe>(settings)?)),
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct Probe {
    k: usize,
    temperature: f64,
    l2: f64,
    iterations: usize,
}

/// Features of some images, row by row, with their labels.
#[derive(Clone, Debug)]
pub struct Rows {
    pub values: Vec<f32>,
    pub width: usize,
    pub labels: Vec<u32>,
}

impl Rows {
    pub fn each(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width.max(1))
    }
}

impl Stage for Probe {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let weights = match inputs.get("model")? {
            Artifact::Model(weights) => weights,
            Artifact::Encoder(encoder) => &encoder.network,
            _ => return Err(Error::invalid("`model` is neither a model nor an encoder")),
        };
        let Artifact::Images(images) = inputs.get("data")? else {
            return Err(Error::invalid("`data` is not images"));
        };
        let arch = Arch::from_value(&weights.arch)?;
        if arch.size != images.size {
            let (name, own) = (&images.name, images.size);
            return Err(Error::invalid(format!("the network takes images of {:?}, but {name} has {own:?}", arch.size)));
        }
        if images.test.is_empty() {
            return Err(Error::invalid(format!("{} has no test images to ask about", images.name)));
        }
        let model = Model::from_tensors(&arch, &weights.tensors, context.device)?;
        // as the network saw images when it was trained
        let seen = Images { mean: arch.mean.clone(), std: arch.std.clone(), ..(**images).clone() };
        let mut done = 0;
        let mut of = |part: &Part| features(&model, &seen, part, &mut done, context);
        let (train, test) = (of(&seen.train)?, of(&seen.test)?);
        let classes = images.classes.len();
        let halt: &Halt = &|| context.desk.halt();
        let near = knn::vote(&train, &test, classes, (self.k, self.temperature), halt)?;
        let layer = linear::Linear::fit(&train, classes, self.l2, self.iterations, halt)?;
        let straight = layer.answers(&test);
        let right = |answers: &[u32]| {
            let right = answers.iter().zip(&test.labels).filter(|(answer, label)| answer == label).count();
            100.0 * right as f64 / test.labels.len() as f64
        };
        let number = |name: &str, value: f64| Number {
            name: format!("probe.{name}"),
            value,
            unit: "%".to_owned(),
            aim: Aim::Higher,
        };
        let record = json!({
            "numbers": [number("knn", right(&near)), number("linear", right(&straight))],
            "notes": [
                format!("probe.knn: {} of {} training images vote", self.k.min(train.labels.len()), train.labels.len()),
                format!("probe.linear: largest slope {:.1e} after {} steps", layer.slope, layer.steps),
            ],
            "data": images.name,
            "trained_on": weights.trained_on,
        });
        let rows = test.labels.len();
        let tensors = BTreeMap::from([
            ("answers.knn".to_owned(), Tensor::from_vec(near, rows, &Device::Cpu)?),
            ("answers.linear".to_owned(), Tensor::from_vec(straight, rows, &Device::Cpu)?),
        ]);
        Ok(Artifact::Scores(Scores { record, tensors }.into()))
    }
}

/// What the last layer reads, in evaluation mode; `done` counts images.
fn features(model: &Model, images: &Images, part: &Part, done: &mut usize, context: &Context) -> Result<Rows> {
    let indices: Vec<u32> = (0..part.len() as u32).collect();
    let width = model.arch().features()?;
    let mut values = Vec::with_capacity(indices.len() * width);
    for chunk in indices.chunks(BATCH) {
        let x = transform::batch(images, part, chunk, Transform::default(), &Rng::new(0), model.device())?;
        values.extend(model.features(&x)?.flatten_all()?.to_vec1::<f32>()?);
        *done += chunk.len();
        let total = images.train.len() + images.test.len();
        context.desk.progress(Progress { done: *done, total, loss: None, images: *done });
        context.desk.halt()?;
    }
    finite(&values, "the network's features")?;
    Ok(Rows { values, width, labels: part.labels.to_vec() })
}
