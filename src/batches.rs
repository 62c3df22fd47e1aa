//! Batches of a subset, epoch after epoch. The order of an epoch and what is drawn for an image are functions of the
//! seed, the epoch and the image, so a training that resumes sees what it would have seen.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::data::{Images, Part};
use crate::error::Result;
use crate::nn::transform::{self, Transform};
use crate::nn::view::{self, View};
use crate::rng::Rng;

/// Some images on the device: `x` is `[B, C, H, W]`, normalised; `y` is `[B]`, u32.
#[derive(Clone, Debug)]
pub struct Batch {
    pub x: Tensor,
    pub y: Tensor,
    /// Another view of each image, shaped as `x`, where the loader draws views.
    pub view: Option<Tensor>,
}

/// Which views a loader draws.
#[derive(Clone, Copy, Debug)]
pub struct Views {
    pub view: View,
    /// Whether `x` is a view too, and not the image by the loader's transform.
    pub both: bool,
}

/// Batches, in a fresh order each epoch. A smaller last batch counts as one.
#[derive(Clone, Debug)]
pub enum Loader {
    Drawn(Drawn),
    /// Given batches, for checks against known results: those of each epoch.
    Given(Vec<Vec<Batch>>),
}

#[derive(Clone, Debug)]
pub struct Drawn {
    pub images: Arc<Images>,
    pub part: Part,
    /// Indices into the part.
    pub indices: Vec<u32>,
    pub batch: usize,
    pub transform: Transform,
    pub rng: Rng,
    pub device: Device,
    /// Labels to train on in place of the true ones, one for each index.
    pub labels: Option<Vec<u32>>,
    pub views: Option<Views>,
}

/// The batches of one epoch.
#[derive(Debug)]
pub struct Epoch<'a> {
    loader: &'a Loader,
    number: usize,
    /// Positions in `indices`, shuffled.
    order: Vec<usize>,
    pub len: usize,
}

impl Loader {
    /// Training steps of that many epochs.
    #[must_use]
    pub fn steps(&self, epochs: usize) -> usize {
        match self {
            Loader::Drawn(drawn) => drawn.indices.len().div_ceil(drawn.batch.max(1)) * epochs,
            Loader::Given(all) => all.iter().take(epochs).map(Vec::len).sum(),
        }
    }

    #[must_use]
    pub fn epoch(&self, number: usize) -> Epoch<'_> {
        let (order, len) = match self {
            Loader::Drawn(drawn) => {
                let mut order: Vec<usize> = (0..drawn.indices.len()).collect();
                drawn.rng.fork("shuffle").at(number as u64).shuffle(&mut order);
                (order, drawn.indices.len().div_ceil(drawn.batch.max(1)))
            }
            Loader::Given(all) => (Vec::new(), all.get(number).map_or(0, Vec::len)),
        };
        Epoch { loader: self, number, order, len }
    }

    /// The images of both, in one order; given batches one after another.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        match (self, other) {
            (Loader::Drawn(one), Loader::Drawn(other)) => {
                let indices = [one.indices.as_slice(), &other.indices].concat();
                Loader::Drawn(Drawn { indices, labels: None, batch: other.batch, ..one.clone() })
            }
            (one, other) => {
                let all = |loader: &Self| if let Loader::Given(all) = loader { all.clone() } else { Vec::new() };
                let (mut epochs, more) = (all(one), all(other));
                epochs.resize(epochs.len().max(more.len()), Vec::new());
                epochs.iter_mut().zip(more).for_each(|(epoch, more)| epoch.extend(more));
                Loader::Given(epochs)
            }
        }
    }

    /// Both sides shuffled together, with labels that say which: 1 for `self`, 0 for `other`. Given batches are taken as
    /// they are.
    #[must_use]
    pub fn mixed(&self, other: &Self) -> Self {
        match (self, self.with(other)) {
            (Loader::Drawn(one), Loader::Drawn(both)) => {
                let labels = (0..both.indices.len()).map(|at| u32::from(at < one.indices.len())).collect();
                Loader::Drawn(Drawn { labels: Some(labels), ..both })
            }
            (_, both) => both,
        }
    }

    /// The same images with a second view of each, where one is asked for.
    #[must_use]
    pub fn seen(self, views: Option<Views>) -> Self {
        match self {
            Loader::Drawn(drawn) => Loader::Drawn(Drawn { views, ..drawn }),
            given @ Loader::Given(_) => given,
        }
    }

    /// The same images without transforms or views.
    #[must_use]
    pub fn plain(&self) -> Self {
        let Loader::Drawn(drawn) = self else { return self.clone() };
        Loader::Drawn(Drawn { transform: Transform::default(), views: None, ..drawn.clone() })
    }

    /// A random share of the images, one at least; the same ones for the same stream.
    #[must_use]
    pub fn sample(&self, share: f64, rng: &Rng) -> Self {
        let Loader::Drawn(drawn) = self else { return self.clone() };
        let mut order: Vec<usize> = (0..drawn.indices.len()).collect();
        rng.clone().shuffle(&mut order);
        order.truncate(((share * order.len() as f64).round() as usize).max(1));
        order.sort_unstable();
        let pick = |all: &[u32]| order.iter().map(|&at| all[at]).collect::<Vec<u32>>();
        let labels = drawn.labels.as_deref().map(pick);
        Loader::Drawn(Drawn { indices: pick(&drawn.indices), labels, ..drawn.clone() })
    }

    /// The same images with other labels, one drawn for each: uniform over the wrong classes, or over `any` of them.
    #[must_use]
    pub fn mislabelled(&self, any: bool, rng: &Rng) -> Self {
        let Loader::Drawn(drawn) = self else { return self.clone() };
        let classes = drawn.images.classes.len() as u64;
        let wrong = |&index: &u32| {
            let truth = drawn.part.labels[index as usize];
            let mut draw = rng.at(u64::from(index));
            let shift = if any { draw.below(classes) } else { 1 + draw.below(classes.saturating_sub(1)) } as u32;
            (truth + shift) % classes as u32
        };
        let labels = Some(drawn.indices.iter().map(wrong).collect());
        Loader::Drawn(Drawn { labels, ..drawn.clone() })
    }
}

impl Epoch<'_> {
    /// Batch `index`, counted round: batch `len` is batch 0 again.
    pub fn batch(&self, index: usize) -> Result<Batch> {
        let index = index % self.len.max(1);
        match self.loader {
            Loader::Given(all) => all
                .get(self.number)
                .and_then(|epoch| epoch.get(index))
                .cloned()
                .ok_or_else(|| crate::error::Error::invalid(format!("no batch {index} in epoch {}", self.number))),
            Loader::Drawn(drawn) => {
                let end = (index * drawn.batch + drawn.batch).min(self.order.len());
                let chosen = &self.order[(index * drawn.batch).min(end)..end];
                let indices: Vec<u32> = chosen.iter().map(|&at| drawn.indices[at]).collect();
                let labels: Vec<u32> = match &drawn.labels {
                    Some(labels) => chosen.iter().map(|&at| labels[at]).collect(),
                    None => indices.iter().map(|&index| drawn.part.labels[index as usize]).collect(),
                };
                let draws = drawn.rng.fork("augment").at(self.number as u64);
                let plain = || {
                    let (images, part, device) = (&drawn.images, &drawn.part, &drawn.device);
                    transform::batch(images, part, &indices, drawn.transform, &draws, device)
                };
                let view = |views: Views, name: &str| -> Result<Tensor> {
                    let draws = drawn.rng.fork(name).at(self.number as u64);
                    let drawn_view = view::batch(&drawn.images, &drawn.part, &indices, &views.view, &draws)?;
                    Ok(drawn_view.to_device(&drawn.device)?)
                };
                let x = match drawn.views {
                    Some(views) if views.both => view(views, "first view")?,
                    _ => plain()?,
                };
                let y = Tensor::from_vec(labels, indices.len(), &drawn.device)?;
                Ok(Batch { x, y, view: drawn.views.map(|views| view(views, "second view")).transpose()? })
            }
        }
    }
}
