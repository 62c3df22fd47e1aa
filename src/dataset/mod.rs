//! Data sets: each a function from found files to images. A newcomer adds a file and an entry of `DATASETS`.

mod digits;
mod idx;
mod parquet_images;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::{Images, Part};
use crate::error::{Error, Result, listed};
use crate::rng::Rng;

/// A data set that recipes may name.
#[derive(Debug)]
pub struct Dataset {
    pub name: &'static str,
    pub about: &'static str,
    /// File names, each looked for under the data folders in the folders below.
    pub files: &'static [&'static str],
    /// Folders, under a data folder, that may hold the files.
    pub folders: &'static [&'static str],
    /// Where the files can be had.
    pub origin: &'static str,
    pub load: fn(&[PathBuf]) -> Result<Images>,
}

/// The data sets, as a recipe names them.
pub const DATASETS: &[Dataset] = &[digits::DATASET, parquet_images::CIFAR10, idx::FASHION_MNIST, idx::MNIST];

#[must_use]
pub fn names() -> Vec<&'static str> {
    DATASETS.iter().map(|dataset| dataset.name).collect()
}

pub fn find(name: &str) -> Result<&'static Dataset> {
    DATASETS
        .iter()
        .find(|dataset| dataset.name == name)
        .ok_or_else(|| Error::invalid(format!("unknown data set `{name}`; there are {}", listed(&names(), "and"))))
}

impl Dataset {
    /// Where its files are under the given folders, or an error that says what to put where.
    pub fn locate(&self, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
        if self.files.is_empty() {
            return Ok(Vec::new());
        }
        let places = folders.iter().flat_map(|folder| self.folders.iter().map(move |sub| folder.join(sub)));
        for place in places {
            let found: Vec<PathBuf> = self.files.iter().map(|file| place.join(file)).collect();
            if found.iter().all(|path| path.is_file()) {
                return Ok(found);
            }
        }
        let looked = if folders.is_empty() {
            "no data folder is given".to_owned()
        } else {
            format!(
                "it is not under {}",
                listed(&folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>(), "or")
            )
        };
        Err(Error::invalid(format!(
            "the data set `{}` is not at hand: {looked}; get {} from {} into DIR/{} and say --data DIR (or RECANT_DATA)",
            self.name,
            listed(self.files, "and"),
            self.origin,
            self.folders.first().copied().unwrap_or_default(),
        )))
    }
}

/// Reads a whole file.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io("read", path))
}

/// Mean and standard deviation a channel of pixels scaled to [0, 1], summed exactly in integers.
fn moments(part: &Part, channels: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut sums, mut squares) = (vec![0_u64; channels], vec![0_u64; channels]);
    for pixel in part.pixels.chunks_exact(channels.max(1)) {
        for (c, &value) in pixel.iter().enumerate() {
            sums[c] += u64::from(value);
            squares[c] += u64::from(value) * u64::from(value);
        }
    }
    let count = (part.pixels.len() / channels.max(1)).max(1) as f64;
    let mean: Vec<f64> = sums.iter().map(|&sum| sum as f64 / count / 255.0).collect();
    let std = squares.iter().zip(&mean).map(|(&sum, mean)| {
        let variance = sum as f64 / count / 65025.0 - mean * mean;
        if variance > 0.0 { variance.sqrt() as f32 } else { 1.0 }
    });
    let std = std.collect();
    (mean.into_iter().map(|m| m as f32).collect(), std)
}

/// Takes a share of each class, drawn by the stream: (taken, left), both ascending.
#[must_use]
pub fn stratified(labels: &[u32], classes: usize, share: f64, rng: &Rng) -> (Vec<u32>, Vec<u32>) {
    let mut taken = vec![false; labels.len()];
    for class in 0..classes as u32 {
        let mut members: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class).collect();
        rng.at(u64::from(class)).shuffle(&mut members);
        let count = (members.len() as f64 * share).round() as usize;
        members.iter().take(count).for_each(|&i| taken[i] = true);
    }
    let pick = |wanted: bool| (0..labels.len() as u32).filter(|&i| taken[i as usize] == wanted).collect();
    (pick(true), pick(false))
}

/// The images at those indices, in that order.
#[must_use]
pub fn subset(part: &Part, indices: &[u32], image_len: usize) -> Part {
    let mut pixels = Vec::with_capacity(indices.len() * image_len);
    for &index in indices {
        pixels.extend_from_slice(&part.pixels[index as usize * image_len..][..image_len]);
    }
    let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
    Part { pixels: Arc::new(pixels), labels: Arc::new(labels) }
}
