//! Forward through all steps.

use super::buffer::Buffer;
use super::conv::Conv;
use super::norm::{self, Seen};
use super::number::{Number, Value};
use super::pointwise::{add, flatten, global, multiply, transpose};
use super::product::Fold;
use super::weights::Ready;
use super::{Core, Report};
use crate::kernels::sink::Way;
use crate::kernels::steps::{Step, Work, needed};
use crate::kernels::{Mode, Sink, dropout};

/// What a step keeps for the way back, beside its values.
#[derive(Debug)]
pub(super) enum Extra {
    Nothing,
    Norm {
        mean: Vec<f32>,
        inverse: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
    },
    /// For each output of a max-pool the place of its largest input.
    Choice(Vec<u8>),
    Factors(Buffer),
}

/// What a forward keeps for the way back.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) values: Vec<Option<Value>>,
    pub(super) extras: Vec<Extra>,
    /// Which values have a gradient.
    pub(super) needed: Vec<bool>,
}

pub(super) struct Forth<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    pub(super) stats: &'a [f32],
    pub(super) batch: usize,
    pub(super) sink: &'a Sink,
}

impl Forth<'_> {
    /// Logits, batch x channels x pixels, all else that is told, and what the way back needs, if there is one.
    pub(super) fn run(&self, theta: &[f32], x: &[f32], tracked: [bool; 2]) -> (Vec<f32>, Report, Option<Kept>) {
        let Self { core, mode, batch, .. } = *self;
        let program = &core.program;
        let track = tracked[0] || tracked[1];
        let mut report = Report::default();
        let needed = needed(program, &core.steps, tracked);
        let mut values: Vec<Option<Value>> = program.shapes.iter().map(|_| None).collect();
        let mut extras = Vec::with_capacity(core.steps.len());
        let mut input = core.lend(0, batch);
        let rows = batch * program.input[0];
        match &mut input {
            Value::Full(input) => transpose(x, rows, core.pixels(0), input),
            Value::Half(input) => transpose(x, rows, core.pixels(0), input),
        }
        values[0] = Some(input);
        let stays = |value: usize| value == program.features || value == program.logits || mode.taps.contains(&value);
        let mut folded = None;
        for (index, step) in core.steps.iter().enumerate() {
            if !track
                && !stays(step.to)
                && let Some((to, y)) = self.fold(index, theta, &values)
            {
                values[to] = Some(y);
                folded = Some(to);
            } else if folded != Some(step.to) {
                let mut y = core.lend(step.to, batch);
                extras.push(self.step(index, theta, &values, &mut y, &mut report));
                values[step.to] = Some(y);
            }
            if !track {
                for value in step.reads().filter(|&value| core.last[value] == index && !stays(value)) {
                    values[value] = None;
                }
            }
        }
        let mut logits = vec![0.0; core.len(program.logits, batch)];
        self.out(&values, program.logits, &mut logits);
        report.features = vec![0.0; core.len(program.features, batch)];
        self.out(&values, program.features, &mut report.features);
        for &value in &mode.taps {
            let mut tap = vec![0.0; core.len(value, batch)];
            self.out(&values, value, &mut tap);
            report.taps.push(tap);
        }
        let kept = track.then_some(Kept { values, extras, needed });
        (logits, report, kept)
    }

    /// A convolution and the batch norm by running statistics that alone reads it, in one, where both can be.
    fn fold(&self, index: usize, theta: &[f32], values: &[Option<Value>]) -> Option<(usize, Value)> {
        let Self { core, mode, stats, batch, .. } = *self;
        let (step, next, program) = (&core.steps[index], core.steps.get(index + 1)?, &core.program);
        let (Work::Conv { weight, bias: false, .. }, Work::Norm { norm, residual, after }) = (&step.work, &next.work)
        else {
            return None;
        };
        let conv = core.convs[index].as_ref()?;
        if next.from != step.to || core.last[step.to] != index + 1 || mode.batch[*norm] {
            return None;
        }
        let parameter = |index: usize| &theta[program.parameters[index].range.clone()];
        let first = program.norms[*norm].parameter + 2 * mode.branch;
        let running = &stats[program.statistics(*norm, mode.branch)];
        let (mean, variance) = running.split_at(running.len() / 2);
        let [scale, shift] = norm::line_of([mean, &norm::inverse(variance), parameter(first), parameter(first + 1)]);
        let residual = residual.and_then(|value| values[value].as_ref());
        let fold = Fold { scale: &scale, shift: &shift, residual, after: *after };
        let weights = self.weights(index, conv, parameter(*weight));
        let (x, mut y) = (values[step.from].as_ref()?, core.lend(next.to, batch));
        conv.folded(batch, x, &weights, fold, &core.pool, &mut y);
        Some((next.to, y))
    }

    /// Those of a step: packed ones where they are kept or read by several tasks.
    fn weights<'a>(&self, index: usize, conv: &Conv, theta: &'a [f32]) -> Ready<'a> {
        let Self { core, batch, sink, .. } = *self;
        if conv.once(batch) && !sink.keeps() {
            return Ready::Theta(theta);
        }
        Ready::Packed(sink.packed(index, Way::Forth, || conv.pack(theta, &core.pool)))
    }

    /// A value in candle's order.
    fn out(&self, values: &[Option<Value>], value: usize, to: &mut [f32]) {
        let pixels = self.core.pixels(value);
        match &values[value] {
            Some(Value::Full(from)) => transpose(from, pixels, from.len() / pixels, to),
            Some(Value::Half(from)) => transpose(from, pixels, from.len() / pixels, to),
            None => {}
        }
    }

    fn step(
        &self,
        index: usize,
        theta: &[f32],
        values: &[Option<Value>],
        to: &mut Value,
        report: &mut Report,
    ) -> Extra {
        let Self { core, batch, .. } = *self;
        let step = &core.steps[index];
        let program = &core.program;
        let parameter = |index: usize| &theta[program.parameters[index].range.clone()];
        let channels = program.shapes[step.from][0];
        match (&step.work, &values[step.from], &mut *to) {
            (Work::Conv { weight, bias, .. }, Some(x), to) => {
                let Some(conv) = &core.convs[index] else { return Extra::Nothing };
                let bias = bias.then(|| parameter(weight + 1));
                let weights = self.weights(index, conv, parameter(*weight));
                conv.forward(batch, x, &weights, bias, &core.pool, to);
                Extra::Nothing
            }
            (Work::GlobalPool, Some(x), Value::Full(y)) => {
                match x {
                    Value::Full(x) => global(x, channels * batch, y),
                    Value::Half(x) => global(x, channels * batch, y),
                }
                Extra::Nothing
            }
            (Work::Flatten, Some(x), Value::Full(y)) => {
                let sizes = [core.pixels(step.from), batch, channels];
                match x {
                    Value::Full(x) => flatten(x, sizes, y),
                    Value::Half(x) => flatten(x, sizes, y),
                }
                Extra::Nothing
            }
            (_, _, Value::Full(y)) => self.within(step, theta, values, y, report),
            (_, _, Value::Half(y)) => self.within(step, theta, values, y, report),
        }
    }

    /// A step that makes what it reads: numbers of one kind.
    fn within<N: Number>(
        &self,
        step: &Step,
        theta: &[f32],
        values: &[Option<Value>],
        y: &mut [N],
        report: &mut Report,
    ) -> Extra {
        let Self { core, mode, stats, batch, .. } = *self;
        let program = &core.program;
        let value = |index: usize| N::of(values[index].as_ref());
        let parameter = |index: usize| &theta[program.parameters[index].range.clone()];
        let x = value(step.from);
        let channels = program.shapes[step.from][0];
        let depth = channels * batch;
        match &step.work {
            Work::Norm { norm: index, residual, after } => {
                let first = program.norms[*index].parameter + 2 * mode.branch;
                let (weight, bias) = (parameter(first), parameter(first + 1));
                let running = &stats[program.statistics(*index, mode.branch)];
                let seen = if mode.batch[*index] {
                    let seen = norm::moments(x, channels);
                    let count = (x.len() / channels) as f32;
                    if count > 1.0 {
                        let unbiased = seen.variance.iter().map(|v| v * (count / (count - 1.0)));
                        report.moments.0.push(*index);
                        report.moments.1.extend(seen.mean.iter().copied().chain(unbiased));
                    }
                    seen
                } else {
                    let (mean, variance) = running.split_at(channels);
                    Seen { mean: mean.to_vec(), variance: variance.to_vec() }
                };
                let inverse = norm::inverse(&seen.variance);
                norm::forward(x, [&seen.mean, &inverse, weight, bias], residual.map(value), *after, y);
                Extra::Norm { mean: seen.mean, inverse, weight: weight.to_vec(), bias: bias.to_vec() }
            }
            Work::Activation(activation) => {
                activation.forward(x, y);
                Extra::Nothing
            }
            Work::Dropout { layer, p } => {
                y.copy_from_slice(x);
                let Some(rng) = &mode.rng else { return Extra::Nothing };
                let drawn = dropout(rng, *layer, *p, batch, program.size(step.from));
                let mut factors = core.pool.lend(y.len());
                transpose(&drawn, depth, core.pixels(step.from), &mut factors);
                multiply(y, &factors);
                Extra::Factors(factors)
            }
            Work::MaxPool(slide) => {
                let mut choice = vec![0; y.len()];
                slide.max(x, depth, y, &mut choice);
                Extra::Choice(choice)
            }
            Work::AvgPool(slide) => {
                slide.mean(x, depth, y);
                Extra::Nothing
            }
            Work::Add(with) => {
                y.copy_from_slice(x);
                add(y, value(*with));
                Extra::Nothing
            }
            // see `step`
            Work::Conv { .. } | Work::GlobalPool | Work::Flatten => Extra::Nothing,
        }
    }
}
