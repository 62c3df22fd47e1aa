//! The sums of a convolution, directly: for each place of the window a plain product of matrices, and what ends them.
//! Share of the bound (docs/kernels.md): 0.92 forward, 0.98 back; about half of that with 3 or 16 channels, whose sums are short.

use std::ops::Range;

use super::buffer::scratch;
use super::geometry::Geometry;
use super::norm;
use super::number::{Number, Value, convert};
use super::parallel::{Shared, each};
use super::simd::{Level, ROWS, Strided};
use super::weights::{Panel, View, channels, panels, strips};
use crate::kernels::Window;
use crate::kernels::steps::After;

/// Rows of outputs that one task makes, about.
pub(super) const CHUNK: usize = 256;
/// Tasks that are enough for many cores.
pub(super) const TASKS: usize = 32;
/// Input channels summed in registers before they go to memory: with a panel of outputs, half of a first-level cache.
/// The same at all levels, or their bits would differ.
pub(super) const DEPTH: usize = 128;

/// Batch norm by running statistics, which ends a convolution: of a sum s it makes after(s scale + shift + residual).
#[derive(Clone, Copy)]
pub(super) struct Fold<'a> {
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    pub(super) residual: Option<&'a Value>,
    pub(super) after: After,
}

impl Fold<'_> {
    /// Ends some channels of some rows of f32 sums, which nobody else touches meanwhile.
    pub(super) fn end(&self, rows: Range<usize>, channels: Range<usize>, output: &Shared) {
        for row in rows {
            let place = row * self.scale.len() + channels.start;
            // SAFETY: the caller's promise.
            self.row(row, &channels, unsafe { output.part(place, channels.len()) });
        }
    }

    /// Ends the sums of some channels of a row.
    fn row(&self, row: usize, channels: &Range<usize>, sums: &mut [f32]) {
        let (scale, shift) = (&self.scale[channels.clone()], &self.shift[channels.clone()]);
        let first = row * self.scale.len();
        let mine = first + channels.start..first + channels.end;
        match self.residual {
            Some(Value::Full(residual)) => norm::end(sums, scale, shift, Some(&residual[mine]), self.after),
            Some(Value::Half(residual)) => norm::end(sums, scale, shift, Some(&residual[mine]), self.after),
            None => norm::end::<f32>(sums, scale, shift, None, self.after),
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
pub(super) fn product(
    level: Level,
    geometry: &Geometry,
    batch: usize,
    a: &[f32],
    view: View,
    (start, fold): (&Start, Option<Fold>),
    output: &mut [f32],
) {
    let [height, width] = geometry.output;
    // what the raw places of the tiles rest on
    assert_eq!(output.len(), height * width * batch * view.outputs, "an output has its geometry's size");
    let (across, chunks) = cut(width, batch);
    let panels = panels(level, view.outputs);
    let groups = groups(&panels, height * chunks);
    let shared = Shared::new(output);
    let job = Job { level, geometry, batch, a, weights: view };
    let work = height * width * batch * view.outputs * view.inputs * view.taps;
    let work = if geometry.transposed { work / geometry.window.stride.pow(2) } else { work };
    each(height * chunks * groups.len(), work, |task| {
        let (place, mine) = (task / groups.len(), groups[task % groups.len()]);
        let (row, column) = (place / chunks, place % chunks * across);
        let columns = column..(column + across).min(width);
        // each task has its own row, columns and channels of the output
        job.run(row, &columns, mine, start, &shared);
        if let Some(fold) = fold {
            let home = row * width * batch;
            fold.end(home + columns.start * batch..home + columns.end * batch, channels(mine), &shared);
        }
    });
}

/// All panels in one, or, where there are few tasks, in so many groups that there are enough: each then reads only some of the weights.
pub(super) fn groups(panels: &[Panel], tasks: usize) -> Vec<&[Panel]> {
    let groups = TASKS.div_ceil(tasks.max(1)).min(panels.len());
    panels.chunks(panels.len().div_ceil(groups)).collect()
}

/// `product` of single pixels between values that are stored otherwise: a task widens the rows that it reads and rounds those that it
/// makes while they lie in a cache.
pub(super) fn narrow<N: Number, M: Number>(
    level: Level,
    a: &[N],
    view: View,
    (start, fold): (&Start, Option<Fold>),
    output: &mut [M],
) {
    let View { inputs, outputs, .. } = view;
    let total = a.len() / inputs;
    assert_eq!((a.len(), output.len()), (total * inputs, total * outputs), "rows of their layer's size");
    let panels = panels(level, outputs);
    let chunks = total.div_ceil(CHUNK);
    let groups = groups(&panels, chunks);
    let shared = Shared::new(output);
    each(chunks * groups.len(), total * inputs * outputs, |task| {
        let (first, mine) = (task / groups.len() * CHUNK, groups[task % groups.len()]);
        let rows = CHUNK.min(total - first);
        let channels = channels(mine);
        scratch(rows * (inputs + outputs), |space| {
            let (seen, sums) = space.split_at_mut(rows * inputs);
            convert(&a[first * inputs..][..rows * inputs], seen);
            // SAFETY: each task has its own rows and channels of the output.
            let part = |row: usize| unsafe { shared.part((first + row) * outputs + channels.start, channels.len()) };
            let sums_of = |row: usize| row * outputs + channels.start..row * outputs + channels.end;
            if matches!(start, Start::Keep) {
                (0..rows).for_each(|row| convert(part(row), &mut sums[sums_of(row)]));
            }
            let window = Window::new(1, 1, 0);
            let geometry = Geometry { output: [1, rows], input: [1, rows], window, transposed: false };
            let job = Job { level, geometry: &geometry, batch: 1, a: seen, weights: view };
            job.run(0, &(0..rows), mine, start, &Shared::new(sums));
            for row in 0..rows {
                let sums = &mut sums[sums_of(row)];
                if let Some(fold) = fold {
                    fold.row(first + row, &channels, sums);
                }
                convert(sums, part(row));
            }
        });
    });
}

#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) level: Level,
    pub(super) geometry: &'a Geometry,
    pub(super) batch: usize,
    pub(super) a: &'a [f32],
    pub(super) weights: View<'a>,
}

/// How many neighbouring columns of a row a task makes, and in how many parts the row goes.
pub(super) fn cut(width: usize, batch: usize) -> (usize, usize) {
    let across = CHUNK.div_ceil(batch).min(width);
    (across, width.div_ceil(across))
}

impl Job<'_> {
    /// `run` for 1 x 1 windows: one product of whole rows, written once, or added to what is there.
    fn rows(&self, row: usize, columns: &Range<usize>, mine: &[Panel], keep: bool, output: &Shared) {
        let Job { level, geometry, batch, a, weights } = *self;
        let first = (row * geometry.output[1] + columns.start) * batch;
        let rows = columns.len() * batch;
        let a = &a[first * weights.inputs..][..rows * weights.inputs];
        scratch(weights.room(DEPTH.min(weights.inputs), level.panel()), |room| {
            for panel in mine {
                let wide = panel.vectors * level.lanes();
                for block in (0..weights.inputs).step_by(DEPTH) {
                    let deep = DEPTH.min(weights.inputs - block);
                    let b = weights.block((*panel, wide), 0, block..block + deep, room);
                    for (index, kernel) in strips(rows, level.block(panel.vectors)) {
                        let a = Strided(a[index * weights.inputs + block..].as_ptr(), weights.inputs);
                        let c = output.at((first + index) * weights.outputs + panel.start);
                        // SAFETY: `strips` stays below `rows`; each row of `a` has `deep` elements from `block` on, `b` as
                        // many of `wide`; the panel's channels of these rows of the output are this task's own.
                        unsafe { kernel(deep, a, b.as_ptr(), (c, weights.outputs), block == 0 && !keep) };
                    }
                }
            }
        });
    }

    /// Some columns and channels of one row of outputs, which nobody else touches meanwhile.
    pub(super) fn run(&self, row: usize, columns: &Range<usize>, mine: &[Panel], start: &Start, output: &Shared) {
        let Job { level, geometry, batch, a, weights } = *self;
        let width = geometry.output[1];
        let whole = mine.iter().all(|panel| panel.last == level.lanes());
        let by_pixel = geometry.by_pixel() && whole;
        if by_pixel && !matches!(start, Start::Bias(Some(_))) {
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
        if by_pixel {
            return self.rows(row, columns, mine, true, output);
        }
        for panel in mine {
            let wide = panel.vectors * level.lanes();
            let tile = level.tile(panel.vectors);
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
                    let b = weights.block((*panel, wide), place, block..block + deep, &mut []);
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
