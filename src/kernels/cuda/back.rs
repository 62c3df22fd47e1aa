//! Back through all steps. Reads what the forward kept and changes none of it, so a graph may be walked back again.

use candle_core::Result;

use super::forth::{Extra, Kept, convolution, curve, factors, int, ints, packed, thirds};
use super::machine::{Arg, Grid, Kind, Makes, Memory};
use super::value::Value;
use super::{Core, chunk, turn_in, turn_out};
use crate::kernels::Mode;
use crate::kernels::steps::{Step, Work};

pub(super) struct Back<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    pub(super) batch: usize,
    pub(super) kept: &'a Kept,
    /// Where the parameters lie, as they were on the way forth.
    pub(super) theta: u64,
    /// Whether theta and the input are tracked.
    pub(super) tracked: [bool; 2],
}

/// Gradients of values, as far as the walk has come, each of its value's kind.
struct Gradients(Vec<Option<Value>>);

impl Gradients {
    fn give(&mut self, core: &Core, value: usize, gradient: Value) -> Result<()> {
        match &self.0[value] {
            Some(sum) => {
                let args = [sum.at(), gradient.at(), sum.count()];
                core.machine.launch("add", sum.kind(), Grid::of(sum.len), &args)
            }
            None => {
                self.0[value] = Some(gradient);
                Ok(())
            }
        }
    }
}

impl Back<'_> {
    /// Gradients of theta and of the input in candle's order, from those of logits and features; 0 where there is none.
    pub(super) fn run(&self, above: [u64; 2]) -> Result<[Option<Memory>; 2]> {
        let Self { core, batch, kept, tracked, .. } = *self;
        let (program, machine) = (&core.program, &*core.machine);
        // zeros where the walk does not come
        let of_theta = if tracked[0] { Some(machine.zeros(4 * program.len())?) } else { None };
        let mut gradients = Gradients(program.shapes.iter().map(|_| None).collect());
        for (value, at) in [program.logits, program.features].into_iter().zip(above).filter(|(_, at)| *at != 0) {
            let gradient = core.lend(value, batch)?;
            turn_in(machine, at, &gradient, [batch, program.shapes[value][0], core.pixels(value)])?;
            gradients.give(core, value, gradient)?;
        }
        for (step, extra) in core.steps.iter().zip(&kept.extras).rev() {
            if let Some(gradient) = gradients.0[step.to].take().filter(|_| kept.needed[step.to]) {
                self.step(step, extra, gradient, &mut gradients, of_theta.as_ref())?;
            }
        }
        let of_x = if tracked[1] { Some(machine.zeros(4 * core.len(0, batch))?) } else { None };
        if let (Some(of_x), Some(gradient)) = (&of_x, &gradients.0[0]) {
            turn_out(machine, gradient, of_x.at, [batch, program.input[0], core.pixels(0)])?;
        }
        Ok([of_theta, of_x])
    }

    fn step(
        &self,
        step: &Step,
        extra: &Extra,
        above: Value,
        gradients: &mut Gradients,
        of_theta: Option<&Memory>,
    ) -> Result<()> {
        let Self { core, batch, kept, .. } = *self;
        let machine = &*core.machine;
        let value = |index: usize| {
            let value = kept.values[index].as_ref();
            value.ok_or_else(|| candle_core::Error::msg("the network kept too little for the way back"))
        };
        let sizes = [batch, core.program.shapes[step.from][0], core.pixels(step.from)];
        let below = || core.lend(step.from, batch);
        // in place
        let change = |name: &'static str, args: &[Arg]| machine.launch(name, above.kind(), Grid::of(above.len), args);
        match (&step.work, extra) {
            (Work::Conv { .. }, _) => self.conv(step, value(step.from)?, &above, gradients, of_theta),
            (Work::Norm { .. }, Extra::Norm { .. }) => self.norm(step, extra, above, gradients, of_theta),
            (Work::Activation(activation), _) => {
                let (kind, slope) = curve(*activation);
                change("activate_back", &[value(step.to)?.at(), above.at(), kind, slope, above.count()])?;
                gradients.give(core, step.from, above)
            }
            (Work::Dropout { .. }, extra) => {
                if let Extra::Factors(factors) = extra {
                    change("multiply", &[above.at(), factors.at(), above.count()])?;
                }
                gradients.give(core, step.from, above)
            }
            (Work::Add(with), _) => {
                if kept.needed[*with] {
                    let copy = core.lend(*with, batch)?;
                    above.copy(machine, &copy)?;
                    gradients.give(core, *with, copy)?;
                }
                gradients.give(core, step.from, above)
            }
            (Work::Flatten, _) => {
                let below = below()?;
                turn_in(machine, above.address(), &below, sizes)?;
                gradients.give(core, step.from, below)
            }
            (work, extra) => {
                let below = below()?;
                let run =
                    |name: &'static str, args: &[Arg]| machine.launch(name, below.kind(), Grid::of(below.len), args);
                match (work, extra) {
                    (Work::MaxPool(slide), Extra::Choice(choice)) => {
                        let at = [above.at(), Arg::At(choice.at), below.at()];
                        run("max_pool_back", &[&at, &ints(sizes, slide)[..]].concat())?;
                    }
                    (Work::AvgPool(slide), _) => {
                        run("mean_pool_back", &[&[above.at(), below.at()], &ints(sizes, slide)[..]].concat())?;
                    }
                    (Work::GlobalPool, _) => {
                        run("global_pool_back", &[&[above.at(), below.at()], &sizes.map(int)[..]].concat())?;
                    }
                    // a step always keeps its own kind
                    _ => return Ok(()),
                }
                gradients.give(core, step.from, below)
            }
        }
    }

    fn conv(
        &self,
        step: &Step,
        x: &Value,
        above: &Value,
        gradients: &mut Gradients,
        of_theta: Option<&Memory>,
    ) -> Result<()> {
        let Work::Conv { window, transposed, weight, bias } = step.work else { return Ok(()) };
        let Self { core, batch, kept, .. } = *self;
        let machine = &*core.machine;
        let (shape, half) = (convolution(core, step, window, transposed, batch), x.half && above.half);
        let outputs = core.program.shapes[step.to][0];
        if let (Some(of_theta), true) = (of_theta, bias) {
            let rows = above.len / outputs;
            let chunk = chunk(rows, outputs);
            let chunks = rows.div_ceil(chunk);
            let partial = machine.lend(4 * chunks * outputs)?;
            let partial_at = Arg::At(partial.at);
            let args = [above.at(), partial_at, int(rows), int(outputs), int(chunk)];
            machine.launch("column_sums", above.kind(), Grid::sums(outputs, chunks), &args)?;
            let to = Arg::At(core.parameter(of_theta.at, weight + 1));
            let args = [partial_at, to, int(chunks), int(outputs)];
            machine.launch("column_total", Kind::Only, Grid::of(outputs), &args)?;
        }
        let above = above.seen(machine, half)?;
        if let Some(of_theta) = of_theta {
            let x = x.seen(machine, half)?;
            let sums = Value::new(machine, core.program.parameters[weight].range.len(), half)?;
            let at = factors(transposed, x.address(), sums.address(), above.address());
            machine.convolve(shape, Makes::Weights, at, false)?;
            let [outputs, inputs, taps] = core.sides(weight);
            turn_out(machine, &sums, core.parameter(of_theta.at, weight), [outputs, inputs, taps])?;
        }
        if kept.needed[step.from] {
            let weights = packed(core, weight, self.theta, half)?;
            let makes = if transposed { Makes::Y } else { Makes::X };
            let run = |below: u64, add: bool| {
                machine.convolve(shape, makes, factors(transposed, below, weights.address(), above.address()), add)
            };
            match &gradients.0[step.from] {
                Some(sum) if sum.half == half => run(sum.address(), true)?,
                _ => {
                    let below = Value::new(machine, core.len(step.from, batch), half)?;
                    run(below.address(), false)?;
                    let below = if core.half[step.from] == half {
                        below
                    } else {
                        let other = core.lend(step.from, batch)?;
                        below.convert(machine, &other)?;
                        other
                    };
                    gradients.give(core, step.from, below)?;
                }
            }
        }
        Ok(())
    }

    fn norm(
        &self,
        step: &Step,
        extra: &Extra,
        above: Value,
        gradients: &mut Gradients,
        of_theta: Option<&Memory>,
    ) -> Result<()> {
        let (Work::Norm { norm, residual, after }, Extra::Norm { mean, line }) = (&step.work, extra) else {
            return Ok(());
        };
        let Self { core, batch, kept, .. } = *self;
        let (program, machine) = (&core.program, &*core.machine);
        let (Some(x), Some(y)) = (&kept.values[step.from], &kept.values[step.to]) else { return Ok(()) };
        let channels = program.shapes[step.from][0];
        let rows = x.len / channels;
        let chunk = chunk(rows, channels);
        let chunks = rows.div_ceil(chunk);
        let [inverse, scale, shift] = thirds(line, channels);
        let (mean, slope) = (Arg::At(mean.at()), Arg::Float(after.slope()));
        let added = if residual.is_some() { y.at() } else { Arg::At(0) };
        let partial = machine.lend(4 * 2 * chunks * channels)?;
        let partial_at = Arg::At(partial.at);
        let args = [x.at(), added, mean, scale, shift, slope, above.at(), partial_at];
        let shape = [rows, channels, chunk].map(int);
        machine.launch("norm_sums", x.kind(), Grid::sums(channels, chunks), &[&args, &shape[..]].concat())?;
        let own = machine.lend(4 * 2 * channels)?;
        let first = program.norms[*norm].parameter + 2 * self.mode.branch;
        let [of_weight, of_bias] = match of_theta {
            Some(of_theta) => [first, first + 1].map(|parameter| Arg::At(core.parameter(of_theta.at, parameter))),
            None => [Arg::At(own.at), Arg::At(own.at + 4 * channels as u64)],
        };
        let factors = machine.lend(4 * 3 * channels)?;
        let [scales, constants, slopes] = thirds(&factors, channels);
        let weight = Arg::At(core.parameter(self.theta, first));
        let by_batch = Arg::Int(i32::from(self.mode.batch[*norm]));
        let args = [partial_at, int(chunks), weight, inverse, int(rows), int(channels), by_batch];
        let to = [of_weight, of_bias, scales, constants, slopes];
        machine.launch("norm_factors", Kind::Only, Grid::of(channels), &[&args, &to[..]].concat())?;
        if kept.needed[step.from] {
            let below = core.lend(step.from, batch)?;
            let gated = Arg::Int(i32::from(residual.is_none()));
            let lines = [above.at(), x.at(), gated, mean, scale, shift, slope];
            let rest = [scales, constants, slopes, below.at(), below.count(), int(channels)];
            machine.launch("norm_back", x.kind(), Grid::of(below.len), &[&lines, &rest[..]].concat())?;
            gradients.give(core, step.from, below)?;
        }
        if let Some(residual) = residual.filter(|&value| kept.needed[value]) {
            gradients.give(core, residual, above)?;
        }
        Ok(())
    }
}
