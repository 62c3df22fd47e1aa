//! Forward through all steps.

use super::buffer::Buffer;
use super::norm::{self, Seen};
use super::plan::Work;
use super::pointwise::{add, flatten, global, multiply, transpose};
use super::{Core, Report};
use crate::kernels::{Mode, Sink, dropout};

/// What a step keeps for the way back, beside its values.
#[derive(Debug)]
pub(super) enum Extra {
    Nothing,
    Norm {
        mean: Vec<f32>,
        inverse: Vec<f32>,
        weight: Vec<f32>,
    },
    /// For each output of a max-pool the place of its largest input.
    Choice(Vec<u8>),
    Factors(Buffer),
}

/// What a forward keeps for the way back.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) values: Vec<Option<Buffer>>,
    pub(super) extras: Vec<Extra>,
    /// Which values have a gradient.
    pub(super) needed: Vec<bool>,
}

pub(super) struct Forth<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    pub(super) stats: &'a [Vec<f32>],
    pub(super) batch: usize,
    pub(super) sink: &'a Sink,
    /// Whether the sink keeps packed weights.
    pub(super) keep: bool,
}

impl Forth<'_> {
    /// Logits, then features, each batch x channels x pixels; and what the way back needs, if there is one.
    pub(super) fn run(&self, theta: &[f32], x: &[f32], tracked: [bool; 2]) -> (Vec<f32>, Report, Option<Kept>) {
        let Self { core, mode, batch, .. } = *self;
        let program = &core.program;
        let track = tracked[0] || tracked[1];
        let mut report = Report::default();
        let needed = self.needed(tracked);
        let mut values: Vec<Option<Buffer>> = program.shapes.iter().map(|_| None).collect();
        let mut extras = Vec::with_capacity(core.steps.len());
        let mut input = core.lend(0, batch);
        transpose(x, batch * program.input[0], core.pixels(0), &mut input);
        values[0] = Some(input);
        let stays = |value: usize| value == program.features || value == program.logits || mode.taps.contains(&value);
        for (index, step) in core.steps.iter().enumerate() {
            let mut y = core.lend(step.to, batch);
            extras.push(self.step(index, theta, &values, &mut y, &mut report));
            values[step.to] = Some(y);
            if !track {
                for value in step.reads().filter(|&value| core.last[value] == index && !stays(value)) {
                    values[value] = None;
                }
            }
        }
        let mut result = vec![0.0; core.len(program.logits, batch) + core.len(program.features, batch)];
        let (logits, features) = result.split_at_mut(core.len(program.logits, batch));
        self.out(&values, program.logits, logits);
        self.out(&values, program.features, features);
        for &value in &mode.taps {
            let mut tap = vec![0.0; core.len(value, batch)];
            self.out(&values, value, &mut tap);
            report.taps.push(tap);
        }
        let kept = track.then_some(Kept { values, extras, needed });
        (result, report, kept)
    }

    /// Which values have a gradient: those that depend on something tracked.
    fn needed(&self, [theta, x]: [bool; 2]) -> Vec<bool> {
        let mut needed = vec![false; self.core.program.shapes.len()];
        needed[0] = x;
        for step in &self.core.steps {
            let own = matches!(step.work, Work::Conv { .. } | Work::Norm { .. });
            needed[step.to] = (theta && own) || step.reads().any(|value| needed[value]);
        }
        needed
    }

    /// A value in candle's order.
    fn out(&self, values: &[Option<Buffer>], value: usize, to: &mut [f32]) {
        if let Some(from) = &values[value] {
            let pixels = self.core.pixels(value);
            transpose(from, pixels, from.len() / pixels, to);
        }
    }

    fn step(
        &self,
        index: usize,
        theta: &[f32],
        values: &[Option<Buffer>],
        y: &mut Buffer,
        report: &mut Report,
    ) -> Extra {
        let Self { core, mode, stats, batch, sink, keep } = *self;
        let step = &core.steps[index];
        let program = &core.program;
        let value = |index: usize| values[index].as_deref().unwrap_or_default();
        let parameter = |index: usize| &theta[program.parameters[index].range.clone()];
        let x = value(step.from);
        let channels = program.shapes[step.from][0];
        let depth = channels * batch;
        match &step.work {
            Work::Conv { conv, weight, bias } => {
                let bias = bias.then(|| parameter(weight + 1));
                let packed = sink.packed(index, keep, || conv.pack(parameter(*weight), &core.pool));
                conv.forward(batch, x, &packed, bias, &core.pool, y);
                Extra::Nothing
            }
            Work::Norm { norm: index, residual, after } => {
                let first = program.norms[*index].parameter + 2 * mode.branch;
                let (weight, bias) = (parameter(first), parameter(first + 1));
                let running = &stats[index * program.branches + mode.branch];
                let seen = if mode.batch[*index] {
                    let seen = norm::moments(x, channels);
                    let count = (x.len() / channels) as f32;
                    if count > 1.0 {
                        let unbiased = seen.variance.iter().map(|v| v * (count / (count - 1.0)));
                        report.moments.push((*index, seen.mean.iter().copied().chain(unbiased).collect()));
                    }
                    seen
                } else {
                    let (mean, variance) = running.split_at(channels);
                    Seen { mean: mean.to_vec(), variance: variance.to_vec() }
                };
                let inverse = norm::inverse(&seen.variance);
                norm::forward(x, [&seen.mean, &inverse, weight, bias], residual.map(value), *after, y);
                Extra::Norm { mean: seen.mean, inverse, weight: weight.to_vec() }
            }
            Work::Activation(activation) => {
                activation.forward(x, y);
                Extra::Nothing
            }
            Work::Dropout { layer, p } => {
                y.copy_from_slice(x);
                let Some(rng) = &mode.rng else { return Extra::Nothing };
                let drawn = dropout(rng, *layer, *p, batch, program.size(step.from));
                let mut factors = core.lend(step.from, batch);
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
            Work::GlobalPool => {
                global(x, depth, y);
                Extra::Nothing
            }
            Work::Add(with) => {
                y.copy_from_slice(x);
                add(y, value(*with));
                Extra::Nothing
            }
            Work::Flatten => {
                flatten(x, [core.pixels(step.from), batch, channels], false, y);
                Extra::Nothing
            }
        }
    }
}
