//! `dataset`: images, from a named data set.

use serde::Deserialize;
use serde_json::Value;

use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::Artifact;
use crate::dataset::{self, stratified, subset};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::rng::Rng;
use crate::settings::{COUNT, Field, SEED, SHARE, Type, read};

pub const KIND: StageKind = StageKind {
    name: "dataset",
    about: "images, from a named data set",
    version: 1,
    makes: Makes::Always(Kind::Images),
    fields: &[
        Field::required("source", Type::Name { noun: "data set", names: dataset::names }, "which data set"),
        Field::optional("path", Type::Path, "a folder: of your own images, or with this data set's files"),
        Field::optional("sha256", SUMS, "digests to fetch by, in place of the known: one a download"),
        Field::or("validation", SHARE, "0.0", "share of the training part kept apart, by class"),
        Field::optional("train_limit", COUNT, "at most that many training images, drawn by class"),
        Field::optional("test_limit", COUNT, "at most that many test images, drawn by class"),
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Dataset>(settings)?)),
    check: |settings| {
        let own = settings.get("source").and_then(Value::as_str) == Some(dataset::folder::DATASET.name);
        if own && !settings.contains_key("path") {
            vec![("source".to_owned(), "the data set `folder` needs a `path`".to_owned())]
        } else {
            Vec::new()
        }
    },
};

const SUMS: Type = Type::Either(&[Type::Text, Type::List(&Type::Text)]);

#[derive(Debug, Deserialize)]
struct Dataset {
    source: String,
    validation: f64,
    train_limit: Option<usize>,
    test_limit: Option<usize>,
    seed: u64,
}

impl Stage for Dataset {
    fn run(&self, _: &Inputs, context: &Context) -> Result<Artifact> {
        let files = context.files.iter().filter(|(role, _)| role.starts_with("source."));
        let files: Vec<_> = files.map(|(_, path)| path.clone()).collect();
        let mut images = dataset::find(&self.source)?.load(&files, &|| context.desk.halt())?;
        let (classes, length) = (images.classes.len(), images.image_len());
        let rng = Rng::new(self.seed);
        for (part, limit, purpose) in
            [(&mut images.train, self.train_limit, "train limit"), (&mut images.test, self.test_limit, "test limit")]
        {
            if let Some(limit) = limit.filter(|&limit| limit < part.len()) {
                let share = limit as f64 / part.len() as f64;
                let (kept, _) = stratified(&part.labels, classes, share, &rng.fork(purpose));
                *part = subset(part, &kept, length);
            }
        }
        if self.validation > 0.0 {
            let (apart, left) = stratified(&images.train.labels, classes, self.validation, &rng.fork("validation"));
            if !images.validation.is_empty() {
                let why = "the data has a validation part of its own: leave `validation` out";
                return Err(Error::invalid(why));
            }
            images.validation = subset(&images.train, &apart, length);
            images.train = subset(&images.train, &left, length);
        }
        images.check()?;
        Ok(Artifact::Images(images.into()))
    }
}
