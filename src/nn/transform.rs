//! From resident bytes to the normalised batches that networks see, with the usual augmentations of training. What is
//! drawn for an image depends on the stream and on the image's index alone.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::settings::{Field, Type};

/// Zero padding on each side before a crop.
const PADDING: i64 = 4;
/// Words of the stream that belong to one image.
const DRAWS: u64 = 8;

/// A recipe's `transform`.
pub const FIELD: Field = Field::or(
    "transform",
    Type::Choice(&["none", "flip", "crop", "crop_flip"]),
    "\"none\"",
    "changes of training images: crop is of the image padded by 4, flip is sideways",
);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transform {
    crop: bool,
    flip: bool,
}

impl Transform {
    pub fn new(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::default()),
            "flip" => Ok(Self { crop: false, flip: true }),
            "crop" => Ok(Self { crop: true, flip: false }),
            "crop_flip" => Ok(Self { crop: true, flip: true }),
            other => Err(Error::invalid(format!("unknown transform `{other}`"))),
        }
    }
}

/// Images [B, C, H, W] in f32, (pixel / 255 - mean) / std after the transform; padding is black before that.
pub fn batch(images: &Images, part: &Part, indices: &[u32], transform: Transform, rng: &Rng) -> Result<Tensor> {
    let [channels, height, width] = images.size;
    let length = images.image_len();
    let mut values = vec![0.0_f32; indices.len() * length];
    let outside = indices.iter().find(|&&index| index as usize >= part.len());
    if let Some(index) = outside {
        return Err(Error::invalid(format!("there is no image {index} among {}", part.len())));
    }
    values.par_chunks_mut(length.max(1)).zip(indices).for_each(|(out, &index)| {
        let pixels = &part.pixels[index as usize * length..][..length];
        let mut draws = rng.clone();
        draws.seek(u64::from(index) * DRAWS);
        let side = 2 * PADDING as u64 + 1;
        let mut shift = || if transform.crop { draws.below(side) as i64 - PADDING } else { 0 };
        let (down, right) = (shift(), shift());
        let flip = transform.flip && draws.chance(0.5);
        for c in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let column = if flip { width - 1 - x } else { x } as i64 + right;
                    let row = y as i64 + down;
                    let inside = (0..height as i64).contains(&row) && (0..width as i64).contains(&column);
                    let at = (row * width as i64 + column) as usize * channels + c;
                    let pixel = if inside { f32::from(pixels[at]) / 255.0 } else { 0.0 };
                    out[(c * height + y) * width + x] = (pixel - images.mean[c]) / images.std[c];
                }
            }
        }
    });
    Ok(Tensor::from_vec(values, (indices.len(), channels, height, width), &Device::Cpu)?)
}
