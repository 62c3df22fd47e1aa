//! Back through all steps. Reads what the forward kept and changes none of it, so a graph may be walked back again.

use super::Core;
use super::buffer::Buffer;
use super::forth::{Extra, Kept};
use super::norm;
use super::plan::{Step, Work};
use super::pointwise::{add, flatten, global_back, multiply, transpose};
use crate::kernels::{Mode, Program};

pub(super) struct Back<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    pub(super) batch: usize,
    pub(super) kept: &'a Kept,
    /// As it was on the way forth.
    pub(super) theta: &'a [f32],
    /// Whether theta and the input are tracked.
    pub(super) tracked: [bool; 2],
}

/// Gradients of values, as far as the walk has come.
struct Gradients(Vec<Option<Buffer>>);

impl Gradients {
    fn give(&mut self, value: usize, gradient: Buffer) {
        match &mut self.0[value] {
            Some(sum) => add(sum, &gradient),
            empty => *empty = Some(gradient),
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
    /// Gradients of theta and of the input, from that of logits and features.
    pub(super) fn run(&self, above: &[f32]) -> (Option<Buffer>, Option<Vec<f32>>) {
        let Self { core, batch, kept, tracked, .. } = *self;
        let program = &core.program;
        let mut of_theta = OfTheta {
            data: core.pool.lend(if tracked[0] { program.len() } else { 0 }),
            reached: vec![false; program.parameters.len()],
        };
        let mut gradients = Gradients(program.shapes.iter().map(|_| None).collect());
        let (logits, features) = above.split_at(core.len(program.logits, batch));
        for (value, part) in [(program.logits, logits), (program.features, features)] {
            // a part that no loss reached is left alone
            if part.iter().any(|&g| g != 0.0) {
                let mut gradient = core.lend(value, batch);
                let pixels = core.pixels(value);
                transpose(part, part.len() / pixels, pixels, &mut gradient);
                gradients.give(value, gradient);
            }
        }
        for (step, extra) in core.steps.iter().zip(&kept.extras).rev() {
            if let Some(gradient) = gradients.0[step.to].take().filter(|_| kept.needed[step.to]) {
                self.step(step, extra, gradient, &mut gradients, &mut of_theta);
            }
        }
        let of_x = tracked[1].then(|| {
            let mut of_x = vec![0.0; core.len(0, batch)];
            if let Some(gradient) = &gradients.0[0] {
                transpose(gradient, core.pixels(0), batch * program.input[0], &mut of_x);
            }
            of_x
        });
        (tracked[0].then(|| of_theta.finish(program)), of_x)
    }

    fn step(&self, step: &Step, extra: &Extra, mut above: Buffer, gradients: &mut Gradients, of_theta: &mut OfTheta) {
        let Self { core, mode, batch, kept, theta, tracked } = *self;
        let program = &core.program;
        let value = |index: usize| kept.values[index].as_deref().unwrap_or_default();
        let (x, y) = (value(step.from), value(step.to));
        let channels = program.shapes[step.from][0];
        let depth = channels * batch;
        let needed = kept.needed[step.from];
        match (&step.work, extra) {
            (Work::Conv { conv, weight, bias }, _) => {
                if tracked[0] {
                    conv.gradient(batch, x, &above, &core.pool, of_theta.part(program, *weight));
                    if *bias {
                        let outputs = conv.weights.outputs;
                        let mut sums = vec![0.0_f64; outputs];
                        for row in above.chunks_exact(outputs) {
                            sums.iter_mut().zip(row).for_each(|(sum, &g)| *sum += f64::from(g));
                        }
                        let part = of_theta.part(program, weight + 1);
                        part.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
                    }
                }
                if needed {
                    let weights = conv.pack_back(&theta[program.parameters[*weight].range.clone()], &core.pool);
                    if let Some(sum) = &mut gradients.0[step.from] {
                        conv.backward(batch, &above, &weights, true, &core.pool, sum);
                    } else {
                        let mut below = core.lend(step.from, batch);
                        conv.backward(batch, &above, &weights, false, &core.pool, &mut below);
                        gradients.give(step.from, below);
                    }
                }
            }
            (Work::Norm { norm: index, residual, after }, Extra::Norm { mean, inverse, weight }) => {
                let mut below = needed.then(|| core.lend(step.from, batch));
                let by_batch = mode.batch[*index];
                let own =
                    norm::backward(x, y, [mean, inverse, weight], by_batch, *after, &mut above, below.as_deref_mut());
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
                activation.backward(y, &mut above);
                gradients.give(step.from, above);
            }
            (Work::Dropout { .. }, extra) => {
                if let Extra::Factors(factors) = extra {
                    multiply(&mut above, factors);
                }
                gradients.give(step.from, above);
            }
            (Work::MaxPool(slide), Extra::Choice(choice)) => {
                let mut below = core.lend(step.from, batch);
                slide.max_back(&above, choice, depth, &mut below);
                gradients.give(step.from, below);
            }
            (Work::AvgPool(slide), _) => {
                let mut below = core.lend(step.from, batch);
                slide.mean_back(&above, depth, &mut below);
                gradients.give(step.from, below);
            }
            (Work::GlobalPool, _) => {
                let mut below = core.lend(step.from, batch);
                global_back(&above, &mut below);
                gradients.give(step.from, below);
            }
            (Work::Add(with), _) => {
                if kept.needed[*with] {
                    let mut copy = core.lend(*with, batch);
                    copy.copy_from_slice(&above);
                    gradients.give(*with, copy);
                }
                gradients.give(step.from, above);
            }
            (Work::Flatten, _) => {
                let mut below = core.lend(step.from, batch);
                flatten(&above, [core.pixels(step.from), batch, channels], true, &mut below);
                gradients.give(step.from, below);
            }
            // a step always keeps its own kind
            (Work::Norm { .. } | Work::MaxPool(_), _) => {}
        }
    }
}
