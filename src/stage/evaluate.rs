//! `evaluate`: all the numbers about one model on one split. Logits are computed once and kept with the numbers.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use super::unlearn::fitting;
use super::{Context, Inputs, Makes, Progress, Stage, StageKind};
use crate::artifact::{Artifact, Scores, Weights};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::metric::{self, Answers, Evidence, Reference, cka};
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{Field, SEED, Settings, Type, read};

/// Images a forward pass; no result depends on it.
const BATCH: usize = 256;

pub const METRICS: Field = Field::or(
    "metrics",
    Type::List(&Type::Name { noun: "metric", names: metric::names }),
    "[\"accuracy\", \"loss\", \"mia_confidence\", \"mia_loss\"]",
    "what to measure",
);

pub const KIND: StageKind = StageKind {
    name: "evaluate",
    about: "measures one model on one split",
    version: 1,
    makes: Makes::Always(Kind::Scores),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model]), "what to measure"),
        Field::required("data", Type::Stage(&[Kind::Split]), "the split to measure it on"),
        Field::optional("reference", Type::Stage(&[Kind::Model]), "a model to compare with, for metrics that do"),
        METRICS,
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Evaluate>(settings)?)),
    check: |settings| {
        if !wants_reference(settings) || settings.contains_key("reference") {
            return Vec::new();
        }
        vec![("metrics".to_owned(), "these metrics compare with another model: say `reference = \"..\"`".to_owned())]
    },
};

/// Whether the metrics compare with a reference: only then is it an input.
#[must_use]
pub fn wants_reference(settings: &Settings) -> bool {
    let names = settings.get("metrics").and_then(Value::as_array).into_iter().flatten();
    metric::needs(names.filter_map(Value::as_str)).reference
}

#[derive(Debug, Deserialize)]
struct Evaluate {
    metrics: Vec<String>,
    seed: u64,
}

impl Stage for Evaluate {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let (Artifact::Model(weights), Artifact::Split(split)) = (inputs.get("model")?, inputs.get("data")?) else {
            return Err(Error::invalid("`model` and `data` are not a model and a split"));
        };
        let load = |weights: &Weights| Model::from_tensors(&fitting(weights, split)?, &weights.tensors, context.device);
        let model = load(weights)?;
        let needs = metric::needs(self.metrics.iter().map(String::as_str));
        let reference = match inputs.by_role.get("reference") {
            Some(Artifact::Model(weights)) if needs.reference => Some(load(weights)?),
            _ => None,
        };
        let images = &split.images;
        let every = |part: &Part| (0..part.len() as u32).collect::<Vec<u32>>();
        let parts = [
            ("forget", &images.train, split.forget.clone()),
            ("retain", &images.train, split.retain.clone()),
            ("validation", &images.validation, every(&images.validation)),
            ("test", &images.test, every(&images.test)),
        ];
        let models = 1 + usize::from(reference.is_some());
        let total = models * parts.iter().map(|(.., indices)| indices.len()).sum::<usize>();
        let mut done = 0;
        let mut tell = |count: usize| {
            done += count;
            context.desk.progress(Progress { done: done.min(total), total, loss: None, images: done });
            if context.desk.stop() { Err(Error::Interrupted) } else { Ok(()) }
        };
        let mut ask = |model: &Model, part: &Part, indices: &[u32]| -> Result<(Answers, Vec<f32>)> {
            let logits = logits(model, images, part, indices, &mut tell)?;
            let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
            Ok((Answers::new(&logits, labels, images.classes.len()), logits))
        };
        let (mut tensors, mut answers, mut theirs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, part, indices) in &parts {
            let (own, logits) = ask(&model, part, indices)?;
            answers.insert(*name, own);
            let shape = (indices.len(), images.classes.len());
            tensors.insert(format!("logits.{name}"), Tensor::from_vec(logits, shape, &Device::Cpu)?);
            if let Some(reference) = &reference {
                theirs.insert(*name, ask(reference, part, indices)?.0);
            }
        }
        let rng = Rng::new(self.seed).fork("evaluate");
        let random = if needs.random {
            let random = Model::init(model.arch(), &rng.fork("random network"), context.device)?;
            Some(ask(&random, &images.train, &split.forget)?.0)
        } else {
            None
        };
        let layers = match &reference {
            Some(reference) if needs.layers => {
                let mut chosen = split.forget.clone();
                rng.fork("cka").shuffle(&mut chosen);
                chosen.truncate(cka::IMAGES);
                alignments(&model, reference, images, &chosen, &mut tell)?
            }
            _ => Vec::new(),
        };
        let take = |answers: &mut BTreeMap<&str, Answers>, name: &str| answers.remove(name).unwrap_or_default();
        let evidence = Evidence {
            forget: take(&mut answers, "forget"),
            retain: take(&mut answers, "retain"),
            validation: take(&mut answers, "validation"),
            test: take(&mut answers, "test"),
            forgotten: split.classes.clone(),
            reference: reference.is_some().then(|| Reference {
                forget: take(&mut theirs, "forget"),
                retain: take(&mut theirs, "retain"),
                test: take(&mut theirs, "test"),
            }),
            random,
            layers,
            rng,
        };
        let (mut numbers, mut notes) = (Vec::new(), Vec::new());
        for name in &self.metrics {
            let (more, remarks) = (metric::find(name)?.measure)(&evidence)?;
            numbers.extend(more);
            notes.extend(remarks);
        }
        let record = json!({
            "numbers": numbers,
            "notes": notes,
            "data": images.name,
            "forget": split.forget.len(),
            "retain": split.retain.len(),
            "trained_on": weights.trained_on,
        });
        Ok(Artifact::Scores(Scores { record, tensors }.into()))
    }
}

fn logits(
    model: &Model,
    images: &Images,
    part: &Part,
    indices: &[u32],
    tell: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(indices.len() * images.classes.len());
    for chunk in indices.chunks(BATCH) {
        let x = transform::batch(images, part, chunk, Transform::default(), &Rng::new(0))?;
        all.extend(model.logits(&x.to_device(model.device())?)?.flatten_all()?.to_vec1::<f32>()?);
        tell(chunk.len())?;
    }
    Ok(all)
}

/// CKA of each layer that both models have, on training images.
fn alignments(
    model: &Model,
    reference: &Model,
    images: &Images,
    indices: &[u32],
    tell: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<(String, f64)>> {
    let mut all: BTreeMap<String, cka::Alignment> = BTreeMap::new();
    for chunk in indices.chunks(cka::BATCH).filter(|chunk| chunk.len() > 3) {
        let x = transform::batch(images, &images.train, chunk, Transform::default(), &Rng::new(0))?;
        let x = x.to_device(model.device())?;
        let (mine, theirs) = (model.taps(&x)?, reference.taps(&x)?);
        for (name, mine) in mine {
            if let Some(theirs) = theirs.get(&name) {
                all.entry(name).or_default().add(&mine, theirs)?;
            }
        }
        tell(0)?;
    }
    Ok(all.into_iter().filter_map(|(name, alignment)| Some((name, alignment.value()?))).collect())
}
