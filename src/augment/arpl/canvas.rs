//! Between the images of a data set, as a classifier sees them, and those of generator and discriminator: squares of
//! values in [0, 1] whose side is 8, 16, 32, .., black around smaller images.

use candle_core::{Device, Tensor};

use crate::data::Images;
use crate::error::Result;

#[derive(Debug)]
pub struct Canvas {
    pub side: usize,
    height: usize,
    width: usize,
    /// By channel: 1 x C x 1 x 1.
    mean: Tensor,
    std: Tensor,
}

impl Canvas {
    pub fn new(images: &Images, device: &Device) -> Result<Self> {
        let [channels, height, width] = images.size;
        let side = height.max(width).next_power_of_two().max(8);
        let by_channel = |values: &[f32]| Tensor::from_slice(values, (1, channels, 1, 1), device);
        Ok(Self { side, height, width, mean: by_channel(&images.mean)?, std: by_channel(&images.std)? })
    }

    fn corner(&self) -> (usize, usize) {
        ((self.side - self.height) / 2, (self.side - self.width) / 2)
    }

    /// Images of a batch, [B, C, H, W] and normalised, as the discriminator sees them.
    pub fn pixels(&self, x: &Tensor) -> Result<Tensor> {
        let (top, left) = self.corner();
        let pixels = x.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?;
        let (bottom, right) = (self.side - self.height - top, self.side - self.width - left);
        Ok(pixels.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?)
    }

    /// The part of generated images that shows.
    pub fn cropped(&self, fake: &Tensor) -> Result<Tensor> {
        let (top, left) = self.corner();
        Ok(fake.narrow(2, top, self.height)?.narrow(3, left, self.width)?)
    }

    /// Generated images as the classifier sees them.
    pub fn seen(&self, fake: &Tensor) -> Result<Tensor> {
        Ok(self.cropped(fake)?.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?)
    }
}
