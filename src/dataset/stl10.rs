//! STL-10: A. Coates, H. Lee, A. Y. Ng, "An Analysis of Single Layer Networks in Unsupervised Feature Learning",
//! AISTATS 2011, <https://cs.stanford.edu/~acoates/stl10/>. 96x96 RGB; planes are stored column by column, labels from 1.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dataset, Form, Remote, assemble, records};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::halt::Halt;

const SIDE: usize = 96;
const IMAGE: usize = 3 * SIDE * SIDE;
const CLASSES: [&str; 10] = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];
const FOLDERS: &[&str] = &["stl10_binary", "stl10/stl10_binary", "stl10"];
const ORIGIN: &[Remote] = &[Remote {
    url: "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5: "91f7769df0f17e558f3565bffb0c7dfb",
}];

pub(super) const STL10: Dataset = Dataset {
    name: "stl10",
    about: "STL-10, 5,000 and 8,000 of 96x96 RGB",
    classes: &CLASSES,
    counts: [5_000, 8_000, 0],
    forms: &[Form {
        about: "binary files",
        files: &["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"],
        folders: FOLDERS,
        origin: ORIGIN,
        load,
    }],
};

pub(super) const STL10_UNLABELLED: Dataset = Dataset {
    name: "stl10_unlabelled",
    about: "STL-10 with its 100,000 unlabelled images (2.8 GB)",
    classes: &CLASSES,
    counts: [5_000, 8_000, 100_000],
    forms: &[Form {
        about: "binary files",
        files: &["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"],
        folders: FOLDERS,
        origin: ORIGIN,
        load,
    }],
};

fn load(files: &[PathBuf], halt: &Halt) -> Result<Images> {
    let [train, train_labels, test, test_labels, rest @ ..] = files else {
        return Err(Error::invalid(format!("STL-10 has four or five files, not {}", files.len())));
    };
    let part = |images: &Path, labels: &Path| -> Result<Part> {
        let (pixels, mut numbers) = (pixels(images, halt)?, Vec::new());
        records::each(labels, 1, "a label an image", halt, |number, record| {
            let label = record[0];
            let why = || format!("image {number} has the label {label}, expected 1 to 10");
            numbers.push(
                u32::from(label).checked_sub(1).filter(|&l| l < 10).ok_or_else(|| Error::bad_file(labels, why()))?,
            );
            Ok(())
        })?;
        if pixels.len() != numbers.len() * IMAGE {
            let why = format!(
                "it has {} labels for the {} images of `{}`",
                numbers.len(),
                pixels.len() / IMAGE,
                images.display()
            );
            return Err(Error::bad_file(labels, why));
        }
        Ok(Part { pixels: Arc::new(pixels), labels: Arc::new(numbers) })
    };
    let (train, test) = (part(train, train_labels)?, part(test, test_labels)?);
    let mut images = assemble("STL-10".to_owned(), &CLASSES, [3, SIDE, SIDE], train, test)?;
    if let [unlabelled] = rest {
        let pixels = pixels(unlabelled, halt)?;
        let labels = vec![0; pixels.len() / IMAGE];
        images.unlabelled = Part { pixels: Arc::new(pixels), labels: Arc::new(labels) };
        images.check()?;
    }
    Ok(images)
}

fn pixels(path: &Path, halt: &Halt) -> Result<Vec<u8>> {
    let mut pixels = Vec::with_capacity(records::count(path, IMAGE) * IMAGE);
    records::each(path, IMAGE, "three planes of 96x96", halt, |_, planes| {
        for row in 0..SIDE {
            for column in 0..SIDE {
                pixels.extend((0..3).map(|channel| planes[(channel * SIDE + column) * SIDE + row]));
            }
        }
        Ok(())
    })?;
    Ok(pixels)
}
