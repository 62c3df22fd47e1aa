//! UCI optical digits: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
//! Repository, 1998, <https://doi.org/10.24432/C50P49>, CC BY 4.0: its test part, 1,797 images of 8x8 with grey values
//! 0 to 16, as scikit-learn ships it. It has no official split: a fixed stratified fifth is the test part here.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dataset, Form, moments, stratified, subset};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::halt::Halt;
use crate::rng::Rng;

pub(super) const DATASET: Dataset = Dataset {
    name: "digits",
    about: "UCI optical digits, 1,797 images of 8x8, built in (CC BY 4.0)",
    classes: &super::DIGITS,
    counts: [1438, 359, 0],
    forms: &[Form { about: "part of this program", files: &[], folders: &[], origin: &[], load }],
};

static FILE: &[u8] = include_bytes!("digits.csv.gz");
const SIDE: usize = 8;

fn load(_: &[PathBuf], _: &Halt) -> Result<Images> {
    let bad = |why: String| Error::bad_file(Path::new("digits.csv.gz"), why);
    let mut text = String::new();
    flate2::read::GzDecoder::new(FILE).read_to_string(&mut text).map_err(|error| bad(error.to_string()))?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let values: Vec<u32> = line
            .split(',')
            .map(|v| v.trim().parse().map_err(|_| bad(format!("not a number: `{v}`"))))
            .collect::<Result<_>>()?;
        let [image @ .., label] = values.as_slice() else { continue };
        if image.len() != SIDE * SIDE {
            return Err(bad(format!("a line has {} pixels", image.len())));
        }
        // 0..=16 to 0..=255, rounded
        pixels.extend(image.iter().map(|&grey| ((grey.min(16) * 255 + 8) / 16) as u8));
        labels.push(*label);
    }
    let all = Part { pixels: Arc::new(pixels), labels: Arc::new(labels) };
    let (test, train) = stratified(&all.labels, 10, 0.2, &Rng::new(0).fork("digits test part"));
    let train = subset(&all, &train, SIDE * SIDE);
    let (mean, std) = moments(&train, 1);
    let images = Images {
        name: "UCI digits".to_owned(),
        classes: super::DIGITS.map(str::to_owned).to_vec(),
        size: [1, SIDE, SIDE],
        mean,
        std,
        test: subset(&all, &test, SIDE * SIDE),
        train,
        validation: Part::default(),
        unlabelled: Part::default(),
    };
    images.check()?;
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_have_all_classes_in_both_parts() {
        let images = load(&[], &crate::halt::never).unwrap();
        assert_eq!(images.train.len() + images.test.len(), 1797);
        for part in [&images.train, &images.test] {
            for class in 0..10 {
                let count = part.labels.iter().filter(|&&label| label == class).count();
                assert!((count as f64 / part.len() as f64 - 0.1).abs() < 0.01, "class {class}: {count}");
            }
        }
        assert_eq!(*images.train.pixels.iter().max().unwrap(), 255);
    }
}
