//! The loop that all training goes through: steps, learning rates, progress, checkpoints, and the watch for losses that
//! are no numbers. A trainer that finds a checkpoint skips the steps that are done and ends with the same bytes.

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::artifact::Encoded;
use crate::batches::{Batch, Loader};
use crate::error::{Error, Result};
use crate::nn::model::Model;
use crate::nn::optim::{Rule, Stepper};
use crate::nn::schedule::{Course, Moment, Schedule};
use crate::stage::{Desk, Progress};

/// How to train: a recipe's `lr`, `optimizer` and `schedule`.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub lr: f64,
    pub optimizer: Rule,
    pub schedule: Schedule,
}

/// A student with its optimiser, at a step of a known number of steps.
pub struct Trainer<'a> {
    student: &'a mut Model,
    stepper: Stepper,
    course: Course,
    desk: &'a dyn Desk,
    step: usize,
    steps: usize,
    /// Steps done by an earlier, interrupted run.
    resumed: usize,
    /// (step, epoch) at the last checkpoint.
    saved: (usize, usize),
    images: usize,
}

impl<'a> Trainer<'a> {
    pub fn new(
        student: &'a mut Model,
        recipe: &'a Recipe,
        steps: usize,
        mask: Option<Vec<f32>>,
        desk: &'a dyn Desk,
    ) -> Result<Self> {
        let mut stepper = Stepper::new(recipe.optimizer.clone(), student.len(), mask);
        let mut course = Course::new(&recipe.schedule, recipe.lr);
        let mut resumed = 0;
        if let Some(checkpoint) = desk.restore()? {
            let part = |prefix: &str| {
                let named = checkpoint.tensors.iter();
                named.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
            };
            let theta = checkpoint.tensors.get("theta").ok_or_else(|| Error::invalid("the checkpoint lacks theta"))?;
            student.set_theta(&theta.to_vec1::<f32>()?)?;
            student.set_running(&part("running."))?;
            stepper.load_state(&part("optimizer."))?;
            course.load_state(&part("schedule."))?;
            resumed = checkpoint.record["step"].as_u64().unwrap_or(0) as usize;
        }
        Ok(Self { student, stepper, course, desk, step: 0, steps, resumed, saved: (resumed, 0), images: 0 })
    }

    /// One pass over the loader. The closure gives the loss of a batch; its last argument is the batch's number.
    pub fn epoch(
        &mut self,
        epoch: usize,
        loader: &Loader,
        mut loss: impl FnMut(&mut Model, &Batch, usize) -> Result<Tensor>,
    ) -> Result<()> {
        let batches = loader.epoch(epoch);
        for index in 0..batches.len {
            if self.step < self.resumed {
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
            let at = Moment { step: self.step, steps: self.steps, epoch };
            let rate = self.course.rate(at);
            let batch = batches.batch(index)?;
            let loss = loss(self.student, &batch, index)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(self.diverged("the loss", value, rate));
            }
            let gradient = self.student.gradient(&loss)?;
            let length: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
            if !length.is_finite() {
                return Err(self.diverged("the gradient", length.sqrt(), rate));
            }
            let momentum = self.course.momentum(at);
            self.student.update(|theta| self.stepper.step_with(theta, &gradient, rate, momentum))?;
            self.course.saw(value);
            self.step += 1;
            self.images += batch.y.elem_count();
            let (done, total) = (self.step, self.steps);
            self.desk.progress(Progress { done, total, loss: Some(value), images: self.images });
        }
        // An epoch that was skipped whole is in the restored state already.
        if self.step > self.resumed {
            self.course.end_epoch();
        }
        Ok(())
    }

    fn diverged(&self, term: &str, value: f64, learning_rate: f64) -> Error {
        Error::Diverged { term: term.to_owned(), value, step: self.step + 1, learning_rate }
    }

    fn save(&self) -> Result<()> {
        let theta = self.student.theta()?;
        let mut tensors = std::collections::BTreeMap::new();
        tensors.insert("theta".to_owned(), Tensor::from_vec(theta, self.student.len(), &Device::Cpu)?);
        for (name, tensor) in self.student.tensors()? {
            if name.contains(".running_") {
                tensors.insert(format!("running.{name}"), tensor);
            }
        }
        for (name, tensor) in self.stepper.state()? {
            tensors.insert(format!("optimizer.{name}"), tensor);
        }
        for (name, tensor) in self.course.state()? {
            tensors.insert(format!("schedule.{name}"), tensor);
        }
        self.desk.save(&Encoded { tensors, record: json!({ "step": self.step }) })
    }
}
