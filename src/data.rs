//! Images and the split of their training part into forget and retain.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Some labelled images: `pixels` is count x height x width x channels, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub pixels: Arc<Vec<u8>>,
    pub labels: Arc<Vec<u32>>,
}

impl Part {
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// As printed with results; copies whose pixels differ have different names: "CIFAR-10 (JPEG copy)".
    pub name: String,
    /// Class names; their number is the number of classes.
    pub classes: Vec<String>,
    /// Channels, height, width.
    pub size: [usize; 3],
    /// Per channel, of pixels scaled to [0, 1]: a network sees (pixel / 255 - mean) / std.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub train: Part,
    pub validation: Part,
    pub test: Part,
    /// STL-10's unlabelled part (labels all 0); empty elsewhere.
    pub unlabelled: Part,
}

impl Images {
    /// Bytes of one image.
    #[must_use]
    pub fn image_len(&self) -> usize {
        self.size.iter().product()
    }

    /// Sizes and labels agree; an error says which part does not.
    pub fn check(&self) -> Result<()> {
        let [channels, height, width] = self.size;
        let length = self.size.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
        let Some(length) = length.filter(|&length| length > 0) else {
            let why = format!("{}: images of {channels} x {height} x {width} cannot be", self.name);
            return Err(Error::invalid(why));
        };
        if self.mean.len() != channels || self.std.len() != channels {
            let (mean, std) = (self.mean.len(), self.std.len());
            let why = format!("{}: {channels} channels, but mean and std have {mean} and {std}", self.name);
            return Err(Error::invalid(why));
        }
        for (name, part) in [
            ("train", &self.train),
            ("validation", &self.validation),
            ("test", &self.test),
            ("unlabelled", &self.unlabelled),
        ] {
            if part.len().checked_mul(length) != Some(part.pixels.len()) {
                return Err(Error::invalid(format!(
                    "{}: the {name} part has {} labels but {} bytes of pixels, {} an image",
                    self.name,
                    part.len(),
                    part.pixels.len(),
                    length
                )));
            }
            if let Some(label) = part.labels.iter().find(|&&label| label as usize >= self.classes.len()) {
                return Err(Error::invalid(format!(
                    "{}: the {name} part has the label {label}, but there are {} classes",
                    self.name,
                    self.classes.len()
                )));
            }
        }
        Ok(())
    }
}

/// What is to be forgotten and what is to be kept: indices into the training part, each ascending, together all of it
/// and disjoint.
#[derive(Clone, Debug)]
pub struct Split {
    pub images: Arc<Images>,
    pub forget: Vec<u32>,
    pub retain: Vec<u32>,
    /// The classes that are forgotten whole; empty for a random split.
    pub classes: Vec<u32>,
}

impl Split {
    /// What can be asked about, by name: the images, and which of them.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &Part, Vec<u32>); 4] {
        let images = &self.images;
        let every = |part: &Part| (0..part.len() as u32).collect();
        [
            ("forget", &images.train, self.forget.clone()),
            ("retain", &images.train, self.retain.clone()),
            ("validation", &images.validation, every(&images.validation)),
            ("test", &images.test, every(&images.test)),
        ]
    }

    /// Checks what a split promises: within range, without duplicates, disjoint, complete, neither side empty.
    pub fn new(images: Arc<Images>, forget: Vec<u32>, classes: Vec<u32>) -> Result<Self> {
        let (count, known) = (images.train.len(), images.classes.len());
        if let Some(class) = classes.iter().find(|&&class| class as usize >= known) {
            return Err(Error::invalid(format!("the forget set is the class {class}, but there are {known} classes")));
        }
        let mut side = vec![false; count];
        for &index in &forget {
            let seen = side.get_mut(index as usize).ok_or_else(|| {
                Error::invalid(format!("the forget set has the index {index}, but there are {count} training images"))
            })?;
            if std::mem::replace(seen, true) {
                return Err(Error::invalid(format!("the forget set has the index {index} twice")));
            }
        }
        let pick = |wanted: bool| -> Vec<u32> { (0..count as u32).filter(|&i| side[i as usize] == wanted).collect() };
        let split = Self { images, forget: pick(true), retain: pick(false), classes };
        if split.forget.is_empty() {
            return Err(Error::invalid("the forget set is empty: there is nothing to forget"));
        }
        if split.retain.is_empty() {
            return Err(Error::invalid("the forget set is the whole training part: nothing is left to retain"));
        }
        Ok(split)
    }
}
