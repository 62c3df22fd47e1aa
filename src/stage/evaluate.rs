//! `evaluate`: all the numbers about one model on one split. Logits are computed once and kept with the numbers.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::json;

use super::{Context, Inputs, Makes, Progress, Stage, StageKind};
use crate::artifact::{Artifact, Scores};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::metric::{self, Answers, Evidence};
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;
use crate::settings::{Field, SEED, Type, read};

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
        METRICS,
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Evaluate>(settings)?)),
    check: |_| Vec::new(),
};

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
        let model = Model::from_tensors(&Arch::from_value(&weights.arch)?, &weights.tensors, context.device)?;
        let images = &split.images;
        let every = |part: &Part| (0..part.len() as u32).collect::<Vec<u32>>();
        let parts = [
            ("forget", &images.train, split.forget.clone()),
            ("retain", &images.train, split.retain.clone()),
            ("validation", &images.validation, every(&images.validation)),
            ("test", &images.test, every(&images.test)),
        ];
        let total = parts.iter().map(|(.., indices)| indices.len()).sum();
        let (mut tensors, mut answers, mut done) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (name, part, indices) in parts {
            let mut tell = |count: usize| {
                done += count;
                context.desk.progress(Progress { done, total, loss: None, images: done });
                if context.desk.stop() { Err(Error::Interrupted) } else { Ok(()) }
            };
            let logits = logits(&model, images, part, &indices, &mut tell)?;
            let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
            answers.insert(name, Answers::new(&logits, labels, images.classes.len()));
            let shape = (indices.len(), images.classes.len());
            tensors.insert(format!("logits.{name}"), Tensor::from_vec(logits, shape, &Device::Cpu)?);
        }
        let mut take = |name: &str| answers.remove(name).unwrap_or_default();
        let evidence = Evidence {
            forget: take("forget"),
            retain: take("retain"),
            validation: take("validation"),
            test: take("test"),
            forgotten: split.classes.clone(),
            rng: Rng::new(self.seed).fork("evaluate"),
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
