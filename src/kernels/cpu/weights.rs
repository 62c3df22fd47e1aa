//! Weights of a convolution or a linear layer: where they lie in theta, and in the order in which the inner loops read
//! them. Share of the bound, which is memory's (docs/kernels.md): 1.23 for direct sums, out of a cache, 0.61 for
//! Winograd's transforms of them.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Buffer, Pool, scratch};
use super::parallel::{Shared, each};
use super::simd::Level;
use super::turn::{SQUARE, turn};
use super::winograd::Tiling;

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
    pub(super) fn back(self) -> Self {
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

/// Those of some panels that follow each other.
pub(super) fn channels(panels: &[Panel]) -> Range<usize> {
    let first = panels.first().map_or(0, |panel| panel.start);
    first..panels.last().map_or(first, |panel| panel.start + panel.width)
}

/// Weights for one product.
#[derive(Clone, Debug)]
pub(super) enum Ready<'a> {
    /// In the order in which the inner loops read them: panel, place, input channel, output channel, zeros at the end; or as
    /// Winograd's algorithm or the tile registers take them.
    Packed(Arc<Buffer>),
    /// As theta has them, where one task alone reads each of them: it packs what it comes to.
    Theta(&'a [f32]),
}

/// Weights seen as so many places.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    source: Source<'a>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Packed(&'a [f32]),
    /// Of 1 x 1 windows.
    Theta(&'a [f32], Weights),
}

impl<'a> View<'a> {
    pub(super) fn of(ready: &'a Ready, weights: Weights) -> Self {
        let Weights { inputs, outputs, taps, .. } = weights;
        let source = match ready {
            Ready::Packed(packed) => Source::Packed(packed),
            Ready::Theta(theta) => Source::Theta(theta, weights),
        };
        Self { source, inputs, outputs, taps }
    }

    /// Places and input channels as one.
    pub(super) fn joined(self) -> Self {
        Self { inputs: self.inputs * self.taps, taps: 1, ..self }
    }

    /// Floats that `block` needs of its caller for so many inputs.
    pub(super) fn room(&self, inputs: usize, wide: usize) -> usize {
        if matches!(self.source, Source::Packed(_)) { 0 } else { inputs * wide }
    }

    /// Some inputs of a place and of a panel, as rows of `wide`, whole vectors.
    pub(super) fn block<'b>(
        &self,
        (panel, wide): (Panel, usize),
        place: usize,
        inputs: Range<usize>,
        room: &'b mut [f32],
    ) -> &'b [f32]
    where
        'a: 'b,
    {
        match self.source {
            // all panels before it are full
            Source::Packed(data) => {
                let start = panel.start * self.inputs * self.taps + (place * self.inputs + inputs.start) * wide;
                &data[start..start + inputs.len() * wide]
            }
            Source::Theta(theta, weights) => {
                let rows = &mut room[..inputs.len() * wide];
                let chunks = inputs.clone().step_by(BLOCK).map(|first| first..(first + BLOCK).min(inputs.end));
                for (mine, rows) in chunks.zip(rows.chunks_mut(BLOCK * wide)) {
                    blocks(weights, theta, &mine, (panel, wide), rows);
                }
                rows
            }
        }
    }
}

/// Channels of a block: all places of 16 x 16 channels stay in a first-level cache while they are turned.
pub(super) const BLOCK: usize = SQUARE;

/// The weights of a block of channels by place: `block[(k taps + place) step + n]` for input k and output n of it.
pub(super) fn gather(
    weights: Weights,
    theta: &[f32],
    inputs: &Range<usize>,
    outputs: &Range<usize>,
    block: &mut [f32],
    step: usize,
) {
    let Weights { input_step, output_step, taps, .. } = weights;
    let whole = inputs.len() == BLOCK && outputs.len() == BLOCK;
    if input_step == taps && whole {
        let first = &theta[inputs.start * taps + outputs.start * output_step..];
        for start in (0..taps * BLOCK).step_by(BLOCK) {
            turn(&first[start..], output_step, &mut block[start * step..], step);
        }
    } else if taps == 1 && output_step == 1 {
        for (row, input) in block.chunks_mut(step).zip(inputs.clone()) {
            row[..outputs.len()].copy_from_slice(&theta[input * input_step + outputs.start..][..outputs.len()]);
        }
    } else if input_step == taps {
        // the windows of an output's inputs follow each other
        for (n, output) in outputs.clone().enumerate() {
            let run = &theta[inputs.start * taps + output * output_step..][..inputs.len() * taps];
            block.chunks_mut(step).zip(run).for_each(|(row, value)| row[n] = *value);
        }
    } else {
        // those of an input's outputs do
        for (k, input) in inputs.clone().enumerate() {
            let run = &theta[input * input_step + outputs.start * taps..];
            let rows = &mut block[k * taps * step..];
            if whole && taps <= WINDOW {
                turn_windows(run, taps, rows, step);
                continue;
            }
            for (n, window) in run.chunks_exact(taps).take(outputs.len()).enumerate() {
                rows.chunks_mut(step).zip(window).for_each(|(row, value)| row[n] = *value);
            }
        }
    }
}

/// Places of a window that a square holds.
const WINDOW: usize = BLOCK;

/// `rows[place step + n] = run[n taps + place]`, of a block's channels.
fn turn_windows(run: &[f32], taps: usize, rows: &mut [f32], step: usize) {
    let mut square = [0.0; BLOCK * BLOCK];
    // a square reads past the last window
    if run.len() >= (BLOCK - 1) * taps + BLOCK {
        turn(run, taps, &mut square, BLOCK);
    } else {
        let mut padded = [0.0; BLOCK * WINDOW + BLOCK];
        padded[..BLOCK * taps].copy_from_slice(&run[..BLOCK * taps]);
        turn(&padded, taps, &mut square, BLOCK);
    }
    for (row, values) in rows.chunks_mut(step).zip(square.chunks_exact(BLOCK)).take(taps) {
        row[..BLOCK].copy_from_slice(values);
    }
}

/// The weights of some inputs, at most a block of them, and of a panel's outputs: rows of `wide`, by input and place, with zeros past
/// the last output.
pub(super) fn blocks(
    weights: Weights,
    theta: &[f32],
    inputs: &Range<usize>,
    (panel, wide): (Panel, usize),
    rows: &mut [f32],
) {
    if panel.width < wide {
        rows.fill(0.0);
    }
    // lines of theta are taken as they are, squares are turned
    let together = if (weights.taps, weights.output_step) == (1, 1) { panel.width } else { BLOCK };
    for start in (0..panel.width).step_by(together) {
        let outputs = panel.start + start..panel.start + (start + together).min(panel.width);
        gather(weights, theta, inputs, &outputs, &mut rows[start..], wide);
    }
}

/// The other way round. Nobody else touches these channels of theta meanwhile.
fn scatter(weights: Weights, theta: &Shared, inputs: &Range<usize>, outputs: &Range<usize>, block: &[f32]) {
    let Weights { input_step, output_step, taps, .. } = weights;
    if input_step == taps && inputs.len() == BLOCK && outputs.len() == BLOCK {
        let mut turned = [0.0; BLOCK * BLOCK];
        for (part, square) in block.chunks_exact(BLOCK * BLOCK).enumerate() {
            turn(square, BLOCK, &mut turned, BLOCK);
            for (output, row) in outputs.clone().zip(turned.chunks_exact(BLOCK)) {
                // SAFETY: these channels, by the caller's promise.
                let to = unsafe { theta.part(inputs.start * taps + output * output_step + part * BLOCK, BLOCK) };
                to.copy_from_slice(row);
            }
        }
    } else if taps == 1 && output_step == 1 {
        for (row, input) in block.chunks_exact(BLOCK).zip(inputs.clone()) {
            // SAFETY: as above.
            let to = unsafe { theta.part(input * input_step + outputs.start, outputs.len()) };
            to.copy_from_slice(&row[..outputs.len()]);
        }
    } else if input_step == taps {
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

pub(super) fn pack(level: Level, weights: Weights, tiling: Option<Tiling>, theta: &[f32], pool: &Arc<Pool>) -> Buffer {
    let Weights { inputs, outputs, taps, .. } = weights;
    if let Some(tiling) = tiling {
        return tiling.pack(theta, pool);
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
        if taps == 1 {
            // SAFETY: each task has its own panel and input channels.
            let rows = unsafe { shared.part(panel.start * rows + first * wide, mine.len() * wide) };
            return blocks(weights, theta, &mine, (panel, wide), rows);
        }
        scratch(mine.len() * taps * wide, |windows| {
            blocks(weights, theta, &mine, (panel, wide), windows);
            for (row, values) in windows.chunks_exact(wide).enumerate() {
                let (input, place) = (first + row / taps, row % taps);
                // all panels before it are full
                let at = panel.start * rows + (place * inputs + input) * wide;
                // SAFETY: each task has its own panel and input channels.
                unsafe { shared.part(at, wide) }.copy_from_slice(values);
            }
        });
    });
    data
}

/// From place x input x output to theta's layout.
pub(super) fn unpack(sums: &[f32], weights: Weights, theta: &mut [f32]) {
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
