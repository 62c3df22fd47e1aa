//! From resident bytes to the normalised batches that networks see, with the usual augmentations of training. What is
//! drawn for an image depends on the stream and on the image's index alone.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::Value;

use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::kernels::{self, Drawn};
use crate::rng::Rng;
use crate::settings::{Entry, Field, NATURAL, Type};

/// Words of the stream that belong to one image.
const DRAWS: u64 = 8;

const CUTOUT: Field = Field::or(
    "cutout",
    NATURAL,
    "0",
    "side, in pixels, of a square set to the mean; its middle is drawn, what lies outside is cut off",
);
const PADDING: Field = Field::or("padding", NATURAL, "4", "black pixels added on each side before the crop");

const fn entry(name: &'static str, about: &'static str, fields: &'static [Field]) -> Entry {
    let paper = "Cutout: DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552";
    Entry { name, about, paper, version: 1, fields }
}

static NONE: Entry = entry("none", "training images as they are", &[CUTOUT]);
static FLIP: Entry = entry("flip", "half of the training images mirrored sideways", &[CUTOUT]);
static CROP: Entry = entry("crop", "training images padded and cropped", &[PADDING, CUTOUT]);
static CROP_FLIP: Entry = entry("crop_flip", "training images padded, cropped and mirrored", &[PADDING, CUTOUT]);

#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    vec![&NONE, &FLIP, &CROP, &CROP_FLIP]
}

/// A recipe's `transform`.
pub const FIELD: Field = Field::or(
    "transform",
    Type::Named { noun: "transform", entries },
    "\"none\"",
    "changes of training images, drawn anew each epoch",
);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transform {
    /// Padding before a random crop; none for no crop.
    crop: Option<u32>,
    flip: bool,
    /// Side of the square cut out; 0 for none.
    cutout: u32,
}

impl Transform {
    /// From checked settings: `{ "name": "crop_flip", "padding": 4, "cutout": 0 }`.
    pub fn new(settings: &Value) -> Result<Self> {
        let number = |key: &str| {
            let number = settings[key].as_u64().unwrap_or(0);
            u32::try_from(number).map_err(|_| Error::invalid(format!("`transform.{key}` is {number}, too large")))
        };
        let (crop, flip) = match settings["name"].as_str().unwrap_or_default() {
            "none" => (None, false),
            "flip" => (None, true),
            "crop" => (Some(number("padding")?), false),
            "crop_flip" => (Some(number("padding")?), true),
            other => return Err(Error::invalid(format!("unknown transform `{other}`"))),
        };
        Ok(Self { crop, flip, cutout: number("cutout")? })
    }

    /// What happens to an image.
    fn draw(self, index: u32, height: usize, width: usize, rng: &Rng) -> Drawn {
        let mut draws = rng.clone();
        draws.seek(u64::from(index) * DRAWS);
        let mut shift =
            || self.crop.map_or(0, |padding| draws.below(2 * u64::from(padding) + 1) as i64 - i64::from(padding));
        let (down, right) = (shift(), shift());
        let flip = self.flip && draws.chance(0.5);
        let (rows, columns) = self.hole(index, height, width, rng);
        Drawn { index, down, right, flip, rows, columns }
    }

    /// The square that an image loses: rows and columns, inside the image.
    fn hole(self, index: u32, height: usize, width: usize, rng: &Rng) -> (Range<usize>, Range<usize>) {
        if self.cutout == 0 {
            return (0..0, 0..0);
        }
        // A stream of its own: the crop of an image is the same with and without cutout.
        let mut draws = rng.fork("cutout");
        draws.seek(u64::from(index) * DRAWS);
        let side = self.cutout as usize;
        let mut along = |size: usize| {
            let middle = draws.below(size as u64) as usize;
            let start = middle as i64 - side as i64 / 2;
            start.max(0) as usize..((start + side as i64).max(0) as usize).min(size)
        };
        (along(height), along(width))
    }
}

/// Images [B, C, H, W] in f32 on a device, (pixel / 255 - mean) / std after the transform; padding is black before that, what
/// is cut out is 0 after it.
pub fn batch(
    images: &Images,
    part: &Part,
    indices: &[u32],
    transform: Transform,
    rng: &Rng,
    device: &Device,
) -> Result<Tensor> {
    let [channels, height, width] = images.size;
    let outside = indices.iter().find(|&&index| index as usize >= part.len());
    if let Some(index) = outside {
        return Err(Error::invalid(format!("there is no image {index} among {}", part.len())));
    }
    let draw = |&index: &u32| transform.draw(index, height, width, rng);
    let drawn: Vec<Drawn> = indices.iter().map(draw).collect();
    if let Some(x) = kernels::images(device, &part.pixels, &drawn, [&images.mean, &images.std], images.size)? {
        return Ok(x);
    }
    let length = images.image_len();
    let mut values = vec![0.0_f32; indices.len() * length];
    values.par_chunks_mut(length.max(1)).zip(&drawn).for_each(|(out, drawn)| {
        let pixels = &part.pixels[drawn.index as usize * length..][..length];
        for c in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let column = if drawn.flip { width - 1 - x } else { x } as i64 + drawn.right;
                    let row = y as i64 + drawn.down;
                    let inside = (0..height as i64).contains(&row) && (0..width as i64).contains(&column);
                    let at = |row: usize, column: usize| (row * width + column) * channels + c;
                    let pixel = if inside { f32::from(pixels[at(row as usize, column as usize)]) / 255.0 } else { 0.0 };
                    let cut = drawn.rows.contains(&y) && drawn.columns.contains(&x);
                    let value = (pixel - images.mean[c]) / images.std[c];
                    out[(c * height + y) * width + x] = if cut { 0.0 } else { value };
                }
            }
        }
    });
    let x = Tensor::from_vec(values, (indices.len(), channels, height, width), &Device::Cpu)?;
    Ok(x.to_device(device)?)
}
