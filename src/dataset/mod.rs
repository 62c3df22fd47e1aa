//! Data sets: each a function from found files to images. A newcomer adds a file and an entry of `DATASETS`.

mod cifar;
mod digits;
pub mod folder;
pub(crate) mod idx;
mod parquet_claims;
mod parquet_format;
mod parquet_images;
pub(crate) mod picture;
mod records;
mod stl10;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::{Images, Part};
use crate::error::{Error, Result, listed};
use crate::halt::Halt;
use crate::rng::Rng;

/// A data set that recipes may name.
#[derive(Debug)]
pub struct Dataset {
    pub name: &'static str,
    pub about: &'static str,
    /// In the order of their numbers; empty where they are not known beforehand.
    pub classes: &'static [&'static str],
    /// Images of the train, test and unlabelled parts, checked on load; zeros where they are not known beforehand.
    pub counts: [usize; 3],
    /// The forms in which it is published; the first that is found is taken, the first that can be is fetched.
    pub forms: &'static [Form],
}

/// One form in which a data set is published. Forms whose pixels differ give images of different names.
#[derive(Debug)]
pub struct Form {
    /// In two or three words: "binary batches".
    pub about: &'static str,
    /// File names, all in one folder.
    pub files: &'static [&'static str],
    /// Folders, under a data folder, that may hold the files; what is fetched goes into the first.
    pub folders: &'static [&'static str],
    /// Where the files can be had: one archive with all of them, or each by itself, in their order.
    pub origin: &'static [Remote],
    pub load: fn(&[PathBuf], &Halt) -> Result<Images>,
}

/// A file on a server.
#[derive(Debug)]
pub struct Remote {
    pub url: &'static str,
    /// As its publisher states it; empty where none is known, which pins the first download's SHA-256.
    pub md5: &'static str,
}

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// The data sets, as a recipe names them.
pub const DATASETS: &[Dataset] = &[
    digits::DATASET,
    cifar::CIFAR10,
    cifar::CIFAR100,
    cifar::CIFAR100_COARSE,
    idx::FASHION_MNIST,
    idx::MNIST,
    parquet_images::SVHN,
    stl10::STL10,
    stl10::STL10_UNLABELLED,
    folder::DATASET,
];

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
    /// Where its files are: in or under the folder of its own that the recipe says, else under the data folders. None
    /// where they are nowhere.
    pub fn locate(&self, own: Option<&Path>, folders: &[PathBuf]) -> Result<Option<Vec<PathBuf>>> {
        if self.name == folder::DATASET.name {
            return folder::locate(own).map(Some);
        }
        let places = own.map_or(folders.to_vec(), |own| vec![own.to_owned()]);
        for place in &places {
            for form in self.forms {
                let under = form.folders.iter().map(|sub| place.join(sub)).chain(own.map(Path::to_owned));
                for folder in under {
                    let found: Vec<PathBuf> = form.files.iter().map(|file| folder.join(file)).collect();
                    if found.iter().all(|path| path.is_file()) {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(self.forms.iter().any(|form| form.files.is_empty()).then(Vec::new))
    }

    /// The error that says what to put where.
    #[must_use]
    pub fn absent(&self, own: Option<&Path>, folders: &[PathBuf]) -> Error {
        let looked = own.map_or(folders.to_vec(), |own| vec![own.to_owned()]);
        let looked: Vec<String> = looked.iter().map(|folder| folder.display().to_string()).collect();
        let way = |form: &Form| {
            let urls: Vec<&str> = form.origin.iter().map(|remote| remote.url).collect();
            let from = if urls.is_empty() { String::new() } else { format!(" (from {})", urls.join(" ")) };
            let folder = form.folders.first().copied().unwrap_or_default();
            format!("the {}, {}, into DIR/{folder}{from}", form.about, listed(form.files, "and"))
        };
        let ways: Vec<String> = self.forms.iter().map(way).collect();
        Error::invalid(format!(
            "the data set `{}` is not at hand: it is not under {}; put {}, and say --data DIR (or RECANT_DATA)",
            self.name,
            listed(&looked, "or"),
            ways.join("; or "),
        ))
    }

    /// Reads found files, and checks that all images are there.
    pub fn load(&self, files: &[PathBuf], halt: &Halt) -> Result<Images> {
        let images = (self.form_of(files)?.load)(files, halt)?;
        let found = [images.train.len(), images.test.len(), images.unlabelled.len()];
        if self.counts != [0; 3] && found != self.counts {
            let [train, test, unlabelled] = self.counts;
            return Err(Error::invalid(format!(
                "{} has {} training, {} test and {} unlabelled images, expected {train}, {test} and {unlabelled}",
                images.name, found[0], found[1], found[2]
            )));
        }
        Ok(images)
    }

    /// The form whose names the files have.
    pub fn form_of(&self, files: &[PathBuf]) -> Result<&'static Form> {
        let fits = |form: &&Form| {
            form.files.len() == files.len() && form.files.iter().zip(files).all(|(name, path)| path.ends_with(name))
        };
        let only = if self.forms.len() == 1 { self.forms.first() } else { None };
        only.or_else(|| self.forms.iter().find(fits))
            .ok_or_else(|| Error::invalid(format!("these are not the files of `{}`", self.name)))
    }
}

/// Images of train and test parts, with the moments of the training part.
fn assemble(name: String, classes: &[&str], size: [usize; 3], train: Part, test: Part) -> Result<Images> {
    let (mean, std) = moments(&train, size[0]);
    let images = Images {
        name,
        classes: classes.iter().map(|&class| class.to_owned()).collect(),
        size,
        mean,
        std,
        train,
        test,
        validation: Part::default(),
        unlabelled: Part::default(),
    };
    images.check()?;
    Ok(images)
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
