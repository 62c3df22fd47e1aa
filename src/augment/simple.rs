//! Simple image changes, those of SimCLR's views (Chen et al., ICML 2020, <https://arxiv.org/abs/2002.05709>) and Gaussian
//! noise: on the bytes of forget images, labels kept. Image i comes from forget image i mod n, by draws of its own.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Augmenter, DATA, Registered, split};
use crate::artifact::Artifact;
use crate::data::Part;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::image::Picture;
use crate::nn::view::{self, View};
use crate::rng::Rng;
use crate::settings::{COUNT, Entry, Field, read};
use crate::stage::{Context, Inputs};

pub(super) const AUGMENTER: Registered = Registered {
    entry: Entry {
        name: "simple",
        about: "crops, mirrors, recolours, blurs and noise",
        paper: "Chen et al., SimCLR, ICML 2020, https://arxiv.org/abs/2002.05709",
        version: 1,
        fields: &[
            DATA,
            Field::optional("count", COUNT, "images to make; as many as there are to forget where not said"),
            view::CROP,
            view::FLIP,
            view::JITTER,
            view::JITTER_CHANCE,
            view::GRAYSCALE,
            view::BLUR,
            view::NOISE,
        ],
    },
    makes: Kind::Images,
    make: |settings| {
        let count = settings.get("count").and_then(serde_json::Value::as_u64).map(|count| count as usize);
        Ok(Box::new(Simple { count, view: read(settings)? }))
    },
};

#[derive(Debug)]
struct Simple {
    count: Option<usize>,
    view: View,
}

impl Augmenter for Simple {
    fn more(&self, inputs: &Inputs, context: &Context, rng: &Rng) -> Result<Artifact> {
        let split = split(inputs)?;
        let (images, forget) = (&split.images, &split.forget);
        let count = self.count.unwrap_or(forget.len());
        let length = images.image_len();
        let mut pixels = vec![0; count * length];
        pixels.par_chunks_mut(length.max(1)).enumerate().try_for_each(|(index, out)| {
            context.desk.halt()?;
            let from = forget[index % forget.len()] as usize;
            let picture = Picture::from_bytes(&images.train.pixels[from * length..][..length], images.size);
            out.copy_from_slice(&self.view.change(&picture, rng.at(index as u64)).to_bytes());
            Ok::<(), Error>(())
        })?;
        let labels = (0..count).map(|index| images.train.labels[forget[index % forget.len()] as usize]).collect();
        super::images("simple", images, Part { pixels: Arc::new(pixels), labels: Arc::new(labels) })
    }
}
