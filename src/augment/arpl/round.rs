//! One step of ARPL+CS: the discriminator, then the generator, then the classifier with its points.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::canvas::Canvas;
use crate::batches::Batch;
use crate::error::Result;
use crate::nn::loss::arpl::{self, Arpl};
use crate::nn::loss::binary_cross_entropy;
use crate::nn::model::{Output, Pass};
use crate::rng::Rng;
use crate::trainer::{Crew, Loss};

/// Who is who in the crew; the student is the classifier.
pub const POINTS: usize = 1;
pub const GENERATOR: usize = 2;
pub const DISCRIMINATOR: usize = 3;

#[derive(Debug)]
pub struct Round<'a> {
    pub canvas: &'a Canvas,
    pub knobs: Arpl,
    /// Weight of the terms about generated images; 0 for none.
    pub beta: f64,
    pub released: bool,
    /// Its length, and where it is drawn.
    pub noise: (usize, Rng),
}

impl Round<'_> {
    /// Gives the classifier's loss.
    pub fn play(&self, crew: &mut Crew, batch: &Batch, at: (usize, usize)) -> Result<f64> {
        // two at least, or batch norm would make all generated images of it alike
        let count = batch.y.elem_count().max(2);
        let real = self.canvas.pixels(&batch.x)?;
        let fake = self.generate(crew, "adversaries", at, count)?;
        discriminate(crew, &real, &fake.detach())?;

        let seen = self.canvas.seen(&fake)?;
        let confusing = self.confusion(crew, |crew, pass| crew.train_through(&seen, pass))?;
        deceive(crew, &fake, confusing)?;

        let fake = self.generate(crew, "classifier", at, count)?.detach();
        self.classify(crew, batch, Some(&self.canvas.seen(&fake)?))
    }

    /// The step of the classifier and its points: a class each for real images, none for generated ones as it sees them.
    pub fn classify(&self, crew: &mut Crew, batch: &Batch, generated: Option<&Tensor>) -> Result<f64> {
        let features = crew.train(&batch.x)?.features;
        let points = crew.model(POINTS);
        let (points, radius) = (points.parameter("points")?, points.parameter("radius")?);
        let loss = arpl::loss(&features, &points, &radius, &batch.y, self.knobs)?;
        let confusing = match generated {
            Some(generated) => self.confusion(crew, |crew, pass| crew.train_with(generated, pass))?,
            None => None,
        };
        let loss = Loss::from(loss).and("confusing", confusing).may_rest();
        crew.descend(&loss.of("the classifier"), &[0, POINTS])
    }

    fn generate(&self, crew: &mut Crew, purpose: &str, at: (usize, usize), count: usize) -> Result<Tensor> {
        let (length, rng) = &self.noise;
        let rng = rng.fork(purpose).at(at.0 as u64).at(at.1 as u64);
        let images: Vec<u64> = (0..count as u64).collect();
        let generator = crew.model_mut(GENERATOR);
        let noise = noise(*length, &rng, &images, generator.device())?;
        Ok(generator.train(&noise)?.logits)
    }

    /// How sure the classifier is of generated images, by its auxiliary batch norm, times the weight, where it has one.
    fn confusion(
        &self,
        crew: &mut Crew,
        look: impl FnOnce(&mut Crew, &Pass) -> Result<Output>,
    ) -> Result<Option<Tensor>> {
        if self.beta == 0.0 {
            return Ok(None);
        }
        let features = look(crew, &Pass::train().with_branch(1))?.features;
        let points = crew.model(POINTS).parameter("points")?;
        Ok(Some((arpl::fake_loss(&features, &points, self.released)? * self.beta)?))
    }
}

/// The discriminator's step: 1 for real images, 0 for generated ones, which are constants.
pub fn discriminate(crew: &mut Crew, real: &Tensor, fake: &Tensor) -> Result<f64> {
    let discriminator = crew.model_mut(DISCRIMINATOR);
    let of_real = binary_cross_entropy(&discriminator.train(real)?.logits, 1.0)?;
    let of_fake = binary_cross_entropy(&discriminator.train(fake)?.logits, 0.0)?;
    crew.descend(&Loss::from((of_real + of_fake)?).of("the discriminator"), &[DISCRIMINATOR])
}

/// The generator's step: to pass for real, and a further term.
pub fn deceive(crew: &mut Crew, fake: &Tensor, further: Option<Tensor>) -> Result<f64> {
    let judged = crew.model_mut(DISCRIMINATOR).train_through(fake, &Pass::train())?.logits;
    let loss = Loss::from(binary_cross_entropy(&judged, 1.0)?).and("confusing", further).may_rest();
    crew.descend(&loss.of("the generator"), &[GENERATOR])
}

/// Normal noise, [B, length, 1, 1]; each image has a stream of its own.
pub fn noise(length: usize, rng: &Rng, images: &[u64], device: &Device) -> Result<Tensor> {
    let mut values = vec![0.0; images.len() * length];
    values.par_chunks_mut(length.max(1)).zip(images).for_each(|(values, &image)| {
        values.copy_from_slice(&rng.at(image).normals(values.len()));
    });
    Ok(Tensor::from_vec(values, (images.len(), length, 1, 1), device)?)
}
