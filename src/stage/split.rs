//! `split`: what is to be forgotten, and what is kept: disjoint, complete and checked.

use std::collections::HashMap;

use serde::Deserialize;

use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::Artifact;
use crate::data::{Images, Split};
use crate::error::{Error, Result, listed, plural};
use crate::indices;
use crate::kind::Kind;
use crate::rng::Rng;
use crate::settings::{COUNT, Field, NATURAL, SEED, SHARE, Type, read};

const FORGET: &[Field] = &[
    Field::optional("count", COUNT, "that many images, drawn by the seed"),
    Field::optional("share", SHARE, "that share of the images, drawn by the seed"),
    Field::optional("classes", Type::List(&Type::Either(&[NATURAL, Type::Text])), "all images of these classes"),
    Field::optional("file", Type::Path, "indices into the training part: .txt, one a line, or .npy"),
];

pub const KIND: StageKind = StageKind {
    name: "split",
    about: "divides the training images into forget and retain",
    version: 1,
    makes: Makes::Always(Kind::Split),
    fields: &[
        Field::required("data", Type::Stage(&[Kind::Images]), "the images to divide"),
        Field::required(
            "forget",
            Type::Table(FORGET),
            "{ count }, { share }, { classes }, { classes, count } or { file }",
        ),
        Field::optional(
            "overlap",
            Type::Choice(&["allow"]),
            "images to forget that are test images too are an error, unless \"allow\" is said",
        ),
        SEED,
    ],
    choice: None,
    collects: false,
    make: |settings| Ok(Box::new(read::<SplitStage>(settings)?)),
    check: |settings| {
        let has = |name: &str| settings["forget"].get(name).is_some();
        let ways = [has("count") && !has("classes"), has("share"), has("classes"), has("file")];
        if ways.iter().filter(|&&way| way).count() == 1 {
            Vec::new()
        } else {
            let what = "`forget` takes exactly one of `count`, `share`, `classes` (with or without `count`) and `file`";
            vec![("forget".to_owned(), what.to_owned())]
        }
    },
};

#[derive(Debug, Deserialize)]
struct SplitStage {
    forget: Forget,
    overlap: Option<String>,
    seed: u64,
}

#[derive(Debug, Deserialize)]
struct Forget {
    count: Option<usize>,
    share: Option<f64>,
    classes: Option<Vec<serde_json::Value>>,
    file: Option<String>,
}

impl Stage for SplitStage {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact> {
        let Artifact::Images(images) = inputs.get("data")? else {
            return Err(Error::invalid("`data` is not images"));
        };
        let all = images.train.len();
        let mut classes = Vec::new();
        let mut candidates: Vec<u32> = (0..all as u32).collect();
        if let Some(wanted) = &self.forget.classes {
            classes = wanted.iter().map(|class| class_number(class, images)).collect::<Result<_>>()?;
            candidates.retain(|&index| classes.contains(&images.train.labels[index as usize]));
            for &class in &classes {
                if !images.train.labels.contains(&class) {
                    let name = &images.classes[class as usize];
                    return Err(Error::invalid(format!("the class {class} ({name}) has no training images")));
                }
            }
        }
        if let Some(path) = context.files.get("forget.file").or(self.forget.file.as_ref().map(Into::into).as_ref()) {
            candidates = indices::read(path, all)?;
        }
        let share = self.forget.share.map(|share| (all as f64 * share).round() as usize);
        if let Some(count) = self.forget.count.or(share) {
            if count > candidates.len() {
                return Err(Error::invalid(format!(
                    "{count} images are to be forgotten, but there are {}",
                    candidates.len()
                )));
            }
            if count < candidates.len() {
                Rng::new(self.seed).fork("forget").shuffle(&mut candidates);
                candidates.truncate(count);
                classes.clear();
            }
        }
        let split = Split::new(images.clone(), candidates, classes)?;
        if self.overlap.is_none() {
            apart(&split)?;
        }
        Ok(Artifact::Split(split.into()))
    }
}

/// An error where an image to forget is a test image too, pixel by pixel: what stands for unseen images would be what is
/// to be forgotten.
fn apart(split: &Split) -> Result<()> {
    let (images, length) = (&split.images, split.images.image_len().max(1));
    let unseen: HashMap<&[u8], usize> = images.test.pixels.chunks_exact(length).zip(0..).collect();
    let both = split.forget.iter().filter_map(|&index| {
        let pixels = images.train.pixels.chunks_exact(length).nth(index as usize)?;
        Some((index, *unseen.get(pixels)?))
    });
    let both: Vec<(u32, usize)> = both.collect();
    let Some((forget, test)) = both.first() else { return Ok(()) };
    Err(Error::invalid(format!(
        "forget and test overlap: training image {forget}, which is to be forgotten, is test image {test} too, pixel by \
         pixel, and {} in all are: leave them out of `forget`, or say `overlap = \"allow\"`",
        plural(both.len(), "image")
    )))
}

fn class_number(class: &serde_json::Value, images: &Images) -> Result<u32> {
    let number = match class {
        serde_json::Value::String(name) => images.classes.iter().position(|known| known == name),
        other => other.as_u64().map(|n| n as usize).filter(|&n| n < images.classes.len()),
    };
    number.map(|n| n as u32).ok_or_else(|| {
        Error::invalid(format!(
            "{} has no class {class}; its classes are {}",
            images.name,
            listed(&images.classes, "and")
        ))
    })
}
