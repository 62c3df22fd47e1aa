//! `evaluate`: all the numbers and figures about one model on one split. Logits are computed once and kept with them.

mod look;
mod relearning;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::unlearn::fitting;
use super::{Context, Inputs, Makes, Progress, Stage, StageKind};
use crate::artifact::{Artifact, Scores, Weights};
use crate::data::Part;
use crate::error::{Error, Result, finite};
use crate::kind::Kind;
use crate::metric::relearn::WITHIN;
use crate::metric::{self, Answers, Evidence, Measured, Need, Reference, cka, tsne};
use crate::nn::model::Model;
use crate::rng::Rng;
use crate::settings::{Field, SEED, Settings, Type, read};
use look::{alignments, features, generated, logits};
use relearning::relearn;

pub const METRICS: Field = Field::or(
    "metrics",
    Type::List(&Type::Name { noun: "metric", names: metric::names }),
    "[\"accuracy\", \"loss\", \"mia_confidence\", \"mia_loss\"]",
    "what to measure",
);

pub const KIND: StageKind = StageKind {
    name: "evaluate",
    about: "measures one model on one split",
    // 2: figures beside the numbers; 3: attacks by LIBSVM's steps on more images, maps of near neighbours
    version: 3,
    makes: Makes::Always(Kind::Scores),
    fields: &[
        Field::required("model", Type::Stage(&[Kind::Model]), "what to measure"),
        Field::required("data", Type::Stage(&[Kind::Split]), "the split to measure it on"),
        Field::optional("reference", Type::Stage(&[Kind::Model]), "a model to compare with, for metrics that do"),
        Field::optional(
            "augment",
            Type::Stage(&[Kind::Images, Kind::Generator]),
            "what an augmenter made of this split, to show on the map of `tsne`",
        ),
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
    metric::need(names.filter_map(Value::as_str), Need::Reference)
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
        let needs = |need: Need| metric::need(self.metrics.iter().map(String::as_str), need);
        let other = match inputs.by_role.get("reference") {
            Some(Artifact::Model(other)) if needs(Need::Reference) => Some(other),
            _ => None,
        };
        // the reference's own row: it is asked once
        let itself = other.is_some_and(|other| Arc::ptr_eq(other, weights));
        let reference = other.filter(|_| !itself).map(|other| load(other)).transpose()?;
        let images = &split.images;
        let parts = split.parts();
        let models = 1 + usize::from(reference.is_some());
        let total = models * parts.iter().map(|(.., indices)| indices.len()).sum::<usize>();
        let mut done = 0;
        let mut tell = |count: usize| {
            done += count;
            context.desk.progress(Progress { done: done.min(total), total, loss: None, images: done });
            context.desk.halt()
        };
        let mut ask = |whose: &str, model: &Model, part: &Part, indices: &[u32]| -> Result<(Answers, Vec<f32>)> {
            let logits = logits(model, images, part, indices, &mut tell)?;
            finite(&logits, &format!("{whose} logits"))?;
            let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
            Ok((Answers::new(&logits, labels, images.classes.len()), logits))
        };
        let (mut tensors, mut answers, mut theirs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, part, indices) in &parts {
            let (own, logits) = ask("the model's", &model, part, indices)?;
            answers.insert(*name, own);
            let shape = (indices.len(), images.classes.len());
            tensors.insert(format!("logits.{name}"), Tensor::from_vec(logits, shape, &Device::Cpu)?);
            if let Some(reference) = &reference {
                theirs.insert(*name, ask("the reference's", reference, part, indices)?.0);
            } else if itself {
                theirs.insert(*name, answers[name].clone());
            }
        }
        let rng = Rng::new(self.seed).fork("evaluate");
        let random = if needs(Need::Random) {
            let random = Model::init(model.arch(), &rng.fork("random network"), context.device)?;
            Some(ask("a random network's", &random, &images.train, &split.forget)?.0)
        } else {
            None
        };
        let layers = match reference.as_ref().or(itself.then_some(&model)) {
            Some(reference) if needs(Need::Layers) => {
                let mut chosen = split.forget.clone();
                rng.fork("cka").shuffle(&mut chosen);
                chosen.truncate(cka::IMAGES);
                alignments(&model, reference, images, &chosen, &mut tell)?
            }
            _ => Vec::new(),
        };
        let mut mapped = Vec::new();
        if needs(Need::Features) {
            for (name, part, indices) in shown(&parts, &rng.fork("tsne images")) {
                mapped.push((name.to_owned(), features(&model, images, part, &indices, &mut tell)?));
            }
            if let Some(more) = inputs.by_role.get("augment") {
                mapped.push(("generated".to_owned(), generated(&model, more, &rng.fork("generated"), &mut tell)?));
            }
        }
        let relearned = if needs(Need::Relearning) {
            let known = theirs.get("retain").map(Answers::losses).unwrap_or_default();
            let wanted = WITHIN * known.iter().sum::<f64>() / known.len() as f64;
            Some(relearn(&model, split, wanted, &rng.fork("relearn"), context.device, &mut tell)?)
        } else {
            None
        };
        let take = |answers: &mut BTreeMap<&str, Answers>, name: &str| answers.remove(name).unwrap_or_default();
        let evidence = Evidence {
            forget: take(&mut answers, "forget"),
            retain: take(&mut answers, "retain"),
            validation: take(&mut answers, "validation"),
            test: take(&mut answers, "test"),
            classes: images.classes.clone(),
            forgotten: split.classes.clone(),
            reference: other.is_some().then(|| Reference {
                forget: take(&mut theirs, "forget"),
                retain: take(&mut theirs, "retain"),
                test: take(&mut theirs, "test"),
            }),
            random,
            layers,
            features: mapped,
            relearned,
            rng,
            halt: &|| context.desk.halt(),
        };
        let mut all = Measured::default();
        let measured: Vec<Result<Measured>> =
            self.metrics.par_iter().map(|name| (metric::find(name)?.measure)(&evidence)).collect();
        for more in measured {
            let more = more?;
            all.numbers.extend(more.numbers);
            all.figures.extend(more.figures);
            all.notes.extend(more.notes);
        }
        let record = json!({
            "numbers": all.numbers,
            "figures": all.figures,
            "notes": all.notes,
            "data": images.name,
            "forget": split.forget.len(),
            "retain": split.retain.len(),
            "trained_on": weights.trained_on,
        });
        Ok(Artifact::Scores(Scores { record, tensors }.into()))
    }
}

/// The images of the map: as many of forget, retain and test as there are, at most a third of the whole each.
fn shown<'a>(parts: &[(&'static str, &'a Part, Vec<u32>)], rng: &Rng) -> Vec<(&'static str, &'a Part, Vec<u32>)> {
    let wanted = parts.iter().filter(|(name, ..)| *name != "validation");
    let chosen = wanted.map(|(name, part, indices)| {
        let mut indices = indices.clone();
        rng.fork(name).shuffle(&mut indices);
        indices.truncate(tsne::IMAGES / 3);
        (*name, *part, indices)
    });
    chosen.collect()
}
