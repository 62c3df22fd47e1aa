//! How well the classifier tells images of classes it knows from others, by its largest logit.

use candle_core::Tensor;

use crate::data::Images;
use crate::error::{Error, Result};
use crate::halt::Halt;
use crate::metric::open_set::oscr;
use crate::metric::roc::Curve;
use crate::nn::loss::arpl;
use crate::nn::model::Model;
use crate::nn::transform::{self, Transform};
use crate::rng::Rng;

/// Images a forward.
const BATCH: usize = 256;

/// Of each image the largest logit and whose it is.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub scores: Vec<f64>,
    pub classes: Vec<u32>,
}

impl Answers {
    /// Those of more images.
    pub fn see(&mut self, features: &Tensor, points: &Tensor) -> Result<()> {
        for row in arpl::logits(features, points)?.to_vec2::<f32>()? {
            let largest = row.iter().zip(0..).max_by(|a, b| a.0.total_cmp(b.0));
            let (&score, class) = largest.ok_or_else(|| Error::invalid("there is no class to choose"))?;
            if !score.is_finite() {
                return Err(Error::invalid(format!("the classifier's logits have {score} in them: lower `lr`")));
            }
            self.scores.push(f64::from(score));
            self.classes.push(class);
        }
        Ok(())
    }
}

/// AUROC and OSCR in words. Known are the test images of the classes given, ascending; unknown those of the others, or,
/// where there are none, generated images.
pub fn note(
    (network, points): (&Model, &Tensor),
    images: &Images,
    classes: &[u32],
    generated: &Answers,
    halt: &Halt,
) -> Result<String> {
    let of = |known: bool| -> Vec<u32> {
        let labels = images.test.labels.iter().zip(0..);
        labels.filter(|(label, _)| classes.binary_search(label).is_ok() == known).map(|(_, index)| index).collect()
    };
    let answer = |indices: &[u32]| -> Result<Answers> {
        let mut answers = Answers::default();
        for some in indices.chunks(BATCH) {
            halt()?;
            let x = transform::batch(images, &images.test, some, Transform::default(), &Rng::new(0), network.device())?;
            answers.see(&network.features(&x)?, points)?;
        }
        Ok(answers)
    };
    let (inside, outside) = (of(true), of(false));
    if inside.is_empty() {
        return Ok("AUROC and OSCR are left out: there are no test images of its classes".to_owned());
    }
    let known = answer(&inside)?;
    let (unknown, who) = match outside.as_slice() {
        [] => (generated.clone(), "generated"),
        other => (answer(other)?, "unknown"),
    };
    let right = |(&index, &class): (&u32, &u32)| {
        classes.get(class as usize).is_some_and(|&class| class == images.test.labels[index as usize])
    };
    let scores: Vec<(f64, bool)> =
        known.scores.iter().copied().zip(inside.iter().zip(&known.classes).map(right)).collect();
    Ok(format!(
        "AUROC {:.1} %, OSCR {:.1} % over {} known and {} {who} images",
        100.0 * Curve::new(&known.scores, &unknown.scores).area(),
        100.0 * oscr(&scores, &unknown.scores),
        known.scores.len(),
        unknown.scores.len()
    ))
}
