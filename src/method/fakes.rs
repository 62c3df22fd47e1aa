//! A second teacher for methods that follow one, from a generator of features (OpenGAN: Kong and Ramanan, ICCV 2021,
//! <https://arxiv.org/abs/2104.02939>), as the research repository that Recant replaces used it: for each image some features
//! are made, the one nearest to the image's own is taken, unchanged, and a teacher's last layer answers for it.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::Scene;
use crate::artifact::Generator;
use crate::error::{Error, Result};
use crate::nn::arch::Arch;
use crate::nn::model::{Model, Teacher};
use crate::rng::Rng;

/// A generator, and how many features it makes for an image.
#[derive(Debug)]
pub struct Fakes {
    generator: Teacher,
    /// Numbers that a feature is made out of.
    noise: usize,
    candidates: usize,
    device: Device,
}

impl Fakes {
    /// An error where the generator imitates another network than that.
    pub fn new(generator: &Generator, candidates: usize, of: &Arch, device: &Device) -> Result<Self> {
        if Arch::from_value(&generator.of)? != *of {
            return Err(Error::invalid("the generator imitates features of another network than the model's"));
        }
        let arch = Arch::from_value(&generator.network.arch)?;
        let noise = arch.size[0];
        let generator = Model::from_tensors(&arch, &generator.network.tensors, device)?.teacher()?;
        Ok(Self { generator, noise, candidates, device: device.clone() })
    }

    /// Made-up features for that many images, `[n, candidates, d]`. An image's draws depend on the stream and on its place.
    pub fn draw(&self, images: usize, rng: &Rng) -> Result<Tensor> {
        let each = self.candidates * self.noise;
        let mut noise = vec![0.0_f32; images * each];
        noise.par_chunks_mut(each).enumerate().for_each(|(image, noise)| {
            noise.copy_from_slice(&rng.at(image as u64).normals(each));
        });
        let noise = Tensor::from_vec(noise, (images * self.candidates, self.noise, 1, 1), &self.device)?;
        let made = self.generator.logits(&noise)?;
        Ok(made.reshape((images, self.candidates, ()))?)
    }
}

/// Cosines `[n, K]` of features `[n, d]` with candidates `[n, K, d]`, and of each image the candidate with the largest one.
pub fn nearest(features: &Tensor, candidates: &Tensor) -> Result<(Tensor, Tensor)> {
    let length = |rows: &Tensor| -> Result<Tensor> { Ok(rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-8)?) };
    let features = features.unsqueeze(1)?;
    let dots = candidates.broadcast_mul(&features)?.sum_keepdim(D::Minus1)?;
    let cosines = (dots / length(candidates)?.broadcast_mul(&length(&features)?)?)?;
    let best = cosines.argmax_keepdim(1)?.expand((candidates.dim(0)?, 1, candidates.dim(2)?))?.contiguous()?;
    Ok((cosines.squeeze(D::Minus1)?, candidates.contiguous()?.gather(&best, 1)?.squeeze(1)?))
}

/// The second teacher.
#[derive(Debug)]
pub(super) struct Second<'a> {
    fakes: &'a Fakes,
    original: &'a Teacher,
    head: Teacher,
    rng: Rng,
}

impl Scene<'_> {
    /// Where the scene has a generator: it is the original's features that made-up ones are near to, and that teacher's
    /// last layer that answers.
    pub(super) fn second<'b>(&'b self, original: &'b Teacher, answers: &Teacher) -> Result<Option<Second<'b>>> {
        let Some(fakes) = self.fakes else { return Ok(None) };
        Ok(Some(Second { fakes, original, head: answers.head()?, rng: self.rng.fork("fakes") }))
    }
}

impl Second<'_> {
    /// Logits for a batch of images: that of a side, an epoch and a number.
    pub(super) fn logits(&self, x: &Tensor, (side, epoch, index): (&str, usize, usize)) -> Result<Tensor> {
        let features = self.original.features(x)?;
        let rng = self.rng.fork(side).at(epoch as u64).at(index as u64);
        let (_, made) = nearest(&features, &self.fakes.draw(features.dim(0)?, &rng)?)?;
        self.head.logits(&made.unsqueeze(2)?.unsqueeze(3)?)
    }
}
