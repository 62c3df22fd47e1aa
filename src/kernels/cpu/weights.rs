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

/// Weights in the order the inner loop reads them: panel, place, input channel, output channel, zeros at the end; or as
/// Winograd's algorithm reads them.
#[derive(Debug)]
pub struct Packed {
    pub(super) data: Buffer,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
    pub(super) tiling: Option<Tiling>,
}

impl Packed {
    /// Places and input channels as one.
    pub(super) fn view(&self) -> View<'_> {
        View { data: &self.data, inputs: self.inputs * self.taps, outputs: self.outputs, taps: 1 }
    }
}

/// Packed weights, seen as so many places.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
}

/// Channels of a block: all places of 16 x 16 channels stay in a first-level cache while they are turned.
pub(super) const BLOCK: usize = SQUARE;

/// The weights of a block of channels by place: `block[(k taps + place) BLOCK + n]` for input k and output n of it.
pub(super) fn gather(
    weights: Weights,
    theta: &[f32],
    inputs: &Range<usize>,
    outputs: &Range<usize>,
    block: &mut [f32],
) {
    let Weights { input_step, output_step, taps, .. } = weights;
    let whole = inputs.len() == BLOCK && outputs.len() == BLOCK;
    if input_step == taps && whole {
        let first = &theta[inputs.start * taps + outputs.start * output_step..];
        for start in (0..taps * BLOCK).step_by(BLOCK) {
            turn(&first[start..], output_step, &mut block[start * BLOCK..], BLOCK);
        }
    } else if taps == 1 && output_step == 1 {
        for (row, input) in block.chunks_exact_mut(BLOCK).zip(inputs.clone()) {
            row[..outputs.len()].copy_from_slice(&theta[input * input_step + outputs.start..][..outputs.len()]);
        }
    } else if input_step == taps {
        // the windows of an output's inputs follow each other
        for (n, output) in outputs.clone().enumerate() {
            let run = &theta[inputs.start * taps + output * output_step..][..inputs.len() * taps];
            block.chunks_exact_mut(BLOCK).zip(run).for_each(|(row, value)| row[n] = *value);
        }
    } else {
        // those of an input's outputs do
        for (k, input) in inputs.clone().enumerate() {
            let run = &theta[input * input_step + outputs.start * taps..][..outputs.len() * taps];
            let rows = &mut block[k * taps * BLOCK..][..taps * BLOCK];
            if whole && taps <= WINDOW {
                turn_windows(run, taps, rows);
                continue;
            }
            for (n, window) in run.chunks_exact(taps).enumerate() {
                rows.chunks_exact_mut(BLOCK).zip(window).for_each(|(row, value)| row[n] = *value);
            }
        }
    }
}

/// Places of a window that a square holds.
const WINDOW: usize = BLOCK;

/// `rows[place][n] = run[n][place]`, of a block's channels.
fn turn_windows(run: &[f32], taps: usize, rows: &mut [f32]) {
    // a square reads past the last window
    let (mut padded, mut square) = ([0.0; BLOCK * WINDOW + BLOCK], [0.0; BLOCK * BLOCK]);
    padded[..run.len()].copy_from_slice(run);
    turn(&padded, taps, &mut square, BLOCK);
    rows.copy_from_slice(&square[..rows.len()]);
}

/// Fills `block` with each block of some inputs and of a panel's outputs, with zeros past its last one up to `wide`, and calls `put`
/// with it and with where in the panel it begins.
pub(super) fn blocks(
    weights: Weights,
    theta: &[f32],
    inputs: &Range<usize>,
    (panel, wide): (Panel, usize),
    block: &mut [f32],
    mut put: impl FnMut(usize, &[f32]),
) {
    let block = &mut block[..inputs.len() * weights.taps * BLOCK];
    for start in (0..wide).step_by(BLOCK) {
        let from = panel.start + start;
        let to = (from + BLOCK).min(panel.start + panel.width);
        if to < from + BLOCK {
            block.fill(0.0);
        }
        gather(weights, theta, inputs, &(from..to.max(from)), block);
        put(start, block);
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

/// Packs some inputs of a panel of 1 x 1 windows without a detour, where they lie so that this can be.
fn lines(weights: Weights, theta: &[f32], inputs: &Range<usize>, panel: Panel, rows: &mut [f32]) -> bool {
    let Weights { input_step, output_step, .. } = weights;
    let wide = rows.len() / inputs.len();
    if output_step == 1 {
        for (row, input) in rows.chunks_exact_mut(wide).zip(inputs.clone()) {
            let (live, rest) = row.split_at_mut(panel.width);
            live.copy_from_slice(&theta[input * input_step + panel.start..][..panel.width]);
            rest.fill(0.0);
        }
        return true;
    }
    let squares = inputs.len() == BLOCK && panel.width == wide && wide.is_multiple_of(BLOCK);
    if input_step == 1 && squares {
        for start in (0..wide).step_by(BLOCK) {
            let from = &theta[(panel.start + start) * output_step + inputs.start..];
            turn(from, output_step, &mut rows[start..], wide);
        }
        return true;
    }
    false
}

pub(super) fn pack(level: Level, weights: Weights, tiling: Option<Tiling>, theta: &[f32], pool: &Arc<Pool>) -> Packed {
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
        if taps == 1 {
            // SAFETY: each task has its own panel and input channels.
            let rows = unsafe { shared.part(panel.start * rows + first * wide, mine.len() * wide) };
            if lines(weights, theta, &mine, panel, rows) {
                return;
            }
        }
        scratch(mine.len() * taps * BLOCK, |block| {
            blocks(weights, theta, &mine, (panel, wide), block, |start, block| {
                for (row, values) in block.chunks_exact(BLOCK).enumerate() {
                    let (input, place) = (first + row / taps, row % taps);
                    // all panels before it are full
                    let at = panel.start * rows + (place * inputs + input) * wide + start;
                    let count = BLOCK.min(wide - start);
                    // SAFETY: each task has its own panel and input channels.
                    unsafe { shared.part(at, count) }.copy_from_slice(&values[..count]);
                }
            });
        });
    });
    Packed { data, inputs, outputs, taps, tiling: None }
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
