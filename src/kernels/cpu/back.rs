//! Back through all steps. Reads what the forward kept and changes none of it, so a graph may be walked back again.

use super::Core;
use super::buffer::Buffer;
use super::forth::{Extra, Kept};
use super::norm;
use super::number::{Half, Number, Value};
use super::pointwise::{add_all, flatten_back, global_back, multiply, transpose};
use super::weights::Ready;
use crate::kernels::sink::Way;
use crate::kernels::steps::{Step, Work};
use crate::kernels::{Mode, Program, Sink};

pub(super) struct Back<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    pub(super) batch: usize,
    pub(super) kept: &'a Kept,
    /// As it was on the way forth.
    pub(super) theta: &'a [f32],
    /// Whether theta and the input are tracked.
    pub(super) tracked: [bool; 2],
    pub(super) sink: &'a Sink,
}

/// Gradients of values, as far as the walk has come, each of its value's kind.
struct Gradients(Vec<Option<Value>>);

impl Gradients {
    fn give(&mut self, value: usize, gradient: Value) {
        match (&mut self.0[value], &gradient) {
            (Some(Value::Full(sum)), Value::Full(gradient)) => add_all(sum, gradient),
            (Some(Value::Half(sum)), Value::Half(gradient)) => add_all(sum, gradient),
            (empty, _) => *empty = Some(gradient),
        }
    }
}

/// The gradient of theta, as far as the walk has come.
struct OfTheta {
    data: Buffer,
    /// For each parameter, whether it is there.
    reached: Vec<bool>,
}

impl OfTheta {
    /// That of one parameter, to be written.
    fn part(&mut self, program: &Program, parameter: usize) -> &mut [f32] {
        self.reached[parameter] = true;
        &mut self.data[program.parameters[parameter].range.clone()]
    }

    /// Zeros where the walk did not come.
    fn finish(mut self, program: &Program) -> Buffer {
        for (parameter, _) in program.parameters.iter().zip(&self.reached).filter(|(_, reached)| !**reached) {
            self.data[parameter.range.clone()].fill(0.0);
        }
        self.data
    }
}

impl Back<'_> {
    /// Gradients of theta and of the input, from that of logits and features; an empty one is zeros.
    pub(super) fn run(&self, logits: &[f32], features: &[f32]) -> (Option<Buffer>, Option<Vec<f32>>) {
        let Self { core, batch, kept, tracked, .. } = *self;
        let program = &core.program;
        let mut of_theta = OfTheta {
            data: core.pool.lend(if tracked[0] { program.len() } else { 0 }),
            reached: vec![false; program.parameters.len()],
        };
        let mut gradients = Gradients(program.shapes.iter().map(|_| None).collect());
        for (value, part) in [(program.logits, logits), (program.features, features)] {
            // a part that no loss reached is left alone
            if part.iter().any(|&g| g != 0.0) {
                let mut gradient = core.lend(value, batch);
                let pixels = core.pixels(value);
                match &mut gradient {
                    Value::Full(gradient) => transpose(part, part.len() / pixels, pixels, gradient),
                    Value::Half(gradient) => transpose(part, part.len() / pixels, pixels, gradient),
                }
                gradients.give(value, gradient);
            }
        }
        for (index, extra) in kept.extras.iter().enumerate().rev() {
            let to = core.steps[index].to;
            if let Some(gradient) = gradients.0[to].take().filter(|_| kept.needed[to]) {
                self.step(index, extra, gradient, &mut gradients, &mut of_theta);
            }
        }
        let of_x = tracked[1].then(|| {
            let mut of_x = vec![0.0; core.len(0, batch)];
            let columns = batch * program.input[0];
            match &gradients.0[0] {
                Some(Value::Full(gradient)) => transpose(gradient, core.pixels(0), columns, &mut of_x),
                Some(Value::Half(gradient)) => transpose(gradient, core.pixels(0), columns, &mut of_x),
                None => {}
            }
            of_x
        });
        (tracked[0].then(|| of_theta.finish(program)), of_x)
    }

    fn step(&self, index: usize, extra: &Extra, above: Value, gradients: &mut Gradients, of_theta: &mut OfTheta) {
        let Self { core, batch, kept, .. } = *self;
        let step = &core.steps[index];
        let channels = core.program.shapes[step.from][0];
        let sizes = [core.pixels(step.from), batch, channels];
        match (&step.work, &kept.values[step.from], above) {
            (Work::Conv { .. }, Some(x), above) => self.conv(index, x, &above, gradients, of_theta),
            (Work::GlobalPool, _, Value::Full(above)) => {
                let mut below = core.lend(step.from, batch);
                match &mut below {
                    Value::Full(below) => global_back(&above, below),
                    Value::Half(below) => global_back(&above, below),
                }
                gradients.give(step.from, below);
            }
            (Work::Flatten, _, Value::Full(above)) => {
                let mut below = core.lend(step.from, batch);
                match &mut below {
                    Value::Full(below) => flatten_back(&above, sizes, below),
                    Value::Half(below) => flatten_back(&above, sizes, below),
                }
                gradients.give(step.from, below);
            }
            (_, _, above @ Value::Full(_)) => self.within::<f32>(step, extra, above, gradients, of_theta),
            (_, _, above @ Value::Half(_)) => self.within::<Half>(step, extra, above, gradients, of_theta),
        }
    }

    fn conv(&self, index: usize, x: &Value, above: &Value, gradients: &mut Gradients, of_theta: &mut OfTheta) {
        let Self { core, batch, kept, theta, tracked, sink, .. } = *self;
        let step = &core.steps[index];
        let (Work::Conv { weight, bias, .. }, Some(conv)) = (&step.work, &core.convs[index]) else { return };
        let program = &core.program;
        if tracked[0] {
            conv.gradient(batch, x, above, &core.pool, of_theta.part(program, *weight));
            if *bias {
                let sums = match above {
                    Value::Full(above) => sums(above, conv.weights.outputs),
                    Value::Half(above) => sums(above, conv.weights.outputs),
                };
                of_theta.part(program, weight + 1).copy_from_slice(&sums);
            }
        }
        if kept.needed[step.from] {
            let weights = &theta[program.parameters[*weight].range.clone()];
            let weights = if conv.once_back(batch) && !sink.keeps() {
                Ready::Theta(weights)
            } else {
                Ready::Packed(sink.packed(index, Way::Back, || conv.pack_back(weights, &core.pool)))
            };
            if let Some(sum) = &mut gradients.0[step.from] {
                conv.backward(batch, above, &weights, true, &core.pool, sum);
            } else {
                let mut below = core.lend(step.from, batch);
                conv.backward(batch, above, &weights, false, &core.pool, &mut below);
                gradients.give(step.from, below);
            }
        }
    }

    /// A step that makes what it reads: numbers of one kind.
    fn within<N: Number>(
        &self,
        step: &Step,
        extra: &Extra,
        mut above: Value,
        gradients: &mut Gradients,
        of_theta: &mut OfTheta,
    ) {
        let Self { core, mode, batch, kept, tracked, .. } = *self;
        let program = &core.program;
        let value = |index: usize| N::of(kept.values[index].as_ref());
        let (x, y) = (value(step.from), value(step.to));
        let depth = program.shapes[step.from][0] * batch;
        let needed = kept.needed[step.from];
        let g = N::of_mut(&mut above);
        match (&step.work, extra) {
            (Work::Norm { norm: index, residual, after }, Extra::Norm { mean, inverse, weight, bias }) => {
                let mut below = needed.then(|| core.lend(step.from, batch));
                let by_batch = mode.batch[*index];
                let own = {
                    let below = below.as_mut().map(N::of_mut);
                    let added = residual.map(|_| y);
                    norm::backward(x, added, [mean, inverse, weight, bias], by_batch, *after, g, below)
                };
                if tracked[0] {
                    let first = program.norms[*index].parameter + 2 * mode.branch;
                    of_theta.part(program, first).copy_from_slice(&own.weight);
                    of_theta.part(program, first + 1).copy_from_slice(&own.bias);
                }
                if let Some(below) = below {
                    gradients.give(step.from, below);
                }
                if let Some(residual) = residual.filter(|&value| kept.needed[value]) {
                    gradients.give(residual, above);
                }
            }
            (Work::Activation(activation), _) => {
                activation.backward(y, g);
                gradients.give(step.from, above);
            }
            (Work::Dropout { .. }, extra) => {
                if let Extra::Factors(factors) = extra {
                    multiply(g, factors);
                }
                gradients.give(step.from, above);
            }
            (Work::MaxPool(slide), Extra::Choice(choice)) => {
                let mut below = core.lend(step.from, batch);
                slide.max_back(g, choice, depth, N::of_mut(&mut below));
                gradients.give(step.from, below);
            }
            (Work::AvgPool(slide), _) => {
                let mut below = core.lend(step.from, batch);
                slide.mean_back(g, depth, N::of_mut(&mut below));
                gradients.give(step.from, below);
            }
            (Work::Add(with), _) => {
                if kept.needed[*with] {
                    let mut copy = core.lend(*with, batch);
                    N::of_mut(&mut copy).copy_from_slice(g);
                    gradients.give(*with, copy);
                }
                gradients.give(step.from, above);
            }
            // see `step`, and a step always keeps its own kind
            (Work::Conv { .. } | Work::GlobalPool | Work::Flatten | Work::Norm { .. } | Work::MaxPool(_), _) => {}
        }
    }
}

/// Over rows, of each channel.
fn sums<N: Number>(x: &[N], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; channels];
    for row in x.chunks_exact(channels) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.wide()));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}
