//! Convolutions in bf16 on tile registers (`tiles`): factors rounded to bf16, products and sums in f32. The places of the
//! window and all channels are one sum that never leaves the registers.
//!
//! Values lie as height x width x batch x channels, so the left factor of a pixel's sum is sixteen images by some channels as
//! it lies in memory. Share of the bound (docs/kernels.md): 1.04 forward, 0.96 back; a third to a half with 3 or 16 channels.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::buffer::{Buffer, Pool, scratch};
use super::finish::{End, Rows, finish};
use super::geometry::Geometry;
use super::number::{Half, Halves, Number, Value, convert, halves, pair, words};
use super::parallel::{Shared, each};
use super::product::TASKS;
use super::tiles::{self, DEEP, Product, SIDE, Sizes, Term};
use super::turn::turn;
use super::weights::{Weights, gather};
use crate::wide::wide;

/// Elements of a chunk.
const CHUNK: usize = 16_384;

/// How a sum over so many is cut into steps of equal, even depth; zeros fill the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Depth {
    pub(super) steps: usize,
    pub(super) deep: usize,
}

impl Depth {
    pub(super) fn of(count: usize) -> Self {
        let steps = count.div_ceil(DEEP);
        Self { steps, deep: count.div_ceil(steps).next_multiple_of(2) }
    }

    /// With the zeros.
    pub(super) fn whole(self) -> usize {
        self.steps * self.deep
    }
}

/// Left factors: rows of bf16, with zeros up to the depth.
enum Left<'a> {
    Same(&'a [Half]),
    Made(Halves),
}

impl Deref for Left<'_> {
    type Target = [Half];

    fn deref(&self) -> &[Half] {
        match self {
            Left::Same(x) => x,
            Left::Made(x) => x,
        }
    }
}

fn left<'a>(x: &'a Value, channels: usize, pool: &Arc<Pool>) -> Left<'a> {
    match x {
        Value::Half(x) if Depth::of(channels).whole() == channels => Left::Same(x),
        Value::Half(x) => Left::Made(padded(x, channels, pool)),
        Value::Full(x) => Left::Made(padded(x, channels, pool)),
    }
}

fn padded<N: Number>(x: &[N], channels: usize, pool: &Arc<Pool>) -> Halves {
    let whole = Depth::of(channels).whole();
    let rows = x.len() / channels;
    let mut to = Halves::new(pool, rows * whole);
    let shared = Shared::new(&mut to);
    let many = CHUNK.div_ceil(whole);
    each(rows.div_ceil(many), 2 * x.len(), |chunk| {
        let range = chunk * many..((chunk + 1) * many).min(rows);
        // SAFETY: each task has its own rows.
        let to = unsafe { shared.part(range.start * whole, range.len() * whole) };
        let x = &x[range.start * channels..range.end * channels];
        if whole == channels {
            convert(x, to);
        } else {
            for (x, to) in x.chunks_exact(channels).zip(to.chunks_exact_mut(whole)) {
                convert(x, to);
                to[channels..].fill(Half::default());
            }
        }
    });
    to
}

/// Weights as right factors: tile of outputs, place, input / 2, output, two neighbouring inputs a word.
pub(super) fn right(weights: Weights, theta: &[f32], pool: &Arc<Pool>) -> Buffer {
    let Weights { inputs, outputs, taps, .. } = weights;
    let pairs = Depth::of(inputs).whole() / 2;
    let size = taps * pairs * SIDE;
    let mut data = pool.lend(outputs.div_ceil(SIDE) * size);
    let shared = Shared::new(&mut data);
    let chunks = pairs.div_ceil(SIDE);
    each(outputs.div_ceil(SIDE) * chunks, 4 * theta.len(), |task| {
        let (tile, first) = (task / chunks, task % chunks * 2 * SIDE);
        let outputs = tile * SIDE..((tile + 1) * SIDE).min(outputs);
        if taps == 1 && first + 2 * SIDE <= inputs && outputs.len() == SIDE {
            // SAFETY: each task has its own tile of outputs and its inputs.
            let to = unsafe { shared.part(tile * size + first / 2 * SIDE, SIDE * SIDE) };
            return lines(weights, theta, first, outputs.start, to);
        }
        for first in [first, first + SIDE] {
            scratch(SIDE * taps * SIDE, |block| {
                block.fill(0.0);
                gather(weights, theta, &(first.min(inputs)..(first + SIDE).min(inputs)), &outputs, block, SIDE);
                for place in 0..taps {
                    for k in (0..SIDE).step_by(2).take_while(|k| (first + k) / 2 < pairs) {
                        let row = |k: usize| &block[(k * taps + place) * SIDE..][..SIDE];
                        let at = tile * size + (place * pairs + first / 2 + k / 2) * SIDE;
                        // SAFETY: as above.
                        let to = words(unsafe { shared.part(at, SIDE) });
                        for ((to, one), two) in to.iter_mut().zip(row(k)).zip(row(k + 1)) {
                            *to = pair(*one, *two);
                        }
                    }
                }
            });
        }
    });
    data
}

/// Two tiles of inputs from `first` on and one of outputs from `start` on of 1 x 1 windows as right factors.
fn lines(weights: Weights, theta: &[f32], first: usize, start: usize, to: &mut [f32]) {
    let Weights { input_step, output_step, .. } = weights;
    let from = &theta[first * input_step + start * output_step..];
    if output_step == 1 {
        for (from, to) in from.chunks(2 * input_step).zip(to.chunks_exact_mut(SIDE)) {
            pairs_of(&from[..SIDE], &from[input_step..][..SIDE], words(to));
        }
    } else {
        let mut rows = [0.0; SIDE * SIDE];
        for (from, row) in from.chunks(output_step).zip(rows.chunks_exact_mut(SIDE)) {
            // halves that follow each other are the pairs of a word
            convert(&from[..2 * SIDE], halves(row));
        }
        turn(&rows, SIDE, to, SIDE);
    }
}

wide! {
    fn pairs_of(one: &[f32], two: &[f32], to: &mut [u32]) {
        for ((to, one), two) in to.iter_mut().zip(one).zip(two) {
            *to = pair(*one, *two);
        }
    }
}

/// What an output pixel sees: places and the input pixels below them.
fn seen(geometry: &Geometry, pixel: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    let (row, column) = (pixel / geometry.output[1], pixel % geometry.output[1]);
    (0..geometry.taps()).filter_map(move |place| {
        let run = geometry.run(row, place, &(column..column + 1))?;
        Some((place, run.row * geometry.input[1] + run.from))
    })
}

/// Weights of this many bytes stay in a second-level cache beside what they meet.
const NEAR: usize = 1 << 19;

/// output = end of the sum over places of seen inputs x weights. `weights` hold those of `right`.
pub(super) fn product(
    geometry: &Geometry,
    batch: usize,
    x: &Value,
    (weights, data): (Weights, &[f32]),
    end: &End,
    pool: &Arc<Pool>,
    output: &mut Value,
) {
    match output {
        Value::Full(output) => product_of(geometry, batch, x, (weights, data), end, pool, output),
        Value::Half(output) => product_of(geometry, batch, x, (weights, data), end, pool, output),
    }
}

fn product_of<N: Number>(
    geometry: &Geometry,
    batch: usize,
    x: &Value,
    (weights, data): (Weights, &[f32]),
    end: &End,
    pool: &Arc<Pool>,
    output: &mut [N],
) {
    let Weights { inputs, outputs, .. } = weights;
    let [height, width] = geometry.output;
    let pixels = height * width;
    let depth = Depth::of(inputs);
    let x = left(x, inputs, pool);
    let columns = outputs.div_ceil(SIDE);
    let size = geometry.taps() * depth.whole() / 2 * SIDE;
    // what the raw places of the tiles rest on
    assert_eq!(x.len(), geometry.input[0] * geometry.input[1] * batch * depth.whole(), "inputs of that size");
    assert_eq!(output.len(), pixels * batch * outputs, "outputs of that size");
    assert!(data.len() >= columns * size, "weights of that size");
    // weights that are near are read again and again, others once by each task
    let blocks = columns.div_ceil(2);
    let groups = (4 * data.len()).div_ceil(NEAR).min(blocks);
    let group = blocks.div_ceil(groups);
    let groups = blocks.div_ceil(group);
    let chunk = pixels.div_ceil(TASKS.div_ceil(groups).min(pixels));
    let chunks = pixels.div_ceil(chunk);
    let shared = Shared::new(output);
    let work = pixels * batch * outputs * inputs * geometry.taps() / 8;
    each(chunks * groups, work, |task| {
        let first = task % chunks * chunk;
        let columns = task / chunks * group * 2..((task / chunks + 1) * group * 2).min(columns);
        let mut terms = Vec::with_capacity(chunk * geometry.taps());
        let mut ends = Vec::with_capacity(chunk);
        for pixel in first..(first + chunk).min(pixels) {
            terms.extend(seen(geometry, pixel).map(|(place, from)| Term {
                left: x[from * batch * depth.whole()..].as_ptr().cast(),
                right: data[place * depth.whole() / 2 * SIDE..].as_ptr().cast(),
            }));
            ends.push(terms.len());
        }
        let job = Forward { batch, outputs, size, depth, end, output: &shared };
        let full = batch / (2 * SIDE) * 2 * SIDE;
        job.run(0..full, first, &columns, &terms, &ends);
        job.run(full..batch, first, &columns, &terms, &ends);
    });
}

/// One task of `product`.
struct Forward<'a, N> {
    batch: usize,
    outputs: usize,
    /// Words of the weights of a tile of outputs.
    size: usize,
    depth: Depth,
    end: &'a End<'a>,
    output: &'a Shared<N>,
}

impl<N: Number> Forward<'_, N> {
    /// Some images, in blocks of one size, from pixel `first` on; `ends`: of each pixel's terms.
    fn run(&self, images: Range<usize>, first: usize, columns: &Range<usize>, terms: &[Term], ends: &[usize]) {
        let Self { batch, outputs, size, depth, end, output } = *self;
        if images.is_empty() {
            return;
        }
        let many = images.len().min(2 * SIDE);
        let rows = [many.min(SIDE), many.saturating_sub(SIDE)];
        let tall = many.div_ceil(SIDE);
        let sizes = Sizes::new(rows, depth.deep);
        let mut spill = [0.0_f32; 4 * SIDE * SIDE];
        for column in columns.clone().step_by(2) {
            let wide = (columns.end - column).min(2);
            let channels = column * SIDE..((column + wide) * SIDE).min(outputs);
            // sums that lie as they come
            let plain = matches!(end, End::Bias(None) | End::Add);
            let whole = N::FULL && channels.len() == wide * SIDE && plain;
            let mut from = 0;
            for (pixel, &last) in (first..).zip(ends) {
                for image in images.clone().step_by(2 * SIDE) {
                    let place = (pixel * batch + image) * outputs + channels.start;
                    let (sum, row, keep) = if whole {
                        (output.at(place).cast(), outputs, matches!(end, End::Add))
                    } else {
                        (spill.as_mut_ptr(), 2 * SIDE, false)
                    };
                    let product = Product {
                        left_shift: image * depth.whole() * 2,
                        right_shift: column * size * 4,
                        steps: depth.steps,
                        left_row: depth.whole() * 2,
                        left_step: depth.deep * 2,
                        left_second: SIDE * depth.whole() * 2,
                        right_step: depth.deep / 2 * SIDE * 4,
                        right_second: size * 4,
                        sum,
                        sum_row: row * 4,
                        sum_second: SIDE * row * 4,
                        keep: usize::from(keep),
                    };
                    // SAFETY: the rows are `many` images of a pixel of the input, each of `steps` x `deep` numbers; the
                    // weights are tiles of `size` words below `columns.end`; the sums are this task's own pixels and
                    // channels, or `spill`, which holds four tiles.
                    unsafe { tiles::multiply(&sizes, [tall, wide], &product, &terms[from..last]) };
                    if !whole {
                        // this task's own pixels and channels
                        finish(&spill, end, &channels, output, Rows { many, place, apart: outputs });
                    }
                }
                from = last;
            }
        }
    }
}
