//! Image sets in the parquet layout of Hugging Face: a column `img` of {bytes, path} with one encoded image each, and
//! a column `label`. The pixels of JPEG and PNG copies differ, so each has its own name in results.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use rayon::prelude::*;

use super::{Dataset, moments};
use crate::data::{Images, Part};
use crate::error::{Error, Result};

pub(super) const CIFAR10: Dataset = Dataset {
    name: "cifar10",
    about: "CIFAR-10, 50,000 and 10,000 of 32x32 RGB, as parquet",
    files: &["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
    folders: &["cifar10/plain_text", "cifar10", "plain_text"],
    origin: "https://huggingface.co/datasets/uoft-cs/cifar10/tree/main/plain_text",
    load: |files| {
        let classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
        load(files, "CIFAR-10", &classes, 32)
    },
};

fn load(files: &[PathBuf], name: &str, classes: &[&str], side: u32) -> Result<Images> {
    let [train, test] = files else {
        return Err(Error::invalid(format!("{name} has two files, not {}", files.len())));
    };
    let (train, format) = part(train, side)?;
    let (test, _) = part(test, side)?;
    let (mean, std) = moments(&train, 3);
    let images = Images {
        name: format!("{name} ({format} copy)"),
        classes: classes.iter().map(|&class| class.to_owned()).collect(),
        size: [3, side as usize, side as usize],
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

fn part(path: &Path, side: u32) -> Result<(Part, &'static str)> {
    let bad = |why: String| Error::bad_file(path, why);
    let file = File::open(path).map_err(Error::io("open", path))?;
    let reader = SerializedFileReader::new(file).map_err(|error| bad(error.to_string()))?;
    let (mut encoded, mut labels) = (Vec::new(), Vec::new());
    let rows = reader.get_row_iter(None).map_err(|error| bad(error.to_string()))?;
    for (number, row) in rows.enumerate() {
        let row = row.map_err(|error| bad(format!("row {number}: {error}")))?;
        for (column, field) in row.get_column_iter() {
            match (column.as_str(), field) {
                ("img" | "image", Field::Group(image)) => {
                    for (inner, value) in image.get_column_iter() {
                        if let ("bytes", Field::Bytes(bytes)) = (inner.as_str(), value) {
                            encoded.push(bytes.data().to_vec());
                        }
                    }
                }
                ("label" | "fine_label", Field::Long(label)) => {
                    labels.push(u32::try_from(*label).map_err(|_| bad(format!("row {number}: label {label}")))?);
                }
                _ => {}
            }
        }
        if (encoded.len(), labels.len()) != (number + 1, number + 1) {
            return Err(bad(format!("row {number} lacks `img.bytes` or an int64 `label`")));
        }
    }
    let jpeg = encoded.first().is_some_and(|bytes| bytes.starts_with(&[0xff, 0xd8]));
    let decoded: Vec<Vec<u8>> = encoded
        .par_iter()
        .enumerate()
        .map(|(number, bytes)| {
            let image =
                image::load_from_memory(bytes).map_err(|error| bad(format!("image {number}: {error}")))?.to_rgb8();
            if image.dimensions() == (side, side) {
                Ok(image.into_raw())
            } else {
                Err(bad(format!("image {number} is {:?}, not {side}x{side}", image.dimensions())))
            }
        })
        .collect::<Result<_>>()?;
    let part = Part { pixels: Arc::new(decoded.concat()), labels: Arc::new(labels) };
    Ok((part, if jpeg { "JPEG" } else { "PNG" }))
}
