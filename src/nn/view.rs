//! Views of an image as SimCLR draws them: Chen et al., A simple framework for contrastive learning of visual
//! representations, ICML 2020, <https://arxiv.org/abs/2002.05709>, appendix A; and Gaussian noise. Each change has a
//! strength of its own.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use super::image::{Picture, Window};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::settings::{Field, SHARE, Type};

pub const CROP: Field =
    Field::or("crop", SHARE, "0.08", "smallest share of the area that a resized crop keeps; 1 for none");
pub const FLIP: Field = Field::or("flip", SHARE, "0.5", "chance of a mirror image");
pub const JITTER: Field =
    Field::or("jitter", SHARE, "0.8", "strength of brightness, contrast, saturation and, a quarter, hue");
pub const JITTER_CHANCE: Field = Field::or("jitter_chance", SHARE, "0.8", "chance that an image's colours are changed");
pub const GRAYSCALE: Field = Field::or("grayscale", SHARE, "0.2", "chance of a grey image");
pub const BLUR: Field = Field::or(
    "blur",
    Type::Float { min: 0.0, max: 100.0 },
    "2.0",
    "largest sigma of a Gaussian blur, in pixels, the smallest 0.1; 0 for none",
);
pub const NOISE: Field = Field::or("noise", SHARE, "0.0", "standard deviation of Gaussian noise, white being 1");

/// Strengths, by the fields above.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct View {
    pub crop: f64,
    pub flip: f64,
    pub jitter: f64,
    pub jitter_chance: f64,
    pub grayscale: f64,
    pub blur: f64,
    pub noise: f64,
}

impl Default for View {
    fn default() -> Self {
        Self { crop: 0.08, flip: 0.5, jitter: 0.8, jitter_chance: 0.8, grayscale: 0.2, blur: 2.0, noise: 0.0 }
    }
}

/// Views of images, [B, C, H, W] in f32, normalised. What is drawn for an image depends on the stream and on its index
/// alone.
pub fn batch(images: &Images, part: &Part, indices: &[u32], view: &View, rng: &Rng) -> Result<Tensor> {
    let [channels, height, width] = images.size;
    let length = images.image_len();
    if let Some(index) = indices.iter().find(|&&index| index as usize >= part.len()) {
        return Err(Error::invalid(format!("there is no image {index} among {}", part.len())));
    }
    let mut values = vec![0.0_f32; indices.len() * length];
    values.par_chunks_mut(length.max(1)).zip(indices).for_each(|(out, &index)| {
        let picture = Picture::from_bytes(&part.pixels[index as usize * length..][..length], images.size);
        let mut changed = view.change(&picture, rng.at(u64::from(index)));
        changed.values.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
        out.copy_from_slice(&changed.normalised(&images.mean, &images.std).values);
    });
    Ok(Tensor::from_vec(values, (indices.len(), channels, height, width), &Device::Cpu)?)
}

impl View {
    /// A view of a picture of the same size, by those draws. Values may leave [0, 1] where there is noise.
    #[must_use]
    pub fn change(&self, picture: &Picture, mut draws: Rng) -> Picture {
        let [_, height, width] = picture.size;
        let mut picture = picture.clone();
        if self.crop < 1.0 {
            picture = picture.cropped(window(height, width, self.crop as f32, &mut draws)).resized(height, width, true);
        }
        if draws.chance(self.flip as f32) {
            picture = picture.mirrored();
        }
        if draws.chance(self.jitter_chance as f32) {
            let strength = self.jitter as f32;
            let mut factor = || draws.between((1.0 - strength).max(0.0), 1.0 + strength);
            let (brightness, contrast, saturation) = (factor(), factor(), factor());
            let turn = draws.between(-strength / 4.0, strength / 4.0);
            let mut order = [0, 1, 2, 3];
            draws.shuffle(&mut order);
            for change in order {
                picture = match change {
                    0 => picture.brightness(brightness),
                    1 => picture.contrast(contrast),
                    2 => picture.saturation(saturation),
                    _ => picture.hue(turn),
                };
            }
        }
        if draws.chance(self.grayscale as f32) {
            picture = picture.greyed();
        }
        if self.blur > 0.0 {
            // a tenth of the picture, odd, as SimCLR's code has it
            let kernel = (height / 10).max(3) | 1;
            let sigma = draws.between(0.1_f32.min(self.blur as f32), self.blur as f32);
            picture = picture.blurred(kernel, f64::from(sigma));
        }
        if self.noise > 0.0 {
            picture.values.iter_mut().for_each(|value| *value += self.noise as f32 * draws.normal());
        }
        picture
    }
}

/// Torchvision's draw of a resized crop: a share of the area, sides as 3 to 4 at most; the whole where ten draws do not fit.
fn window(height: usize, width: usize, smallest: f32, draws: &mut Rng) -> Window {
    for _ in 0..10 {
        let area = (height * width) as f32 * draws.between(smallest, 1.0);
        let ratio = draws.between(0.75_f32.ln(), (4.0_f32 / 3.0).ln()).exp();
        let (w, h) = ((area * ratio).sqrt().round() as usize, (area / ratio).sqrt().round() as usize);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = draws.below((height - h + 1) as u64) as usize;
            let left = draws.below((width - w + 1) as u64) as usize;
            return Window { top, left, height: h, width: w };
        }
    }
    Window { top: 0, left: 0, height, width }
}
