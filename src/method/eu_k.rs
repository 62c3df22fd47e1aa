//! EU-k: Goel et al., 2022, <https://arxiv.org/abs/2201.06640>: the last parts start afresh, then train on the retain set
//! as in CF-k, the rest frozen.

use super::cf_k::{CfK, PARTS, last};
use super::{Method, OPTIMIZER, Registered, SCHEDULE, Scene, epochs, lr};
use crate::error::Result;
use crate::nn::model::Model;
use crate::settings::Entry;

pub(super) const METHOD: Registered = Registered {
    entry: Entry {
        name: "eu_k",
        about: "trains the last parts afresh, on retain",
        paper: "Goel et al., Towards adversarial evaluations, 2022, https://arxiv.org/abs/2201.06640",
        version: 1,
        fields: &[epochs("10"), lr("0.01"), PARTS, OPTIMIZER, SCHEDULE],
    },
    teacher: false,
    make: |settings| Ok(Box::new(EuK(CfK::new(settings)?))),
};

#[derive(Debug)]
struct EuK(CfK);

impl Method for EuK {
    fn unlearn(&self, student: &mut Model, scene: &Scene) -> Result<()> {
        let original = student.theta()?;
        let parts = last(student, self.0.parts);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        student.reinit(&parts, &scene.rng.fork("reinit"))?;
        if let Some(mask) = &scene.mask {
            // What may not move does not start afresh either.
            let mut theta = student.theta()?;
            for ((weight, old), _) in theta.iter_mut().zip(original).zip(mask).filter(|(_, open)| **open == 0.0) {
                *weight = old;
            }
            student.set_theta(&theta)?;
        }
        self.0.unlearn(student, scene)
    }
}
