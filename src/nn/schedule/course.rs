//! A schedule at work in one training: rates and momenta by step, and what a plateau remembers. All of it can be saved.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{Moment, Plateau, Schedule};
use crate::error::{Error, Result};

#[derive(Clone, Debug)]
pub struct Course {
    schedule: Schedule,
    base: f64,
    plateau: Option<Plateau>,
    /// Sum and number of this epoch's losses.
    seen: (f64, usize),
}

impl Course {
    #[must_use]
    pub fn new(schedule: &Schedule, base: f64) -> Self {
        let plateau = match *schedule {
            Schedule::Plateau { factor, patience, threshold, cooldown, floor, .. } => {
                Some(Plateau::new(base, factor, patience, threshold, cooldown, floor))
            }
            _ => None,
        };
        Self { schedule: schedule.clone(), base, plateau, seen: (0.0, 0) }
    }

    #[must_use]
    pub fn rate(&self, at: Moment) -> f64 {
        self.schedule.rate(self.plateau.as_ref().map_or(self.base, Plateau::rate), at)
    }

    #[must_use]
    pub fn momentum(&self, at: Moment) -> Option<f64> {
        self.schedule.momentum(at)
    }

    /// Takes in the loss of a step.
    pub fn saw(&mut self, loss: f64) {
        self.seen = (self.seen.0 + loss, self.seen.1 + 1);
    }

    /// An epoch is over: a plateau takes in its mean loss.
    pub fn end_epoch(&mut self) {
        let (sum, count) = std::mem::take(&mut self.seen);
        if let Some(plateau) = self.plateau.as_mut().filter(|_| count > 0) {
            plateau.observe(sum / count as f64);
        }
    }

    /// What a checkpoint must keep; empty where a rate depends on the step alone.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let Some(plateau) = &self.plateau else { return Ok(BTreeMap::new()) };
        let counts = [plateau.bad, plateau.cooling, self.seen.1].map(|count| count as f64);
        let values = [plateau.rate, plateau.best, self.seen.0, counts[0], counts[1], counts[2]];
        Ok(BTreeMap::from([("plateau".to_owned(), Tensor::from_slice(&values, 6, &Device::Cpu)?)]))
    }

    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let Some(plateau) = &mut self.plateau else { return Ok(()) };
        let values = state.get("plateau").map(Tensor::to_vec1::<f64>).transpose()?.unwrap_or_default();
        let [rate, best, sum, bad, cooling, count] = values[..] else {
            return Err(Error::invalid("the checkpoint lacks the state of its schedule"));
        };
        (plateau.rate, plateau.best, plateau.bad, plateau.cooling) = (rate, best, bad as usize, cooling as usize);
        self.seen = (sum, count as usize);
        Ok(())
    }
}
