//! Convolution without im2col. Values lie as height x width x batch x channels, so for one row of outputs and one place
//! of the window, inputs and outputs are both runs of whole (batch x channels) matrices, and a convolution is a sum of
//! plain matrix products over the places that fall inside the image. Padding costs nothing. Transposed convolution and
//! the gradient of the input are the same loops with the other geometry; linear layers are 1 x 1 windows.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::norm;
use super::number::{Half, Halves, Number, Value, convert_all};
use super::outer::outer;
use super::parallel::{Shared, each};
use super::simd::{Level, ROWS, Strided};
use super::weights::{Packed, Panel, View, Weights, channels, pack, panels, strips, unpack};
use super::winograd::Tiling;
#[cfg(target_arch = "x86_64")]
use super::{finish::End, tiled, tiles};
use crate::kernels::steps::{After, Step, Work};
use crate::kernels::{Products, Program, Window};

/// Rows of outputs that one task makes, about.
const CHUNK: usize = 256;
/// Tasks that are enough for many cores.
pub(super) const TASKS: usize = 32;
/// Input channels summed in registers before they go to memory: with a panel of outputs, half of a first-level cache.
/// The same at all levels, or their bits would differ.
pub(super) const DEPTH: usize = 128;

/// Which inputs an output sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    /// Height and width.
    pub(super) output: [usize; 2],
    pub(super) input: [usize; 2],
    pub(super) window: Window,
    /// False: input = output x stride + place - padding. True: the other way round.
    pub(super) transposed: bool,
}

/// For one row of outputs and one place of the window: output column `to + j to_step` sees input column
/// `from + j from_step`, for j below `count`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) row: usize,
    pub(super) count: usize,
    pub(super) to: usize,
    pub(super) to_step: usize,
    pub(super) from: usize,
    pub(super) from_step: usize,
}

impl Geometry {
    /// The geometry of the gradient of the input.
    pub(super) fn back(self) -> Self {
        Self { output: self.input, input: self.output, window: self.window, transposed: !self.transposed }
    }

    /// Products of two numbers that one image takes, for each pair of channels.
    pub(super) fn products(&self) -> usize {
        let all = |row: usize, place: usize| self.run(row, place, &(0..self.output[1])).map_or(0, |run| run.count);
        (0..self.output[0]).flat_map(|row| (0..self.taps()).map(move |place| all(row, place))).sum()
    }

    pub(super) fn taps(&self) -> usize {
        self.window.kernel * self.window.kernel
    }

    /// What the outputs of a row in `columns` see through a place of the window.
    pub(super) fn run(&self, row: usize, place: usize, columns: &Range<usize>) -> Option<Run> {
        let Window { kernel, stride, padding } = self.window;
        let (down, across) = (place / kernel, place % kernel);
        if self.transposed {
            // output = input x stride + place - padding
            let seen = (row + padding).checked_sub(down)?;
            if seen % stride != 0 || seen / stride >= self.input[0] {
                return None;
            }
            let first = (columns.start + padding).saturating_sub(across).div_ceil(stride);
            let end = (columns.end + padding).saturating_sub(across).div_ceil(stride).min(self.input[1]);
            let count = end.checked_sub(first).filter(|&count| count > 0)?;
            let to = first * stride + across - padding;
            Some(Run { row: seen / stride, count, to, to_step: stride, from: first, from_step: 1 })
        } else {
            let seen = (row * stride + down).checked_sub(padding).filter(|&seen| seen < self.input[0])?;
            let first = columns.start.max(padding.saturating_sub(across).div_ceil(stride));
            let end = columns.end.min((self.input[1] + padding).saturating_sub(across).div_ceil(stride));
            let count = end.checked_sub(first).filter(|&count| count > 0)?;
            let from = first * stride + across - padding;
            Some(Run { row: seen, count, to: first, to_step: 1, from, from_step: stride })
        }
    }
}

/// A convolution, a transposed one or a linear layer.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    level: Level,
    geometry: Geometry,
    pub(super) weights: Weights,
    /// Winograd's algorithm for the outputs and for the gradient of the inputs, where it pays.
    forth: Option<Tiling>,
    back: Option<Tiling>,
    half: Bf16,
}

/// How factors come to be bf16, if they do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bf16 {
    /// They stay f32.
    No,
    /// Rounded, then as if they were f32.
    Rounded,
    /// In tile registers.
    #[cfg(target_arch = "x86_64")]
    Tiled,
}

impl Bf16 {
    fn of(level: Level, products: Products) -> Self {
        match (level, products) {
            (_, Products::Winograd | Products::Direct) => Bf16::No,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Products::Bf16) if tiles::available() => Bf16::Tiled,
            (_, Products::Bf16) => Bf16::Rounded,
        }
    }
}

/// Numbers in f32: as they are, or of another kind.
enum Factor<'a> {
    Same(&'a [f32]),
    Made(Buffer),
}

impl Deref for Factor<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Factor::Same(x) => x,
            Factor::Made(x) => x,
        }
    }
}

impl Conv {
    /// That of a step, if it is one.
    pub(super) fn of(program: &Program, step: &Step, level: Level) -> Option<Self> {
        let Work::Conv { window, transposed, .. } = step.work else { return None };
        let [[inputs, height, width], [outputs, out_height, out_width]] =
            [step.from, step.to].map(|value| program.shapes[value]);
        let taps = window.kernel * window.kernel;
        let (input_step, output_step) = if transposed { (outputs * taps, taps) } else { (taps, inputs * taps) };
        let geometry = Geometry { output: [out_height, out_width], input: [height, width], window, transposed };
        let weights = Weights { inputs, outputs, input_step, output_step, taps };
        Some(Self::new(level, geometry, weights, program.products))
    }

    pub(super) fn new(level: Level, geometry: Geometry, weights: Weights, products: Products) -> Self {
        let winograd = products == Products::Winograd;
        let tiling = |geometry: Geometry, weights| Tiling::of(level, &geometry, weights).filter(|_| winograd);
        let (forth, back) = (tiling(geometry, weights), tiling(geometry.back(), weights.back()));
        Self { level, geometry, weights, forth, back, half: Bf16::of(level, products) }
    }

    #[cfg(test)]
    pub(super) fn is_winograd(&self) -> bool {
        self.forth.is_some() || self.back.is_some()
    }

    /// Of single pixels.
    fn is_linear(&self) -> bool {
        let Geometry { output, input, .. } = self.geometry;
        (output, input, self.weights.taps) == ([1, 1], [1, 1], 1)
    }

    /// Few input channels: the places of a window are gathered into one long row first.
    fn gathers(&self) -> bool {
        self.weights.inputs < 8 && self.weights.taps > 1 && !self.geometry.transposed
    }

    fn factor<'a>(&self, x: &'a Value, pool: &Arc<Pool>) -> Factor<'a> {
        match (x, self.half) {
            (Value::Full(x), Bf16::No) => Factor::Same(x),
            (Value::Full(x), _) => Factor::Made(rounded(x, pool)),
            (Value::Half(x), _) => Factor::Made(widened(x, pool)),
        }
    }

    fn packed(&self, weights: Weights, tiling: Option<Tiling>, theta: &[f32], pool: &Arc<Pool>) -> Packed {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            let Weights { inputs, outputs, taps, .. } = weights;
            return Packed { data: tiled::right(weights, theta, pool), inputs, outputs, taps, tiling: None };
        }
        let theta = if self.half == Bf16::No { Factor::Same(theta) } else { Factor::Made(rounded(theta, pool)) };
        pack(self.level, weights, tiling, &theta, pool)
    }

    /// Weights for `forward`.
    pub(super) fn pack(&self, weights: &[f32], pool: &Arc<Pool>) -> Packed {
        self.packed(self.weights, self.forth, weights, pool)
    }

    /// Weights for `backward`.
    pub(super) fn pack_back(&self, weights: &[f32], pool: &Arc<Pool>) -> Packed {
        self.packed(self.weights.back(), self.back, weights, pool)
    }

    /// `output` = x * weights + bias. x: input height x width x batch x inputs.
    pub(super) fn forward(
        &self,
        batch: usize,
        x: &Value,
        weights: &Packed,
        bias: Option<&[f32]>,
        pool: &Arc<Pool>,
        output: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            return tiled::product(&self.geometry, batch, x, weights, &End::Bias(bias), pool, output);
        }
        let x = &self.factor(x, pool);
        full(output, false, pool, |output| self.direct(batch, x, weights, (bias, None), output));
    }

    fn direct(
        &self,
        batch: usize,
        x: &[f32],
        weights: &Packed,
        (bias, fold): (Option<&[f32]>, Option<Fold>),
        output: &mut [f32],
    ) {
        if self.gathers() {
            self.gathered(batch, x, weights, (bias, fold), output);
        } else {
            product(self.level, &self.geometry, batch, x, weights, (&Start::Bias(bias), fold), output);
        }
    }

    /// Whether `folded` is there: sums are not rounded before they are normalised.
    pub(super) fn folds(&self) -> bool {
        self.half == Bf16::No || self.is_tiled()
    }

    fn is_tiled(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.half == Bf16::Tiled;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// `forward` of a convolution without bias, with the batch norm that follows it; only where it `folds`.
    pub(super) fn folded(
        &self,
        batch: usize,
        x: &Value,
        weights: &Packed,
        fold: Fold,
        pool: &Arc<Pool>,
        output: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            return tiled::product(&self.geometry, batch, x, weights, &End::Fold(fold), pool, output);
        }
        let x = &self.factor(x, pool);
        full(output, false, pool, |output| self.direct(batch, x, weights, (None, Some(fold)), output));
    }

    /// `gradient` (of the input) = or += that of the output * weights transposed.
    pub(super) fn backward(
        &self,
        batch: usize,
        above: &Value,
        weights: &Packed,
        add: bool,
        pool: &Arc<Pool>,
        gradient: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            let end = if add { End::Add } else { End::Bias(None) };
            return tiled::product(&self.geometry.back(), batch, above, weights, &end, pool, gradient);
        }
        let start = if add { Start::Keep } else { Start::Bias(None) };
        let above = self.factor(above, pool);
        full(gradient, add, pool, |gradient| {
            product(self.level, &self.geometry.back(), batch, &above, weights, (&start, None), gradient);
        });
    }

    fn gathered(
        &self,
        batch: usize,
        x: &[f32],
        weights: &Packed,
        (bias, fold): (Option<&[f32]>, Option<Fold>),
        output: &mut [f32],
    ) {
        let Weights { inputs, outputs, taps, .. } = self.weights;
        let [height, width] = self.geometry.output;
        let long = inputs * taps;
        let across = CHUNK.div_ceil(batch).min(width);
        let chunks = width.div_ceil(across);
        let shared = Shared::new(output);
        // one row of windows as a 1 x 1 convolution
        let seen = Packed::view(weights);
        each(height * chunks, height * width * batch * long * outputs, |task| {
            let (row, start) = (task / chunks, task % chunks * across);
            let columns = start..(start + across).min(width);
            let count = columns.len();
            let mut rows = vec![0.0; count * batch * long];
            self.gather(batch, x, row, &columns, &mut rows);
            let geometry =
                Geometry { output: [1, count], input: [1, count], window: Window::new(1, 1, 0), transposed: false };
            let home = (row * width + columns.start) * batch;
            // SAFETY: each task has its own row and columns of the output.
            let part = unsafe { shared.part(home * outputs, count * batch * outputs) };
            let job = Job { level: self.level, geometry: &geometry, batch, a: &rows, weights: seen };
            job.run(0, &(0..count), &panels(self.level, outputs), &Start::Bias(bias), &Shared::new(part));
            if let Some(fold) = fold {
                fold.end(home..home + count * batch, 0..outputs, &shared);
            }
        });
    }

    /// The windows of some outputs of a row, each a row of place x input channel.
    fn gather(&self, batch: usize, x: &[f32], row: usize, columns: &Range<usize>, rows: &mut [f32]) {
        let Weights { inputs, taps, .. } = self.weights;
        let width = self.geometry.input[1];
        let long = inputs * taps;
        rows.fill(0.0);
        for place in 0..taps {
            let Some(run) = self.geometry.run(row, place, columns) else { continue };
            for j in 0..run.count {
                let to = (run.to + j * run.to_step - columns.start) * batch * long + place * inputs;
                let from = (run.row * width + run.from + j * run.from_step) * batch * inputs;
                for b in 0..batch {
                    rows[to + b * long..][..inputs].copy_from_slice(&x[from + b * inputs..][..inputs]);
                }
            }
        }
    }

    /// Writes the gradient of the weights into theta's layout. `above`: gradient of the output.
    pub(super) fn gradient(&self, batch: usize, x: &Value, above: &Value, pool: &Arc<Pool>, gradient: &mut [f32]) {
        let Weights { inputs, outputs, input_step, .. } = self.weights;
        if self.is_linear() {
            // the factors in the order in which theta has them
            let outputs_first = input_step == 1;
            let (factors, channels) =
                if outputs_first { ([above, x], [outputs, inputs]) } else { ([x, above], [inputs, outputs]) };
            return self.outer(batch, factors, channels, pool, gradient);
        }
        if !self.is_tiled()
            && let Some(tiling) = self.forth.filter(|_| !self.geometry.transposed)
        {
            return tiling.gradient(batch, &self.factor(x, pool), &self.factor(above, pool), pool, gradient);
        }
        let mut sums = pool.lend(gradient.len());
        self.outer(batch, [x, above], [inputs, outputs], pool, &mut sums);
        unpack(&sums, self.weights, gradient);
    }

    fn outer(&self, batch: usize, [x, above]: [&Value; 2], channels: [usize; 2], pool: &Arc<Pool>, sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            return tiled::gradient(&self.geometry, batch, x, above, channels, pool, sums);
        }
        let (x, above) = (&*self.factor(x, pool), &*self.factor(above, pool));
        if self.gathers() {
            let ([inputs, outputs], taps) = (channels, self.weights.taps);
            let [height, width] = self.geometry.output;
            let long = inputs * taps;
            let mut rows = pool.lend(height * width * batch * long);
            let (shared, line) = (Shared::new(&mut rows), width * batch * long);
            each(height, height * line, |row| {
                // SAFETY: each task has its own row.
                self.gather(batch, x, row, &(0..width), unsafe { shared.part(row * line, line) });
            });
            let geometry = Geometry {
                output: [height, width],
                input: [height, width],
                window: Window::new(1, 1, 0),
                transposed: false,
            };
            outer(self.level, &geometry, batch, [&rows, above], [long, outputs], pool, sums);
        } else {
            outer(self.level, &self.geometry, batch, [x, above], channels, pool, sums);
        }
    }
}

/// Lets `act` write what is stored otherwise in f32, or change it where it `reads` what is there.
fn full(value: &mut Value, reads: bool, pool: &Arc<Pool>, act: impl FnOnce(&mut [f32])) {
    match value {
        Value::Full(value) => act(value),
        Value::Half(value) => {
            let mut wide = if reads { widened(value, pool) } else { pool.lend(value.len()) };
            act(&mut wide);
            convert_all::<f32, Half>(&wide, value);
        }
    }
}

/// In f32, each the nearest bf16.
fn rounded(x: &[f32], pool: &Arc<Pool>) -> Buffer {
    let mut half = Halves::new(pool, x.len());
    convert_all::<f32, Half>(x, &mut half);
    widened(&half, pool)
}

fn widened(x: &[Half], pool: &Arc<Pool>) -> Buffer {
    let mut wide = pool.lend(x.len());
    convert_all::<Half, f32>(x, &mut wide);
    wide
}

/// Batch norm by running statistics, which ends a convolution: of a sum s it makes after(s scale + shift + residual).
#[derive(Clone, Copy)]
pub(super) struct Fold<'a> {
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    /// Of the output's kind.
    pub(super) residual: Option<&'a Value>,
    pub(super) after: After,
}

impl Fold<'_> {
    /// Ends some channels of some rows of f32 sums, which nobody else touches meanwhile.
    pub(super) fn end(&self, rows: Range<usize>, channels: Range<usize>, output: &Shared) {
        let residual = self.residual.map(|residual| f32::of(Some(residual)));
        for row in rows {
            let place = row * self.scale.len() + channels.start;
            // SAFETY: the caller's promise.
            let sums = unsafe { output.part(place, channels.len()) };
            let residual = residual.map(|residual| &residual[place..place + channels.len()]);
            norm::end(sums, &self.scale[channels.clone()], &self.shift[channels.clone()], residual, self.after);
        }
    }
}

/// What an output holds before products are added.
pub(super) enum Start<'a> {
    /// The bias, or 0.
    Bias(Option<&'a [f32]>),
    /// What is there.
    Keep,
}

/// output = start + sum over places of seen inputs x weights, and its end, if there is one.
fn product(
    level: Level,
    geometry: &Geometry,
    batch: usize,
    a: &[f32],
    weights: &Packed,
    (start, fold): (&Start, Option<Fold>),
    output: &mut [f32],
) {
    let view = View { data: &weights.data, inputs: weights.inputs, outputs: weights.outputs, taps: weights.taps };
    if let Some(tiling) = weights.tiling {
        return tiling.product(batch, a, &weights.data, (start, fold), output);
    }
    let [height, width] = geometry.output;
    // what the raw places of the tiles rest on
    assert_eq!(output.len(), height * width * batch * view.outputs, "an output has its geometry's size");
    let across = CHUNK.div_ceil(batch).min(width);
    let chunks = width.div_ceil(across);
    let panels = panels(level, view.outputs);
    // few rows: share out the channels too, so that each task reads only some of the weights
    let groups = TASKS.div_ceil(height * chunks).min(panels.len());
    let group = panels.len().div_ceil(groups);
    let groups = panels.len().div_ceil(group);
    let shared = Shared::new(output);
    let job = Job { level, geometry, batch, a, weights: view };
    let work = height * width * batch * view.outputs * view.inputs * view.taps;
    let work = if geometry.transposed { work / geometry.window.stride.pow(2) } else { work };
    each(height * chunks * groups, work, |task| {
        let (place, mine) = (task / groups, task % groups);
        let (row, column) = (place / chunks, place % chunks * across);
        let columns = column..(column + across).min(width);
        let mine = &panels[mine * group..((mine + 1) * group).min(panels.len())];
        // each task has its own row, columns and channels of the output
        job.run(row, &columns, mine, start, &shared);
        if let Some(fold) = fold {
            let home = row * width * batch;
            fold.end(home + columns.start * batch..home + columns.end * batch, channels(mine), &shared);
        }
    });
}

#[derive(Clone, Copy)]
struct Job<'a> {
    level: Level,
    geometry: &'a Geometry,
    batch: usize,
    a: &'a [f32],
    weights: View<'a>,
}

impl Job<'_> {
    /// `run` for 1 x 1 windows: one product of whole rows, written once.
    fn rows(&self, row: usize, columns: &Range<usize>, mine: &[Panel], keep: bool, output: &Shared) {
        let Job { level, geometry, batch, a, weights } = *self;
        let first = (row * geometry.output[1] + columns.start) * batch;
        let rows = columns.len() * batch;
        let a = &a[first * weights.inputs..][..rows * weights.inputs];
        for panel in mine {
            let wide = panel.vectors * level.lanes();
            let packed = &weights.data[panel.start * weights.inputs..];
            for block in (0..weights.inputs).step_by(DEPTH) {
                let deep = DEPTH.min(weights.inputs - block);
                let b = &packed[block * wide..][..deep * wide];
                for (index, kernel) in strips(rows, level.block(panel.vectors)) {
                    let a = Strided(a[index * weights.inputs + block..].as_ptr(), weights.inputs);
                    let c = output.at((first + index) * weights.outputs + panel.start);
                    // SAFETY: `strips` stays below `rows`; each row of `a` has `deep` elements from `block` on, `b` as many
                    // of `wide`; the panel's channels of these rows of the output are this task's own.
                    unsafe { kernel(deep, a, b.as_ptr(), (c, weights.outputs), block == 0 && !keep) };
                }
            }
        }
    }

    /// Some columns and channels of one row of outputs, which nobody else touches meanwhile.
    fn run(&self, row: usize, columns: &Range<usize>, mine: &[Panel], start: &Start, output: &Shared) {
        let Job { level, geometry, batch, a, weights } = *self;
        let width = geometry.output[1];
        let whole = mine.iter().all(|panel| panel.last == level.lanes());
        if geometry.window == Window::new(1, 1, 0) && whole && !matches!(start, Start::Bias(Some(_))) {
            return self.rows(row, columns, mine, matches!(start, Start::Keep), output);
        }
        if let Start::Bias(bias) = start {
            let channels = channels(mine);
            for index in 0..columns.len() * batch {
                let place = ((row * width + columns.start) * batch + index) * weights.outputs;
                // SAFETY: this task's own row, columns and channels.
                let part = unsafe { output.part(place + channels.start, channels.len()) };
                match bias {
                    Some(bias) => part.copy_from_slice(&bias[channels.clone()]),
                    None => part.fill(0.0),
                }
            }
        }
        for panel in mine {
            let wide = panel.vectors * level.lanes();
            let tile = level.tile(panel.vectors);
            let packed = &weights.data[panel.start * weights.inputs * weights.taps..];
            for place in 0..weights.taps {
                let Some(run) = geometry.run(row, place, columns) else { continue };
                let to = (row * width + run.to) * batch;
                let from = (run.row * geometry.input[1] + run.from) * batch;
                // rows of the run, counted through columns and batch
                let row_of = |base: usize, step: usize, index: usize| {
                    if step == 1 { base + index } else { base + index / batch * step * batch + index % batch }
                };
                let rows = run.count * batch;
                for block in (0..weights.inputs).step_by(DEPTH) {
                    let deep = DEPTH.min(weights.inputs - block);
                    let b = &packed[(place * weights.inputs + block) * wide..][..deep * wide];
                    for index in (0..rows).step_by(ROWS) {
                        let mut spill = [0.0_f32; 64];
                        let mut sources = [a.as_ptr(); ROWS];
                        let mut targets = [spill.as_mut_ptr(); ROWS];
                        for r in 0..ROWS {
                            // past the end: compute the last row again and throw it away
                            let live = (index + r).min(rows - 1);
                            let source = row_of(from, run.from_step, live) * weights.inputs + block;
                            sources[r] = a[source..source + deep].as_ptr();
                            if index + r < rows {
                                let target = row_of(to, run.to_step, live) * weights.outputs + panel.start;
                                targets[r] = output.at(target);
                            }
                        }
                        // SAFETY: sources were sliced to `deep` elements and `b` to as many packed rows; targets are
                        // this task's own places in the output, or `spill`, which a panel never exceeds.
                        unsafe { tile(deep, &sources, b.as_ptr(), &targets, panel.last) };
                    }
                }
            }
        }
    }
}
