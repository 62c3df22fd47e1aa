//! The models that train together, each with its optimiser and its learning rate.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::watch::{self, ROUNDS, Seen, Watch, value};
use super::{Loss, Recipe};
use crate::error::{Error, Result};
use crate::nn::model::{Gradient, Measure, Model, Running, gradients_of};
use crate::nn::optim::Optimizer;
use crate::nn::schedule::{Course, Moment};

/// What a step works on. It stands for its first model, the student: `crew.train(&x)` trains that one.
pub struct Crew<'a> {
    members: Vec<Member<'a>>,
    at: Moment,
    /// Of the batch in the epoch.
    index: usize,
    /// Lengths of the terms' gradients, when they were last looked at.
    norms: Vec<(String, f64)>,
    /// Whether steps are looked at some rounds later.
    late: bool,
    watch: Watch,
}

struct Member<'a> {
    /// Before its names in a checkpoint; empty for the student.
    prefix: String,
    model: Held<'a>,
    optimizer: Optimizer,
    course: Course,
    /// Whether it had to move in any step: a gradient was more than zero, or was allowed to be none.
    moved: bool,
    /// Whether it made any step.
    stepped: bool,
}

enum Held<'a> {
    Lent(&'a mut Model),
    Own(Box<Model>),
}

impl Deref for Held<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        match self {
            Held::Lent(model) => model,
            Held::Own(model) => model,
        }
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Model {
        match self {
            Held::Lent(model) => model,
            Held::Own(model) => model,
        }
    }
}

impl Deref for Crew<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.members[0].model
    }
}

impl DerefMut for Crew<'_> {
    fn deref_mut(&mut self) -> &mut Model {
        &mut self.members[0].model
    }
}

impl<'a> Crew<'a> {
    pub(super) fn new(student: &'a mut Model, recipe: &Recipe, mask: Option<Vec<f32>>) -> Result<Self> {
        let late = !student.device().is_cpu();
        let members = vec![Member::new(String::new(), Held::Lent(student), recipe, mask)?];
        let at = Moment { step: 0, steps: 0, epoch: 0 };
        Ok(Self { members, at, index: 0, norms: Vec::new(), late, watch: Watch::default() })
    }

    pub(super) fn join(
        &mut self,
        name: &str,
        model: &'a mut Model,
        recipe: &Recipe,
        mask: Option<Vec<f32>>,
    ) -> Result<()> {
        self.members.push(Member::new(format!("{name}."), Held::Lent(model), recipe, mask)?);
        Ok(())
    }

    pub(super) fn take_in(&mut self, name: &str, model: Model, recipe: &Recipe) -> Result<()> {
        self.members.push(Member::new(format!("{name}."), Held::Own(Box::new(model)), recipe, None)?);
        Ok(())
    }

    pub(super) fn look_late(&mut self) {
        self.late = true;
    }

    /// Number 0 is the student, the others follow in the order in which they joined.
    #[must_use]
    pub fn model(&self, number: usize) -> &Model {
        &self.members[number].model
    }

    #[must_use]
    pub fn model_mut(&mut self, number: usize) -> &mut Model {
        &mut self.members[number].model
    }

    /// Steps done, and all there are to do.
    #[must_use]
    pub fn steps(&self) -> (usize, usize) {
        (self.at.step, self.at.steps)
    }

    /// How many models there are, one at least.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn begin(&mut self, at: Moment, index: usize) {
        (self.at, self.index) = (at, index);
    }

    /// One backward of the loss, and a step of each model whose number is given; gives the loss, on a device one of some
    /// steps ago. An error where loss or gradient is no finite number, which names the term, and where a term beside the
    /// first has no gradient.
    pub fn descend(&mut self, loss: &Loss, who: &[usize]) -> Result<f64> {
        let total = loss.total()?;
        let rate = who.first().map_or(0.0, |&first| self.members[first].course.rate(self.at));
        let look = loss.terms.len() > 1 && (self.index == 0 || self.index.is_power_of_two());
        if look {
            self.settle()?;
        }
        if look || !self.late {
            self.check_loss(loss, &total, rate)?;
        }
        if look {
            self.norms = self.look(loss, who)?;
        }
        let gradients = self.gradients(&total, who)?;
        let lengths = gradients.iter().map(Gradient::measure).collect::<Result<Vec<_>>>()?;
        if !self.late {
            // Before anyone moves: the terms' own gradients are walked with the weights that the loss was made with.
            self.check_gradients(loss, &lengths, who, rate)?;
        }
        for (&number, gradient) in who.iter().zip(&gradients) {
            let Member { model, optimizer, course, stepped, .. } = &mut self.members[number];
            *stepped = true;
            optimizer.step(model, gradient, course.rate(self.at), course.momentum(self.at))?;
        }
        let terms = loss.terms.iter().filter(|_| loss.terms.len() > 1);
        self.watch.steps.push(Seen {
            round: self.at.step,
            rate,
            loss: total.detach(),
            terms: terms.map(|(name, term)| (*name, term.detach())).collect(),
            whose: loss.whose,
            may_rest: loss.may_rest,
            lengths: who.iter().copied().zip(lengths).collect(),
        });
        let first = who.first().copied().unwrap_or_default();
        if !self.late || !self.watch.shown.contains_key(&first) {
            self.settle_steps()?;
        }
        Ok(self.watch.shown.get(&first).copied().unwrap_or(f64::NAN))
    }

    fn check_loss(&self, loss: &Loss, total: &Tensor, rate: f64) -> Result<()> {
        let value = value(total)?;
        if value.is_finite() {
            return Ok(());
        }
        let words = ("the loss", value, loss.whose);
        Err(Self::diverged(&loss.terms, words, (self.at.step, rate), &watch::value))
    }

    fn check_gradients(&self, loss: &Loss, lengths: &[Measure], who: &[usize], rate: f64) -> Result<()> {
        for measure in lengths {
            let length = measure.length()?;
            if !length.is_finite() {
                let words = ("the gradient", length, loss.whose);
                return Err(Self::diverged(&loss.terms, words, (self.at.step, rate), &|term| self.norm(term, who)));
            }
        }
        Ok(())
    }

    /// Looks at all steps that were taken since the last look. Waits for the device.
    fn settle_steps(&mut self) -> Result<()> {
        for seen in std::mem::take(&mut self.watch.steps) {
            let value = value(&seen.loss)?;
            if !value.is_finite() {
                let words = ("the loss", value, seen.whose);
                return Err(Self::diverged(&seen.terms, words, (seen.round, seen.rate), &watch::value));
            }
            self.watch.shown.extend(seen.lengths.first().map(|(first, _)| (*first, value)));
            for (number, measure) in seen.lengths {
                let length = measure.length()?;
                if !length.is_finite() {
                    // whose term it was cannot be told any more: the weights moved
                    let words = ("the gradient", length, seen.whose);
                    return Err(Self::diverged(&[], words, (seen.round, seen.rate), &watch::value));
                }
                let Member { course, moved, .. } = &mut self.members[number];
                *moved |= length > 0.0 || seen.may_rest;
                course.saw(value);
            }
        }
        Ok(())
    }

    /// A round is over. An error where running statistics are no finite numbers: a batch's variance overflows before its
    /// loss does, as what is divided by it becomes 0.
    pub(super) fn end_round(&mut self) -> Result<()> {
        let running = self.members.iter().map(|member| member.model.running()).collect();
        self.watch.statistics.push((self.at.step, self.members[0].course.rate(self.at), running));
        if !self.late || self.watch.statistics.len() >= ROUNDS { self.settle() } else { Ok(()) }
    }

    /// Looks at all that was done since the last look, in the order in which it was. Waits for the device.
    pub(super) fn settle(&mut self) -> Result<()> {
        let odd = |crew: &Self, running: &[Running]| -> Result<Option<(String, f64)>> {
            let mut each =
                crew.members.iter().zip(running).map(|(member, running)| member.model.odd_statistic(running));
            each.find_map(Result::transpose).transpose()
        };
        let statistics = std::mem::take(&mut self.watch.statistics);
        // what is no number once stays none
        let Some((_, _, last)) = statistics.last() else { return self.settle_steps() };
        if odd(self, last)?.is_none() {
            return self.settle_steps();
        }
        for (round, rate, running) in &statistics {
            if let Some((name, value)) = odd(self, running)? {
                self.watch.steps.retain(|seen| seen.round <= *round);
                self.settle_steps()?;
                return Err(diverged_at(format!("the statistic `{name}`"), value, *round, *rate));
            }
        }
        self.settle_steps()
    }

    fn gradients(&self, loss: &Tensor, who: &[usize]) -> Result<Vec<Gradient>> {
        let models: Vec<&Model> = who.iter().map(|&number| self.model(number)).collect();
        gradients_of(loss, &models)
    }

    /// The length of each term's gradient over all models.
    fn look(&self, loss: &Loss, who: &[usize]) -> Result<Vec<(String, f64)>> {
        let mut norms = Vec::new();
        for (index, (name, term)) in loss.terms.iter().enumerate() {
            let norm = self.norm(term, who)?;
            // The first term may rest for a while: a student that is still its own teacher has nowhere to go.
            if index > 0 && norm == 0.0 && !loss.may_rest {
                return Err(Error::NoGradient((*name).to_owned()));
            }
            norms.push(((*name).to_owned(), norm));
        }
        Ok(norms)
    }

    /// The length of a term's gradient over all models.
    fn norm(&self, term: &Tensor, who: &[usize]) -> Result<f64> {
        match self.gradients(term, who) {
            Ok(all) => {
                let squares = all.iter().map(|gradient| Ok(gradient.length()?.powi(2)));
                Ok(squares.sum::<Result<f64>>()?.sqrt())
            }
            Err(Error::NoGradient(_)) => Ok(0.0),
            Err(error) => Err(error),
        }
    }

    /// An error where a model that made steps never had anywhere to go.
    pub(super) fn watch_moves(&self) -> Result<()> {
        match self.members.iter().find(|member| member.stepped && !member.moved) {
            None => Ok(()),
            Some(member) if member.prefix.is_empty() => Err(Error::NoGradient("method".to_owned())),
            Some(member) => Err(Error::NoGradient(member.prefix.trim_end_matches('.').to_owned())),
        }
    }

    /// The norms in words, where the loss has several terms; once.
    pub(super) fn norms(&mut self) -> Option<String> {
        let words = |(name, norm): &(String, f64)| format!("{name} {norm:.3e}");
        let norms = std::mem::take(&mut self.norms);
        (!norms.is_empty()).then(|| norms.iter().map(words).collect::<Vec<_>>().join(", "))
    }

    pub(super) fn end_epoch(&mut self) {
        self.members.iter_mut().for_each(|member| member.course.end_epoch());
    }

    /// The error for a loss, or its gradient, that is no finite number. Where there are several terms, `of` measures
    /// them, and the first to blame is named.
    fn diverged(
        terms: &[(&'static str, Tensor)],
        (what, value, whose): (&str, f64, Option<&str>),
        (round, rate): (usize, f64),
        of: &dyn Fn(&Tensor) -> Result<f64>,
    ) -> Error {
        let many = terms.iter().filter(|_| terms.len() > 1);
        let mut odd = many.filter_map(|(name, term)| Some((*name, of(term).ok().filter(|value| !value.is_finite())?)));
        let (what, value) = match odd.next() {
            Some((name, value)) => (format!("{what} of the term `{name}`"), value),
            None => (what.to_owned(), value),
        };
        let whose = whose.map_or_else(String::new, |who| format!(" of {who}"));
        diverged_at(what + &whose, value, round, rate)
    }

    /// All that a checkpoint keeps.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for Member { prefix, model, optimizer, course, .. } in &self.members {
            let theta = Tensor::from_vec(model.theta()?, model.len(), &Device::Cpu)?;
            tensors.insert(format!("{prefix}theta"), theta);
            for (name, tensor) in model.tensors()? {
                if name.contains(".running_") {
                    tensors.insert(format!("{prefix}running.{name}"), tensor);
                }
            }
            for (name, tensor) in optimizer.state()? {
                tensors.insert(format!("{prefix}optimizer.{name}"), tensor);
            }
            for (name, tensor) in course.state()? {
                tensors.insert(format!("{prefix}schedule.{name}"), tensor);
            }
        }
        Ok(tensors)
    }

    /// What it keeps beside the tensors.
    pub(super) fn record(&self) -> Value {
        let been = |member: &Member| json!([member.moved, member.stepped]);
        json!({ "norms": self.norms, "moved": self.members.iter().map(been).collect::<Vec<_>>() })
    }

    pub(super) fn load_record(&mut self, record: &Value) {
        self.norms = serde_json::from_value(record["norms"].clone()).unwrap_or_default();
        for (member, been) in self.members.iter_mut().zip(record["moved"].as_array().into_iter().flatten()) {
            (member.moved, member.stepped) = (been[0] == true, been[1] == true);
        }
    }

    pub(super) fn load(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for Member { prefix, model, optimizer, course, .. } in &mut self.members {
            let theta = tensors.get(&format!("{prefix}theta"));
            let theta = theta.ok_or_else(|| Error::invalid(format!("the checkpoint lacks {prefix}theta")))?;
            model.set_theta(&theta.to_vec1::<f32>()?)?;
            model.set_running(&part(tensors, &format!("{prefix}running.")))?;
            optimizer.load_state(&part(tensors, &format!("{prefix}optimizer.")))?;
            course.load_state(&part(tensors, &format!("{prefix}schedule.")))?;
        }
        Ok(())
    }
}

impl<'a> Member<'a> {
    fn new(prefix: String, model: Held<'a>, recipe: &Recipe, mask: Option<Vec<f32>>) -> Result<Self> {
        let optimizer = Optimizer::new(recipe.optimizer.clone(), &model, mask)?;
        let course = Course::new(&recipe.schedule, recipe.lr);
        Ok(Self { prefix, model, optimizer, course, moved: false, stepped: false })
    }
}

fn diverged_at(term: String, value: f64, round: usize, learning_rate: f64) -> Error {
    Error::Diverged { term, value, step: round + 1, learning_rate }
}

/// Those whose names begin so, without that beginning.
pub(super) fn part(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let named = tensors.iter();
    named.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
}
