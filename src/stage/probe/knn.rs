//! Classes by the k nearest training images: by cosine, each vote weighted by exp(cosine / temperature), as Wu et al.,
//! Unsupervised feature learning via non-parametric instance discrimination, CVPR 2018,
//! <https://arxiv.org/abs/1805.01978>, section 3.4.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::Rows;
use crate::error::Result;
use crate::halt::Halt;

/// Test images that are compared with all training images at once.
const BLOCK: usize = 256;

/// The class with the most votes, for each test image; of equal ones the first. Of equally near images the first vote.
pub fn vote(
    train: &Rows,
    test: &Rows,
    classes: usize,
    (k, temperature): (usize, f64),
    halt: &Halt,
) -> Result<Vec<u32>> {
    let known = units(train)?.t()?;
    let all = units(test)?;
    let mut answers = Vec::with_capacity(test.labels.len());
    for start in (0..test.labels.len()).step_by(BLOCK) {
        halt()?;
        let block = all.narrow(0, start, BLOCK.min(test.labels.len() - start))?;
        let cosines = block.matmul(&known)?.to_vec2::<f32>()?;
        let answer = |row: Vec<f32>| {
            let mut near: Vec<(f32, usize)> = row.into_iter().zip(0..).collect();
            let nearer = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if k < near.len() {
                near.select_nth_unstable_by(k, nearer);
                near.truncate(k);
            }
            near.sort_unstable_by(nearer);
            let mut votes = vec![0.0; classes];
            for (cosine, image) in near {
                // taken off 1 so that no temperature is too low for a number
                votes[train.labels[image] as usize] += ((f64::from(cosine) - 1.0) / temperature).exp();
            }
            first_largest(&votes)
        };
        answers.par_extend(cosines.into_par_iter().map(answer));
    }
    Ok(answers)
}

/// Where the first of the largest values is.
pub(super) fn first_largest(values: &[f64]) -> u32 {
    let better = |best: (u32, f64), next: (u32, f64)| if next.1 > best.1 { next } else { best };
    (0..).zip(values.iter().copied()).fold((0, f64::NEG_INFINITY), better).0
}

/// Rows at length 1.
fn units(rows: &Rows) -> Result<Tensor> {
    let unit = |row: &[f32]| {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter().map(|x| (f64::from(*x) / length) as f32).collect::<Vec<f32>>()
    };
    let values: Vec<f32> = rows.each().flat_map(unit).collect();
    Ok(Tensor::from_vec(values, (rows.labels.len(), rows.width), &Device::Cpu)?)
}
