//! Forward through all steps.

use candle_core::{Result, Tensor};

use super::machine::{Arg, Convolution, Grid, Kind, Makes, Memory};
use super::value::Value;
use super::{Core, chunk, turn_in, turn_out};
use crate::kernels::steps::{Activation, Slide, Step, Work, needed};
use crate::kernels::{EPSILON, Mode, Products, Window, dropout};

/// What a step keeps for the way back, beside its values.
#[derive(Debug)]
pub(super) enum Extra {
    Nothing,
    /// Means, then inverse deviations; scale, then shift: per channel.
    Norm {
        mean: Mean,
        line: Memory,
    },
    /// For each output of a max-pool the place of its largest input.
    Choice(Memory),
    Factors(Value),
}

/// Mean and variance that a batch norm normalised by.
#[derive(Debug)]
pub(super) enum Mean {
    Batch(Memory),
    /// The tensor there holds them.
    Running(u64, #[expect(dead_code, reason = "keeps the address")] Tensor),
}

impl Mean {
    pub(super) fn at(&self) -> u64 {
        match self {
            Mean::Batch(memory) => memory.at,
            Mean::Running(at, _) => *at,
        }
    }
}

/// What a forward keeps for the way back.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) values: Vec<Option<Value>>,
    pub(super) extras: Vec<Extra>,
    /// Which values have a gradient.
    pub(super) needed: Vec<bool>,
}

/// What a forward gives, in f32 and in candle's order.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) logits: Memory,
    pub(super) features: Memory,
    pub(super) taps: Vec<Memory>,
    /// Mean and unbiased variance of each batch norm of `Forth::watched`, one after the other.
    pub(super) moments: Option<Memory>,
}

pub(super) struct Forth<'a> {
    pub(super) core: &'a Core,
    pub(super) mode: &'a Mode,
    /// All statistics of batch norms.
    pub(super) stats: &'a Tensor,
    pub(super) batch: usize,
    /// Where the parameters lie.
    pub(super) theta: u64,
}

impl Forth<'_> {
    /// What it gives, and what the way back needs, if there is one.
    pub(super) fn run(&self, x: u64, tracked: [bool; 2]) -> Result<(Made, Option<Kept>)> {
        let Self { core, mode, batch, .. } = *self;
        let (program, machine) = (&core.program, &*core.machine);
        let track = tracked[0] || tracked[1];
        let mut values: Vec<Option<Value>> = program.shapes.iter().map(|_| None).collect();
        let mut extras = Vec::with_capacity(core.steps.len());
        let moments = if self.told() > 0 { Some(machine.lend(4 * self.told())?) } else { None };
        let mut told = moments.as_ref().map_or(0, |moments| moments.at);
        let input = core.lend(0, batch)?;
        turn_in(machine, x, &input, [batch, program.input[0], core.pixels(0)])?;
        values[0] = Some(input);
        let stays = |value: usize| value == program.features || value == program.logits || mode.taps.contains(&value);
        for (index, step) in core.steps.iter().enumerate() {
            let y = core.lend(step.to, batch)?;
            extras.push(self.step(step, &values, &y, &mut told)?);
            values[step.to] = Some(y);
            if !track {
                for value in step.reads().filter(|&value| core.last[value] == index && !stays(value)) {
                    values[value] = None;
                }
            }
        }
        let logits = self.out(&values, program.logits)?;
        let features = self.out(&values, program.features)?;
        let taps = mode.taps.iter().map(|&value| self.out(&values, value)).collect::<Result<_>>()?;
        let kept = track.then(|| Kept { values, extras, needed: needed(&core.program, &core.steps, tracked) });
        Ok((Made { logits, features, taps, moments }, kept))
    }

    /// Numbers in `Made::moments`.
    pub(super) fn told(&self) -> usize {
        self.watched().map(|(_, channels)| 2 * channels).sum()
    }

    /// Batch norms that tell what they saw, with their channels, in the order of the steps: those in batch mode that see
    /// more than one value a channel.
    pub(super) fn watched(&self) -> impl Iterator<Item = (usize, usize)> {
        self.core.steps.iter().filter_map(|step| match step.work {
            Work::Norm { norm, .. } if self.mode.batch[norm] => {
                let rows = self.batch * self.core.pixels(step.from);
                (rows > 1).then(|| (norm, self.core.program.shapes[step.from][0]))
            }
            _ => None,
        })
    }

    /// A value in candle's order.
    fn out(&self, values: &[Option<Value>], value: usize) -> Result<Memory> {
        let from = values[value].as_ref().ok_or_else(|| candle_core::Error::msg("a value is gone"))?;
        let to = self.core.machine.lend(4 * self.core.len(value, self.batch))?;
        let sizes = [self.batch, self.core.program.shapes[value][0], self.core.pixels(value)];
        turn_out(&*self.core.machine, from, to.at, sizes)?;
        Ok(to)
    }

    /// `told`: where the next batch norm tells what it saw.
    fn step(&self, step: &Step, values: &[Option<Value>], y: &Value, told: &mut u64) -> Result<Extra> {
        let Self { core, batch, .. } = *self;
        let machine = &*core.machine;
        let value = |index: usize| values[index].as_ref().ok_or_else(|| candle_core::Error::msg("a value is gone"));
        let x = value(step.from)?;
        let sizes = [batch, core.program.shapes[step.from][0], core.pixels(step.from)];
        let run = |name: &'static str, args: &[Arg]| machine.launch(name, x.kind(), Grid::of(y.len), args);
        match &step.work {
            Work::Conv { .. } => self.conv(step, x, y)?,
            Work::Norm { .. } => return self.norm(step, values, y, told),
            Work::Activation(activation) => {
                let (kind, slope) = curve(*activation);
                run("activate", &[x.at(), y.at(), kind, slope, y.count()])?;
            }
            Work::Dropout { layer, p } => {
                x.copy(machine, y)?;
                let Some(rng) = &self.mode.rng else { return Ok(Extra::Nothing) };
                let drawn = dropout(rng, *layer, *p, batch, core.program.size(step.from));
                let bytes: Vec<u8> = drawn.iter().flat_map(|factor| factor.to_le_bytes()).collect();
                let drawn = machine.upload(&bytes)?;
                let factors = Value::new(machine, y.len, false)?;
                turn_in(machine, drawn.at, &factors, sizes)?;
                run("multiply", &[y.at(), factors.at(), y.count()])?;
                return Ok(Extra::Factors(factors));
            }
            Work::MaxPool(slide) => {
                let choice = machine.lend(y.len)?;
                run("max_pool", &[&[x.at(), y.at(), Arg::At(choice.at)], &ints(sizes, slide)[..]].concat())?;
                return Ok(Extra::Choice(choice));
            }
            Work::AvgPool(slide) => run("mean_pool", &[&[x.at(), y.at()], &ints(sizes, slide)[..]].concat())?,
            Work::GlobalPool => run("global_pool", &[&[x.at(), y.at()], &sizes.map(int)[..]].concat())?,
            Work::Add(with) => {
                x.copy(machine, y)?;
                run("add", &[y.at(), value(*with)?.at(), y.count()])?;
            }
            Work::Flatten => turn_out(machine, x, y.address(), sizes)?,
        }
        Ok(Extra::Nothing)
    }

    fn conv(&self, step: &Step, x: &Value, y: &Value) -> Result<()> {
        let Work::Conv { window, transposed, weight, bias } = step.work else { return Ok(()) };
        let core = self.core;
        let machine = &*core.machine;
        let (shape, half) = (convolution(core, step, window, transposed, self.batch), x.half && y.half);
        let weights = packed(core, weight, self.theta, half)?;
        let x = x.seen(machine, half)?;
        let made = if y.half == half { None } else { Some(Value::new(machine, y.len, half)?) };
        let to = made.as_ref().unwrap_or(y).address();
        let makes = if transposed { Makes::X } else { Makes::Y };
        machine.convolve(shape, makes, factors(transposed, x.address(), weights.address(), to), false)?;
        if let Some(made) = &made {
            made.convert(machine, y)?;
        }
        if bias {
            let bias = Arg::At(core.parameter(self.theta, weight + 1));
            let channels = int(core.program.shapes[step.to][0]);
            machine.launch("bias", y.kind(), Grid::of(y.len), &[y.at(), bias, y.count(), channels])?;
        }
        Ok(())
    }

    fn norm(&self, step: &Step, values: &[Option<Value>], y: &Value, told: &mut u64) -> Result<Extra> {
        let Work::Norm { norm, residual, after } = step.work else { return Ok(Extra::Nothing) };
        let (Some(x), core) = (&values[step.from], self.core) else { return Ok(Extra::Nothing) };
        let (program, machine) = (&core.program, &*core.machine);
        let channels = program.shapes[step.from][0];
        let rows = x.len / channels;
        let first = program.norms[norm].parameter + 2 * self.mode.branch;
        let mean = if self.mode.batch[norm] {
            let chunk = chunk(rows, channels);
            let chunks = rows.div_ceil(chunk);
            let shape = [rows, channels, chunk].map(int);
            let partial = machine.lend(4 * 2 * chunks * channels)?;
            let partial_at = Arg::At(partial.at);
            let grid = Grid::sums(channels, chunks);
            machine.launch("moments", x.kind(), grid, &[&[x.at(), partial_at], &shape[..]].concat())?;
            // mean, biased variance; and mean, unbiased variance, where there is one
            let seen = machine.lend(8 * channels)?;
            let unheard = if rows > 1 { None } else { Some(machine.lend(8 * channels)?) };
            let to = [seen.at, unheard.as_ref().map_or(*told, |memory| memory.at)].map(Arg::At);
            let grid = Grid::of(channels);
            machine.launch("moments_end", Kind::Only, grid, &[&[partial_at], &to[..], &shape[..]].concat())?;
            if rows > 1 {
                *told += 8 * channels as u64;
            }
            Mean::Batch(seen)
        } else {
            let start = program.statistics(norm, self.mode.branch).start;
            Mean::Running(machine.place(self.stats)? + 4 * start as u64, self.stats.clone())
        };
        let seen = mean.at();
        let [weight, bias] = [first, first + 1].map(|parameter| Arg::At(core.parameter(self.theta, parameter)));
        let line = machine.lend(4 * 3 * channels)?;
        let [inverse, scale, shift] = thirds(&line, channels);
        let by = [Arg::At(seen), Arg::At(seen + 4 * channels as u64), weight, bias, inverse, scale, shift];
        let end = [int(channels), Arg::Double(EPSILON)];
        machine.launch("line", Kind::Only, Grid::of(channels), &[&by, &end[..]].concat())?;
        let residual = residual.and_then(|value| values[value].as_ref()).map_or(Arg::At(0), Value::at);
        let args = [x.at(), scale, shift, residual, Arg::Float(after.slope()), y.at(), y.count(), int(channels)];
        machine.launch("normalise", x.kind(), Grid::of(y.len), &args)?;
        Ok(Extra::Norm { mean, line })
    }
}

/// An argument of a kernel.
pub(super) fn int(number: usize) -> Arg {
    Arg::Int(number as i32)
}

/// Three vectors that follow each other.
pub(super) fn thirds(memory: &Memory, channels: usize) -> [Arg; 3] {
    [0, 1, 2].map(|third| Arg::At(memory.at + 4 * (third * channels) as u64))
}

/// Of an activation: which, and its slope.
pub(super) fn curve(activation: Activation) -> (Arg, Arg) {
    match activation {
        Activation::Leaky(slope) => (Arg::Int(0), Arg::Float(slope)),
        Activation::Sigmoid => (Arg::Int(1), Arg::Float(0.0)),
        Activation::Tanh => (Arg::Int(2), Arg::Float(0.0)),
    }
}

/// Batch, channels, sizes and window, as the pools take them.
pub(super) fn ints([batch, channels, _]: [usize; 3], slide: &Slide) -> [Arg; 9] {
    let Slide { input, output, window } = slide;
    let window = [window.kernel, window.stride, window.padding];
    let all = [batch, channels, input[0], input[1], output[0], output[1], window[0], window[1], window[2]];
    all.map(int)
}

/// The convolution below a step: a transposed one is the way back of that from its output to its input.
pub(super) fn convolution(core: &Core, step: &Step, window: Window, transposed: bool, batch: usize) -> Convolution {
    let [from, to] = [step.from, step.to].map(|value| core.program.shapes[value]);
    let (x, y) = if transposed { (to, from) } else { (from, to) };
    let half = core.half[step.from] && core.half[step.to];
    Convolution { batch, x, y, window, half, exact: core.program.products == Products::Direct }
}

/// What a step reads, its weights and what it makes, in the order of the convolution below it.
pub(super) fn factors(transposed: bool, from: u64, weights: u64, to: u64) -> [u64; 3] {
    if transposed { [to, weights, from] } else { [from, weights, to] }
}

/// Weights as outputs x places x inputs of the convolution.
pub(super) fn packed(core: &Core, weight: usize, theta: u64, half: bool) -> Result<Value> {
    let parameter = &core.program.parameters[weight];
    let weights = Value::new(&*core.machine, parameter.range.len(), half)?;
    turn_in(&*core.machine, core.parameter(theta, weight), &weights, core.sides(weight))?;
    Ok(weights)
}
