//! `dataset`: images, from a named data set.

use serde::Deserialize;

use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::Artifact;
use crate::dataset::{self, stratified, subset};
use crate::error::Result;
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
        Field::or("validation", SHARE, "0.0", "share of the training part kept apart, by class"),
        Field::optional("train_limit", COUNT, "at most that many training images, drawn by class"),
        Field::optional("test_limit", COUNT, "at most that many test images, drawn by class"),
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<Dataset>(settings)?)),
    check: |_| Vec::new(),
};

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
        let files: Vec<_> = context.files.values().cloned().collect();
        let mut images = (dataset::find(&self.source)?.load)(&files)?;
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
            images.validation = subset(&images.train, &apart, length);
            images.train = subset(&images.train, &left, length);
        }
        images.check()?;
        Ok(Artifact::Images(images.into()))
    }
}
