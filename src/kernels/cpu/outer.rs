//! The gradient of weights, directly: outer products of inputs and gradients, summed over rows. Share of the bound
//! (docs/kernels.md): 0.78.

#![expect(clippy::inline_always, reason = "parts of loops that are compiled for several vector widths")]

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Pool, scratch};
use super::geometry::Geometry;
use super::number::Number;
use super::parallel::{Shared, each};
use super::pointwise::add;
use super::product::TASKS;
use super::simd::{Level, Strided};
use super::weights::{Panel, channels, panels, strips};
use crate::wide::wide;

/// Channels that one task takes, of inputs and of outputs.
const SLICE: usize = 64;
/// Rows summed in registers before they go to memory.
const SUM: usize = 128;

/// sums[place][input][output] = sum over rows of x[seen row][input] * above[row][output]. Where there are few channels to
/// share out, rows of the image are shared out too, into sums of their own that are added up at the end, in their order.
/// How many depends on the shapes alone, not on the level: bits depend on it.
pub(super) fn outer<N: Number>(
    level: Level,
    geometry: &Geometry,
    batch: usize,
    [x, above]: [&[N]; 2],
    [inputs, outputs]: [usize; 2],
    pool: &Arc<Pool>,
    sums: &mut [f32],
) {
    let taps = geometry.taps();
    let panels = panels(level, outputs);
    let [slice, strip] = cut(taps, [inputs, outputs]);
    let slices = inputs.div_ceil(slice);
    let [height, width] = geometry.output;
    let groups = TASKS.div_ceil(outputs.div_ceil(strip) * slices).min(height);
    let group = height.div_ceil(groups);
    let groups = height.div_ceil(group);
    let size = taps * inputs * outputs;
    assert_eq!(sums.len(), size, "sums of their layer's size");
    let seen = height * width / if geometry.transposed { geometry.window.stride.pow(2) } else { 1 };
    in_parts(groups, pool, sums, |shared| {
        let panels: Vec<&[Panel]> = panels.chunks(strip.div_ceil(level.panel())).collect();
        each(groups * panels.len() * slices, seen * batch * size, |task| {
            let (panels, rest) = (panels[task % panels.len()], task / panels.len());
            let (mine, rows) = (rest % slices * slice, rest / slices * group);
            let strip = Strip {
                level,
                geometry,
                batch,
                panels,
                channels: [inputs, outputs],
                mine: mine..(mine + slice).min(inputs),
                home: rest / slices * size,
            };
            strip.run(x, above, rows..(rows + group).min(height), shared);
        });
    });
}

/// Inputs and outputs that one task takes: what it reads stays in a cache until all its panels saw it. Of windows with one place
/// there are few sums, so it takes more, in rows as long as can be: pieces of rows come slowly out of memory.
fn cut(taps: usize, [inputs, outputs]: [usize; 2]) -> [usize; 2] {
    let many = if taps == 1 { 4 } else { 1 };
    let strip = (many * SLICE).min(outputs);
    let slice = if many > 1 { many * SLICE * SLICE / strip } else { SLICE };
    [inputs.div_ceil(inputs.div_ceil(slice)), strip]
}

#[inline(always)]
fn copy<N: Number>(from: &[N], to: &mut [f32]) {
    let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<16>(), from.as_chunks::<16>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.map(N::wide));
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = from.wide());
}

wide! {
    /// The first `width` numbers of rows that are `apart`, as lines of `wide`.
    fn gather<N: Number>(rows: &[N], apart: usize, width: usize, lines: &mut [f32], wide: usize) {
        for (line, row) in lines.chunks_exact_mut(wide).zip(rows.chunks(apart)) {
            copy(&row[..width], &mut line[..width]);
        }
    }
}

wide! {
    /// Rows of all panels' channels, `apart`, to those lines of each panel; panels are `size` floats.
    fn share_out<N: Number>(rows: &[N], apart: usize, panels: &[Panel], lanes: usize, packed: &mut [f32], size: usize, lines: &Range<usize>) {
        let start = channels(panels).start;
        for (line, row) in lines.clone().zip(rows.chunks(apart)) {
            for (panel, packed) in panels.iter().zip(packed.chunks_exact_mut(size)) {
                let to = &mut packed[line * panel.vectors * lanes..][..panel.width];
                copy(&row[panel.start - start..][..panel.width], to);
            }
        }
    }
}

/// Sums that are made in so many parts, one after the other in what `make` writes to, and added up in their order.
pub(super) fn in_parts(parts: usize, pool: &Arc<Pool>, sums: &mut [f32], make: impl FnOnce(&Shared)) {
    if parts < 2 {
        return make(&Shared::new(sums));
    }
    let size = sums.len();
    let mut all = pool.lend(parts * size);
    make(&Shared::new(&mut all));
    let shared = Shared::new(sums);
    let chunk = size.div_ceil(TASKS);
    each(size.div_ceil(chunk), parts * size, |task| {
        let range = task * chunk..((task + 1) * chunk).min(size);
        // SAFETY: each task has its own part.
        let sum = unsafe { shared.part(range.start, range.len()) };
        let mut parts = all.chunks_exact(size).map(|part| &part[range.clone()]);
        if let Some(first) = parts.next() {
            sum.copy_from_slice(first);
        }
        parts.for_each(|part| add(sum, part));
    });
}

/// One task of the gradient of the weights: some rows of the image, some input and output channels.
struct Strip<'a> {
    level: Level,
    geometry: &'a Geometry,
    batch: usize,
    panels: &'a [Panel],
    /// Inputs, outputs.
    channels: [usize; 2],
    mine: Range<usize>,
    /// Where this task's sums begin.
    home: usize,
}

impl Strip<'_> {
    fn run<N: Number>(&self, x: &[N], above: &[N], rows: Range<usize>, sums: &Shared) {
        let Self { geometry, batch, panels, channels: [_, outputs], ref mine, .. } = *self;
        let width = geometry.output[1];
        let channels = channels(panels);
        for place in 0..geometry.taps() {
            for input in mine.clone() {
                let home = self.home(place, input) + channels.start;
                // SAFETY: each task has its own partial sums, input and output channels.
                unsafe { sums.part(home, channels.len()) }.fill(0.0);
            }
        }
        // blocks of some columns, or of some of the batch in one column, stay in a first-level cache
        let across = (SUM / batch).clamp(1, width);
        let deep = if across == 1 { SUM.min(batch) } else { batch };
        let columns = (0..width).step_by(across).map(|start| start..(start + across).min(width));
        let blocks: Vec<(Range<usize>, Range<usize>)> = columns
            .flat_map(|columns| {
                (0..batch).step_by(deep).map(move |start| (columns.clone(), start..(start + deep).min(batch)))
            })
            .collect();
        let (most, whole) = (across * deep, self.level.panel());
        scratch(most * (panels.len() * whole + line(mine.len())), |space| {
            let (packed, seen) = space.split_at_mut(most * panels.len() * whole);
            for (row, (columns, images)) in rows.flat_map(|row| blocks.iter().map(move |block| (row, block))) {
                let many = images.len();
                // lanes past a panel's width are computed and thrown away
                for (index, column) in columns.clone().enumerate() {
                    let first = (row * width + column) * batch + images.start;
                    let (rows, lines) = (&above[first * outputs + channels.start..], index * many..(index + 1) * many);
                    share_out(rows, outputs, panels, self.level.lanes(), packed, most * whole, &lines);
                }
                for place in 0..geometry.taps() {
                    self.place(x, (row, place), (columns, images), packed, seen, sums);
                }
            }
        });
    }

    /// Where a place's sums of an input begin.
    fn home(&self, place: usize, input: usize) -> usize {
        self.home + (place * self.channels[0] + input) * self.channels[1]
    }

    /// Adds what some columns of a row and some images give to the sums of a place. Gradients of all panels are packed; inputs are,
    /// here: rows that are apart by powers of two push each other out of a cache.
    fn place<N: Number>(
        &self,
        x: &[N],
        (row, place): (usize, usize),
        (columns, images): (&Range<usize>, &Range<usize>),
        packed: &[f32],
        seen: &mut [f32],
        sums: &Shared,
    ) {
        let Self { level, geometry, batch, panels, channels: [inputs, outputs], ref mine, .. } = *self;
        let Some(run) = geometry.run(row, place, columns) else { return };
        let (many, apart) = (images.len(), line(mine.len()));
        for (j, lines) in seen.chunks_exact_mut(many * apart).take(run.count).enumerate() {
            let from = (run.row * geometry.input[1] + run.from + j * run.from_step) * batch + images.start;
            gather(&x[from * inputs + mine.start..], inputs, mine.len(), lines, apart);
        }
        // neighbours among the outputs are summed together
        let (parts, length) = if run.to_step == 1 { (1, run.count * many) } else { (run.count, many) };
        let size = packed.len() / panels.len();
        for (panel, packed) in panels.iter().zip(packed.chunks_exact(size)) {
            let (wide, kernels) = (panel.vectors * level.lanes(), level.outer(panel.vectors));
            for j in 0..parts {
                let to = (run.to + j * run.to_step - columns.start) * many;
                let b = Strided(packed[to * wide..][..length * wide].as_ptr(), wide);
                let seen = &seen[j * many * apart..][..length * apart];
                for (input, kernel) in strips(mine.len(), kernels) {
                    let a = Strided(seen[input..].as_ptr(), apart);
                    let c = sums.at(self.home(place, mine.start + input) + panel.start);
                    // SAFETY: `seen` has `length` rows of `apart` elements, `b` as many of `wide`; the sums are this task's
                    // own.
                    unsafe { kernel(length, a, b, (c, outputs), panel.last) };
                }
            }
        }
    }
}

/// Floats from one packed row of inputs to the next: an odd number of lines of a cache.
fn line(inputs: usize) -> usize {
    const LINE: usize = 16;
    (inputs.div_ceil(LINE) | 1) * LINE
}
