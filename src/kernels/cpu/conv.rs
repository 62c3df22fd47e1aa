//! Convolution without im2col. Values lie as height x width x batch x channels, so for one row of outputs and one place
//! of the window, inputs and outputs are both runs of whole (batch x channels) matrices, and a convolution is a sum of
//! plain matrix products over the places that fall inside the image. Padding costs nothing. Transposed convolution and
//! the gradient of the input are the same loops with the other geometry; linear layers are 1 x 1 windows.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Buffer, Pool, scratch};
use super::parallel::{Shared, each};
use super::pointwise::add;
use super::simd::{Level, ROWS, Strided};
use super::winograd::Tiling;
use crate::kernels::Window;

/// Rows of outputs that one task makes, about.
const CHUNK: usize = 256;
/// Tasks that are enough for many cores.
pub(super) const TASKS: usize = 32;
/// Input channels summed in registers before they go to memory: with a panel of outputs, half of a first-level cache.
/// The same at all levels, or their bits would differ.
pub(super) const DEPTH: usize = 128;
/// Input channels that one task of the gradient of weights takes.
const SLICE: usize = 64;
/// Rows summed in registers by the gradient of weights before they go to memory.
const SUM: usize = 128;

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
struct Run {
    row: usize,
    count: usize,
    to: usize,
    to_step: usize,
    from: usize,
    from_step: usize,
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

    fn taps(&self) -> usize {
        self.window.kernel * self.window.kernel
    }

    /// What the outputs of a row in `columns` see through a place of the window.
    fn run(&self, row: usize, place: usize, columns: &Range<usize>) -> Option<Run> {
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

/// Where weight (place, input channel, output channel) lies in theta: `place + input x .. + output x ..`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) input_step: usize,
    pub(super) output_step: usize,
    pub(super) taps: usize,
}

impl Weights {
    /// As the gradient of the input sees them.
    fn back(self) -> Self {
        Self {
            inputs: self.outputs,
            outputs: self.inputs,
            input_step: self.output_step,
            output_step: self.input_step,
            taps: self.taps,
        }
    }
}

/// Some output channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) start: usize,
    pub(super) width: usize,
    pub(super) vectors: usize,
    /// Live lanes of the last vector.
    pub(super) last: usize,
}

/// `count` rows in strips of six, four and one, as few of one as can be.
pub(super) fn strips<K: Copy>(count: usize, [six, four, one]: [(usize, K); 3]) -> impl Iterator<Item = (usize, K)> {
    let sixes = (0..=count / 6).rev().take(2).find(|sixes| (count - 6 * sixes).is_multiple_of(4)).unwrap_or(count / 6);
    let fours = (count - 6 * sixes) / 4;
    let ones = count - 6 * sixes - 4 * fours;
    let kernels = [(six, sixes), (four, fours), (one, ones)];
    let mut start = 0;
    kernels.into_iter().flat_map(|(kernel, times)| std::iter::repeat_n(kernel, times)).map(move |(step, kernel)| {
        start += step;
        (start - step, kernel)
    })
}

pub(super) fn panels(level: Level, outputs: usize) -> Vec<Panel> {
    (0..outputs)
        .step_by(level.panel())
        .map(|start| {
            let width = (outputs - start).min(level.panel());
            let vectors = width.div_ceil(level.lanes());
            Panel { start, width, vectors, last: width - (vectors - 1) * level.lanes() }
        })
        .collect()
}

/// Weights in the order the inner loop reads them: panel, place, input channel, output channel, zeros at the end; or as
/// Winograd's algorithm reads them.
#[derive(Debug)]
pub struct Packed {
    data: Buffer,
    inputs: usize,
    outputs: usize,
    taps: usize,
    tiling: Option<Tiling>,
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
}

impl Conv {
    /// `direct`: never by Winograd's algorithm.
    pub(super) fn new(level: Level, geometry: Geometry, weights: Weights, direct: bool) -> Self {
        let tiling = |geometry: Geometry, weights| Tiling::of(level, &geometry, weights).filter(|_| !direct);
        let (forth, back) = (tiling(geometry, weights), tiling(geometry.back(), weights.back()));
        Self { level, geometry, weights, forth, back }
    }

    #[cfg(test)]
    pub(super) fn is_winograd(&self) -> bool {
        self.forth.is_some() || self.back.is_some()
    }

    /// Few input channels: the places of a window are gathered into one long row first.
    fn gathers(&self) -> bool {
        self.weights.inputs < 8 && self.weights.taps > 1 && !self.geometry.transposed
    }

    /// Weights for `forward`.
    pub(super) fn pack(&self, weights: &[f32], pool: &Arc<Pool>) -> Packed {
        pack(self.level, self.weights, self.forth, weights, pool)
    }

    /// Weights for `backward`.
    pub(super) fn pack_back(&self, weights: &[f32], pool: &Arc<Pool>) -> Packed {
        pack(self.level, self.weights.back(), self.back, weights, pool)
    }

    /// `output` = x * weights + bias. x: input height x width x batch x inputs.
    pub(super) fn forward(&self, batch: usize, x: &[f32], weights: &Packed, bias: Option<&[f32]>, output: &mut [f32]) {
        if self.gathers() {
            self.gathered(batch, x, weights, bias, output);
        } else {
            product(self.level, &self.geometry, batch, x, weights, &Start::Bias(bias), output);
        }
    }

    /// `gradient` (of the input) = or += that of the output * weights transposed.
    pub(super) fn backward(&self, batch: usize, above: &[f32], weights: &Packed, add: bool, gradient: &mut [f32]) {
        let start = if add { Start::Keep } else { Start::Bias(None) };
        product(self.level, &self.geometry.back(), batch, above, weights, &start, gradient);
    }

    fn gathered(&self, batch: usize, x: &[f32], weights: &Packed, bias: Option<&[f32]>, output: &mut [f32]) {
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
            // SAFETY: each task has its own row and columns of the output.
            let part = unsafe { shared.part((row * width + columns.start) * batch * outputs, count * batch * outputs) };
            let job = Job { level: self.level, geometry: &geometry, batch, a: &rows, weights: seen };
            job.run(0, &(0..count), &panels(self.level, outputs), &Start::Bias(bias), &Shared::new(part));
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
    pub(super) fn gradient(&self, batch: usize, x: &[f32], above: &[f32], pool: &Arc<Pool>, gradient: &mut [f32]) {
        let Weights { inputs, outputs, taps, .. } = self.weights;
        if let Some(tiling) = self.forth.filter(|_| !self.geometry.transposed) {
            return tiling.gradient(batch, x, above, pool, gradient);
        }
        let sums = if self.gathers() {
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
            outer(self.level, &geometry, batch, &rows, above, [long, outputs], pool)
        } else {
            outer(self.level, &self.geometry, batch, x, above, [inputs, outputs], pool)
        };
        unpack(&sums[..taps * inputs * outputs], self.weights, gradient);
    }
}

impl Packed {
    /// Places and input channels as one.
    fn view(&self) -> View<'_> {
        View { data: &self.data, inputs: self.inputs * self.taps, outputs: self.outputs, taps: 1 }
    }
}

/// Packed weights, seen as so many places.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    inputs: usize,
    outputs: usize,
    taps: usize,
}

/// Channels of a block: all places of 16 x 16 channels stay in a first-level cache while they are turned.
const BLOCK: usize = 16;

/// The weights of a block of channels by place: `block[(k taps + place) BLOCK + n]` for input k and output n of it.
fn gather(weights: Weights, theta: &[f32], inputs: &Range<usize>, outputs: &Range<usize>, block: &mut [f32]) {
    let Weights { input_step, output_step, taps, .. } = weights;
    if input_step == taps {
        // the windows of an output's inputs follow each other
        for (n, output) in outputs.clone().enumerate() {
            let run = &theta[inputs.start * taps + output * output_step..][..inputs.len() * taps];
            block.chunks_exact_mut(BLOCK).zip(run).for_each(|(row, value)| row[n] = *value);
        }
    } else {
        // those of an input's outputs do
        for (k, input) in inputs.clone().enumerate() {
            let run = &theta[input * input_step + outputs.start * taps..][..outputs.len() * taps];
            for (n, window) in run.chunks_exact(taps).enumerate() {
                let rows = block[k * taps * BLOCK..].chunks_exact_mut(BLOCK);
                rows.zip(window).for_each(|(row, value)| row[n] = *value);
            }
        }
    }
}

/// The other way round. Nobody else touches these channels of theta meanwhile.
fn scatter(weights: Weights, theta: &Shared, inputs: &Range<usize>, outputs: &Range<usize>, block: &[f32]) {
    let Weights { input_step, output_step, taps, .. } = weights;
    if input_step == taps {
        for (n, output) in outputs.clone().enumerate() {
            // SAFETY: these channels, by the caller's promise.
            let run = unsafe { theta.part(inputs.start * taps + output * output_step, inputs.len() * taps) };
            run.iter_mut().zip(block.chunks_exact(BLOCK)).for_each(|(value, row)| *value = row[n]);
        }
    } else {
        for (k, input) in inputs.clone().enumerate() {
            // SAFETY: as above.
            let run = unsafe { theta.part(input * input_step + outputs.start * taps, outputs.len() * taps) };
            for (n, window) in run.chunks_exact_mut(taps).enumerate() {
                let rows = block[k * taps * BLOCK..].chunks_exact(BLOCK);
                window.iter_mut().zip(rows).for_each(|(value, row)| *value = row[n]);
            }
        }
    }
}

fn pack(level: Level, weights: Weights, tiling: Option<Tiling>, theta: &[f32], pool: &Arc<Pool>) -> Packed {
    let Weights { inputs, outputs, taps, .. } = weights;
    if let Some(tiling) = tiling {
        return Packed { data: tiling.pack(theta, pool), inputs, outputs, taps, tiling: Some(tiling) };
    }
    let panels = panels(level, outputs);
    let rows = inputs * taps;
    let total: usize = panels.iter().map(|panel| panel.vectors * level.lanes() * rows).sum();
    let mut data = pool.lend(total);
    let shared = Shared::new(&mut data);
    let chunks = inputs.div_ceil(BLOCK);
    each(panels.len() * chunks, 4 * total, |task| {
        let (panel, first) = (panels[task / chunks], task % chunks * BLOCK);
        let wide = panel.vectors * level.lanes();
        let mine = first..(first + BLOCK).min(inputs);
        scratch(mine.len() * taps * BLOCK, |block| {
            for start in (0..wide).step_by(BLOCK) {
                let from = panel.start + start;
                let to = (from + BLOCK).min(panel.start + panel.width);
                if to < from + BLOCK {
                    block.fill(0.0);
                }
                gather(weights, theta, &mine, &(from..to.max(from)), block);
                for (row, values) in block.chunks_exact(BLOCK).enumerate() {
                    let (input, place) = (first + row / taps, row % taps);
                    // all panels before it are full
                    let at = panel.start * rows + (place * inputs + input) * wide + start;
                    let count = BLOCK.min(wide - start);
                    // SAFETY: each task has its own panel and input channels.
                    unsafe { shared.part(at, count) }.copy_from_slice(&values[..count]);
                }
            }
        });
    });
    Packed { data, inputs, outputs, taps, tiling: None }
}

/// From place x input x output to theta's layout.
fn unpack(sums: &[f32], weights: Weights, theta: &mut [f32]) {
    let Weights { inputs, outputs, taps, .. } = weights;
    assert_eq!(theta.len(), inputs * outputs * taps, "weights have their layer's size");
    let shared = Shared::new(theta);
    let chunks = inputs.div_ceil(BLOCK);
    each(outputs.div_ceil(BLOCK) * chunks, 4 * sums.len(), |task| {
        let (start, first) = (task / chunks * BLOCK, task % chunks * BLOCK);
        let (mine, to) = (first..(first + BLOCK).min(inputs), start..(start + BLOCK).min(outputs));
        scratch(mine.len() * taps * BLOCK, |block| {
            for (row, values) in block.chunks_exact_mut(BLOCK).enumerate() {
                let (input, place) = (first + row / taps, row % taps);
                let from = &sums[(place * inputs + input) * outputs..][to.clone()];
                values[..from.len()].copy_from_slice(from);
            }
            // each task has its own channels
            scatter(weights, &shared, &mine, &to, block);
        });
    });
}

/// What an output holds before products are added.
pub(super) enum Start<'a> {
    /// The bias, or 0.
    Bias(Option<&'a [f32]>),
    /// What is there.
    Keep,
}

/// output = start + sum over places of seen inputs x weights.
fn product(
    level: Level,
    geometry: &Geometry,
    batch: usize,
    a: &[f32],
    weights: &Packed,
    start: &Start,
    output: &mut [f32],
) {
    let view = View { data: &weights.data, inputs: weights.inputs, outputs: weights.outputs, taps: weights.taps };
    if let Some(tiling) = weights.tiling {
        return tiling.product(batch, a, &weights.data, start, output);
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
        if let (Start::Bias(bias), Some(first), Some(last)) = (start, mine.first(), mine.last()) {
            let channels = first.start..last.start + last.width;
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

/// sums[place][input][output] = sum over rows of x[seen row][input] * above[row][output]. Where there are few channels to
/// share out, rows of the image are shared out too: `sums` then holds several partial results, added up at the end in
/// their order. How many depends on the shapes alone, not on the level: bits depend on it.
fn outer(
    level: Level,
    geometry: &Geometry,
    batch: usize,
    x: &[f32],
    above: &[f32],
    [inputs, outputs]: [usize; 2],
    pool: &Arc<Pool>,
) -> Buffer {
    let taps = geometry.taps();
    let panels = panels(level, outputs);
    let slice = inputs.div_ceil(inputs.div_ceil(SLICE));
    let slices = inputs.div_ceil(slice);
    let [height, width] = geometry.output;
    let groups = TASKS.div_ceil(outputs.div_ceil(SLICE) * slices).min(height);
    let group = height.div_ceil(groups);
    let groups = height.div_ceil(group);
    let size = taps * inputs * outputs;
    let mut sums = pool.lend(groups * size);
    let shared = Shared::new(&mut sums);
    let seen = height * width / if geometry.transposed { geometry.window.stride.pow(2) } else { 1 };
    each(groups * panels.len() * slices, seen * batch * size, |task| {
        let (panel, rest) = (panels[task % panels.len()], task / panels.len());
        let (mine, rows) = (rest % slices * slice, rest / slices * group);
        let strip = Strip {
            level,
            geometry,
            batch,
            panel,
            channels: [inputs, outputs],
            mine: mine..(mine + slice).min(inputs),
            home: rest / slices * size,
        };
        strip.run(x, above, rows..(rows + group).min(height), &shared);
    });
    total(&mut sums, groups, size);
    sums
}

/// Adds the parts of a sum, each of that size, to the first, in their order.
pub(super) fn total(sums: &mut [f32], parts: usize, size: usize) {
    if parts < 2 {
        return;
    }
    let (first, others) = sums[..parts * size].split_at_mut(size);
    let shared = Shared::new(first);
    let chunk = size.div_ceil(TASKS);
    each(size.div_ceil(chunk), parts * size, |task| {
        let range = task * chunk..((task + 1) * chunk).min(size);
        // SAFETY: each task has its own part.
        let first = unsafe { shared.part(range.start, range.len()) };
        others.chunks_exact(size).for_each(|other| add(first, &other[range.clone()]));
    });
}

/// One task of the gradient of the weights: some rows of the image, some input and output channels.
struct Strip<'a> {
    level: Level,
    geometry: &'a Geometry,
    batch: usize,
    panel: Panel,
    /// Inputs, outputs.
    channels: [usize; 2],
    mine: Range<usize>,
    /// Where this task's sums begin.
    home: usize,
}

impl Strip<'_> {
    fn run(&self, x: &[f32], above: &[f32], rows: Range<usize>, sums: &Shared) {
        let Self { level, geometry, batch, panel, channels: [inputs, outputs], ref mine, home } = *self;
        let width = geometry.output[1];
        let wide = panel.vectors * level.lanes();
        let kernels = level.outer(panel.vectors);
        let home = |place: usize, input: usize| home + (place * inputs + input) * outputs + panel.start;
        for place in 0..geometry.taps() {
            for input in mine.clone() {
                // SAFETY: each task has its own partial sums, input and output channels.
                unsafe { sums.part(home(place, input), panel.width) }.fill(0.0);
            }
        }
        // blocks of some columns, or of some of the batch in one column, stay in a first-level cache
        let across = (SUM / batch).clamp(1, width);
        let deep = if across == 1 { SUM.min(batch) } else { batch };
        let mut packed = vec![0.0_f32; across * deep * wide];
        let columns = (0..width).step_by(across).map(|start| start..(start + across).min(width));
        let blocks: Vec<(Range<usize>, Range<usize>)> = columns
            .flat_map(|columns| {
                (0..batch).step_by(deep).map(move |start| (columns.clone(), start..(start + deep).min(batch)))
            })
            .collect();
        for (row, (columns, images)) in rows.flat_map(|row| blocks.iter().map(move |block| (row, block))) {
            let many = images.len();
            for (index, line) in packed.chunks_exact_mut(wide).take(columns.len() * many).enumerate() {
                let column = columns.start + index / many;
                let place = (row * width + column) * batch + images.start + index % many;
                line[..panel.width].copy_from_slice(&above[place * outputs + panel.start..][..panel.width]);
            }
            for place in 0..geometry.taps() {
                let Some(run) = geometry.run(row, place, columns) else { continue };
                let together = run.to_step == 1 && run.from_step == 1 && many == batch;
                let (parts, length) = if together { (1, run.count * many) } else { (run.count, many) };
                for j in 0..parts {
                    let to = (run.to + j * run.to_step - columns.start) * many;
                    let from = (run.row * geometry.input[1] + run.from + j * run.from_step) * batch + images.start;
                    let b = Strided(packed[to * wide..][..length * wide].as_ptr(), wide);
                    let seen = &x[from * inputs..][..length * inputs];
                    for (input, kernel) in strips(mine.len(), kernels) {
                        let input = mine.start + input;
                        let a = Strided(seen[input..].as_ptr(), inputs);
                        // SAFETY: `seen` has `length` rows of `inputs` elements, `b` as many of `wide`; the sums are this
                        // task's own.
                        unsafe { kernel(length, a, b, (sums.at(home(place, input)), outputs), panel.last) };
                    }
                }
            }
        }
    }
}
