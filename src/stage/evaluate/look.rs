//! What an evaluation asks a model: logits, features, and the likeness of its layers to another's.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::artifact::Artifact;
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::method::Fakes;
use crate::metric::{cka, tsne};
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;

/// Images a forward pass; no result depends on it.
const BATCH: usize = 256;

/// Hears how many images a model has answered for; an error stops the work.
pub(super) type Tell<'a> = dyn FnMut(usize) -> Result<()> + 'a;

/// Images as they are, on the model's device.
fn batch(model: &Model, images: &Images, part: &Part, indices: &[u32]) -> Result<Tensor> {
    transform::batch(images, part, indices, Transform::default(), &Rng::new(0), model.device())
}

/// Row by row.
pub(super) fn logits(
    model: &Model,
    images: &Images,
    part: &Part,
    indices: &[u32],
    tell: &mut Tell,
) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(indices.len() * images.classes.len());
    for chunk in indices.chunks(BATCH) {
        all.extend(model.logits(&batch(model, images, part, chunk)?)?.flatten_all()?.to_vec1::<f32>()?);
        tell(chunk.len())?;
    }
    Ok(all)
}

/// What the last layer reads, image by image.
pub(super) fn features(
    model: &Model,
    images: &Images,
    part: &Part,
    indices: &[u32],
    tell: &mut Tell,
) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(BATCH) {
        let features = model.features(&batch(model, images, part, chunk)?)?;
        all.extend(features.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?);
        tell(chunk.len())?;
    }
    Ok(all)
}

/// The features of some of what an augmenter made: those of its images, or those that a generator makes up.
pub(super) fn generated(model: &Model, more: &Artifact, rng: &Rng, tell: &mut Tell) -> Result<Vec<Vec<f64>>> {
    let most = tsne::IMAGES / 3;
    match more {
        Artifact::Images(made) if made.size == model.arch().size => {
            let mut indices: Vec<u32> = (0..made.train.len() as u32).collect();
            rng.clone().shuffle(&mut indices);
            indices.truncate(most);
            features(model, made, &made.train, &indices, tell)
        }
        Artifact::Images(made) => {
            let (found, wanted) = (made.size, model.arch().size);
            Err(Error::invalid(format!("`augment` has images of {found:?}, but the model takes {wanted:?}")))
        }
        Artifact::Generator(generator) => {
            let made = Fakes::new(generator, 1, model.arch(), model.device())?.draw(most, rng)?;
            Ok(made.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?)
        }
        other => Err(Error::invalid(format!("`augment` is {}, not images or a generator", other.kind()))),
    }
}

/// CKA of each layer that both models have, in the order of the layers, on training images.
pub(super) fn alignments(
    model: &Model,
    reference: &Model,
    images: &Images,
    indices: &[u32],
    tell: &mut Tell,
) -> Result<Vec<(String, f64)>> {
    let mut all: BTreeMap<String, cka::Alignment> = BTreeMap::new();
    for chunk in indices.chunks(cka::BATCH).filter(|chunk| chunk.len() > 3) {
        let x = batch(model, images, &images.train, chunk)?;
        let (mine, theirs) = (model.taps(&x)?, reference.taps(&x)?);
        for (name, mine) in mine {
            if let Some(theirs) = theirs.get(&name) {
                all.entry(name).or_default().add(&mine, theirs)?;
            }
        }
        tell(0)?;
    }
    let value = |layer: &&str| Some(((*layer).to_owned(), all.get(*layer)?.value()?));
    Ok(model.layers().iter().filter_map(value).collect())
}
