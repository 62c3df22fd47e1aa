//! The loop that all training goes through: steps, learning rates, progress, checkpoints, and the watch for losses that
//! are no numbers. A trainer that finds a checkpoint skips the steps that are done and ends with the same bytes.

mod crew;
mod loss;
mod watch;

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::artifact::Encoded;
use crate::batches::{Batch, Loader};
use crate::error::{Error, Result, misfit};
use crate::nn::model::Model;
use crate::nn::optim::Rule;
use crate::nn::schedule::{Moment, Schedule};
use crate::stage::{Desk, Progress};
pub use crew::Crew;
pub use loss::Loss;

/// How to train: a recipe's `lr`, `optimizer` and `schedule`.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub lr: f64,
    pub optimizer: Rule,
    pub schedule: Schedule,
}

/// Models with their optimisers, at a step of a known number of steps. The first is the student; others train beside it.
pub struct Trainer<'a> {
    crew: Crew<'a>,
    desk: &'a dyn Desk,
    step: usize,
    steps: usize,
    /// Steps done by an earlier, interrupted run; none before the checkpoint was looked for.
    resumed: Option<usize>,
    /// (step, epoch) at the last checkpoint.
    saved: (usize, usize),
    images: usize,
    kept: BTreeMap<String, Tensor>,
    /// What was said of this training, in earlier runs too.
    notes: Vec<String>,
}

impl<'a> Trainer<'a> {
    pub fn new(
        student: &'a mut Model,
        recipe: &Recipe,
        steps: usize,
        mask: Option<Vec<f32>>,
        desk: &'a dyn Desk,
    ) -> Result<Self> {
        let crew = Crew::new(student, recipe, mask)?;
        let (kept, notes) = (BTreeMap::new(), Vec::new());
        Ok(Self { crew, desk, step: 0, steps, resumed: None, saved: (0, 0), images: 0, kept, notes })
    }

    /// Another model that trains beside the first, by a recipe of its own; it is number 1, 2, .. of the crew.
    pub fn beside(mut self, name: &str, model: &'a mut Model, recipe: &Recipe, mask: Option<Vec<f32>>) -> Result<Self> {
        self.crew.join(name, model, recipe, mask)?;
        Ok(self)
    }

    /// The same for a model that is of no use afterwards.
    pub fn with(mut self, name: &str, model: Model, recipe: &Recipe) -> Result<Self> {
        self.crew.take_in(name, model, recipe)?;
        Ok(self)
    }

    /// From now on losses, gradients and statistics are looked at some steps after they were made, as they are on a GPU,
    /// where a look waits for the device. Nothing is kept that was not looked at.
    #[must_use]
    pub fn late(mut self) -> Self {
        self.crew.look_late();
        self
    }

    /// One pass over the loader, a step of all models a batch. The closure gives the loss of a batch; its last argument
    /// is the batch's number.
    pub fn epoch<L: Into<Loss>>(
        &mut self,
        epoch: usize,
        loader: &Loader,
        mut loss: impl FnMut(&mut Crew, &Batch, usize) -> Result<L>,
    ) -> Result<()> {
        self.rounds(epoch, loader, |crew, batch, index| {
            let loss = loss(crew, batch, index)?.into();
            let all: Vec<usize> = (0..crew.len()).collect();
            crew.descend(&loss, &all)
        })
    }

    /// One pass over the loader in which the closure itself lets models descend, as adversaries do; it gives the loss to
    /// show.
    pub fn rounds(
        &mut self,
        epoch: usize,
        loader: &Loader,
        mut round: impl FnMut(&mut Crew, &Batch, usize) -> Result<f64>,
    ) -> Result<()> {
        let resumed = self.restore()?;
        let batches = loader.epoch(epoch);
        for index in 0..batches.len {
            if self.step < resumed {
                self.step += 1;
                continue;
            }
            let due = self.desk.due(self.step - self.saved.0, epoch.saturating_sub(self.saved.1));
            let stop = self.desk.stop();
            if self.step > self.saved.0 && (due || stop) {
                self.save()?;
                self.saved = (self.step, epoch);
            }
            if stop {
                return Err(Error::Interrupted);
            }
            self.crew.begin(Moment { step: self.step, steps: self.steps, epoch }, index);
            let batch = batches.batch(index)?;
            let value = match round(&mut self.crew, &batch, index) {
                Ok(value) => value,
                Err(error) => {
                    // it may come of a number that went wrong before
                    self.crew.settle()?;
                    return Err(error);
                }
            };
            self.crew.end_round()?;
            self.step += 1;
            if self.step == self.steps {
                self.crew.settle()?;
                self.crew.watch_moves()?;
            }
            self.images += batch.y.elem_count();
            let (done, total) = (self.step, self.steps);
            self.desk.progress(Progress { done, total, loss: Some(value), images: self.images });
        }
        // An epoch that was skipped whole is in the restored state already.
        if self.step > resumed {
            self.crew.settle()?;
            self.crew.end_epoch();
            if let Some(norms) = self.crew.norms() {
                self.note(format!("gradient norms in epoch {}: {norms}", epoch + 1));
            }
        }
        Ok(())
    }

    /// Work between epochs or after all of them. Where it is interrupted, what was trained until then is kept.
    pub fn aside<T>(&mut self, work: impl FnOnce(&Crew) -> Result<T>) -> Result<T> {
        self.restore()?;
        let done = work(&self.crew);
        if matches!(done, Err(Error::Interrupted)) && self.step > self.saved.0 {
            self.save()?;
        }
        done
    }

    fn note(&mut self, note: String) {
        self.desk.note(&note);
        self.notes.push(note);
    }

    /// Keeps something that a method carries from epoch to epoch, through interruptions too. `make` is asked where it is
    /// not kept already.
    pub fn keep(&mut self, name: &str, make: impl FnOnce(&Crew) -> Result<Tensor>) -> Result<Tensor> {
        self.restore()?;
        if let Some(kept) = self.kept.get(name) {
            return Ok(kept.clone());
        }
        let made = self.aside(make)?;
        self.kept.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// The steps done by an earlier run, whose checkpoint is taken up the first time this is asked.
    fn restore(&mut self) -> Result<usize> {
        if let Some(resumed) = self.resumed {
            return Ok(resumed);
        }
        let mut resumed = 0;
        if let Some(checkpoint) = self.desk.restore()? {
            self.crew.load(&checkpoint.tensors).map_err(|error| match error {
                Error::Invalid(why) => Error::Unfit(why),
                Error::Tensor(why) if misfit(&why) => Error::Unfit(why.to_string()),
                // a device that has no room now may have some later
                other => other,
            })?;
            self.kept = crew::part(&checkpoint.tensors, "kept.");
            let record = checkpoint.record;
            self.crew.load_record(&record["crew"]);
            let notes = record["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
            notes.for_each(|note| self.note(note.to_owned()));
            resumed = record["step"].as_u64().unwrap_or(0) as usize;
            if resumed > self.steps {
                return Err(Error::Unfit(format!("it is of step {resumed} of {}", self.steps)));
            }
        }
        (self.resumed, self.saved) = (Some(resumed), (resumed, 0));
        Ok(resumed)
    }

    /// Nothing is kept that was not looked at.
    fn save(&mut self) -> Result<()> {
        self.crew.settle()?;
        let mut tensors = self.crew.tensors()?;
        tensors.extend(self.kept.iter().map(|(name, tensor)| (format!("kept.{name}"), tensor.clone())));
        let record = json!({ "step": self.step, "notes": self.notes, "crew": self.crew.record() });
        self.desk.save(&Encoded { tensors, record })
    }
}
