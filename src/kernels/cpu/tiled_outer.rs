//! The gradient of weights in bf16 on tile registers, as `outer`, with factors rounded to bf16. It sums over images, which lie
//! next to channels in neither factor: so inputs are turned, channels x images, and gradients lie as images x channels, two
//! neighbouring images a word. Share of the bound (docs/kernels.md): 0.56; those turns are passes over memory.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::geometry::Geometry;
use super::number::{Number, Value, pair, words};
use super::outer::in_parts;
use super::parallel::{Shared, each};
use super::product::TASKS;
use super::tiled::Depth;
use super::tiles::{self, Product, SIDE, Sizes, Term};
use super::turn::turn;
use crate::wide::wide;

/// Pixels x images x channels as pixels x channels x images in bf16 if `turned`, else pixels x tiles of channels x
/// images / 2 x channels of a tile, two neighbouring images a word. Zeros up to whole tiles of channels and the depth.
fn over_images(x: &Value, batch: usize, channels: usize, turned: bool, pool: &Arc<Pool>) -> Buffer {
    match x {
        Value::Full(x) => over_images_of(x, batch, channels, turned, pool),
        Value::Half(x) => over_images_of(x, batch, channels, turned, pool),
    }
}

fn over_images_of<N: Number>(x: &[N], batch: usize, channels: usize, turned: bool, pool: &Arc<Pool>) -> Buffer {
    let pixels = x.len() / (batch * channels);
    let pairs = Depth::of(batch).whole() / 2;
    let tiles = channels.div_ceil(SIDE);
    let size = tiles * SIDE * pairs;
    let mut to = pool.lend(pixels * size);
    let shared = Shared::new(&mut to);
    each(pixels, 8 * x.len(), |pixel| {
        let x = &x[pixel * batch * channels..][..batch * channels];
        // SAFETY: each task has its own pixel.
        let to = unsafe { shared.part(pixel * size, size) };
        for (tile, to) in to.chunks_exact_mut(SIDE * pairs).enumerate() {
            let first = tile * SIDE;
            if !turned {
                paired(x, channels, first, 0, words(to));
                continue;
            }
            let mut block = [0.0; SIDE * SIDE];
            for start in (0..pairs).step_by(SIDE) {
                let many = (pairs - start).min(SIDE);
                paired(x, channels, first, 2 * start, &mut words(&mut block)[..many * SIDE]);
                if many == SIDE {
                    turn(&block, SIDE, &mut to[start..], pairs);
                } else {
                    let mut over = [0.0; SIDE * SIDE];
                    turn(&block, SIDE, &mut over, SIDE);
                    for (to, words) in to.chunks_exact_mut(pairs).zip(over.chunks_exact(SIDE)) {
                        to[start..].copy_from_slice(&words[..many]);
                    }
                }
            }
        }
    });
    to
}

wide! {
    /// A tile of channels from `first` on, of images x channels from image `start` on: a row of `to` for each two images.
    /// Zeros past the last of both.
    fn paired<N: Number>(x: &[N], channels: usize, first: usize, start: usize, to: &mut [u32]) {
        let live = (channels - first).min(SIDE);
        let images = x.len() / channels - start.min(x.len() / channels);
        for (index, to) in to.chunks_exact_mut(SIDE).enumerate() {
            let place = |image: usize| (start + image) * channels + first;
            let (one, two) = (2 * index, 2 * index + 1);
            if live == SIDE && two < images {
                let (one, two) = (&x[place(one)..][..SIDE], &x[place(two)..][..SIDE]);
                for lane in 0..SIDE {
                    to[lane] = pair(one[lane], two[lane]);
                }
                continue;
            }
            for (lane, to) in to.iter_mut().enumerate() {
                let of = |image: usize| {
                    if image < images && lane < live { x[place(image) + lane] } else { N::default() }
                };
                *to = pair(of(one), of(two));
            }
        }
    }
}

/// Steps that one sum in registers takes at least, where the image has them.
const LONG: usize = 64;

/// sums[place][input][output] = sum over rows of x[seen row][input] above[row][output], as `outer::outer`.
pub(super) fn outer(
    geometry: &Geometry,
    batch: usize,
    x: &Value,
    above: &Value,
    [inputs, outputs]: [usize; 2],
    pool: &Arc<Pool>,
    sums: &mut [f32],
) {
    let [height, width] = geometry.output;
    let depth = Depth::of(batch);
    let turned = over_images(x, batch, inputs, true, pool);
    let above = over_images(above, batch, outputs, false, pool);
    let (tall, broad) = (inputs.div_ceil(SIDE), outputs.div_ceil(SIDE));
    let blocks = tall.div_ceil(2);
    // few channels: rows of the image are shared out too
    let groups = TASKS.div_ceil(blocks).min(height);
    let group = height.div_ceil(groups);
    let groups = height.div_ceil(group);
    let size = geometry.taps() * inputs * outputs;
    assert_eq!(sums.len(), size, "sums of their layer's size");
    let lines = LONG.div_ceil(width * depth.steps);
    in_parts(groups, pool, sums, |shared| {
        each(groups * blocks, height * width * batch * size / 8, |task| {
            let (rows, block) = (task / blocks * group, task % blocks);
            let rows = rows..(rows + group).min(height);
            let mine = block * 2..(block * 2 + 2).min(tall);
            let live = [0, 1].map(|tile| (inputs.saturating_sub((mine.start + tile) * SIDE)).min(SIDE));
            let sizes = Sizes::new(live, depth.deep);
            let mut terms = Vec::new();
            for first in rows.clone().step_by(lines) {
                for place in 0..geometry.taps() {
                    terms.clear();
                    for row in first..(first + lines).min(rows.end) {
                        let Some(run) = geometry.run(row, place, &(0..width)) else { continue };
                        terms.extend((0..run.count).map(|j| {
                            let to = row * width + run.to + j * run.to_step;
                            let from = run.row * geometry.input[1] + run.from + j * run.from_step;
                            Term {
                                left: turned[from * tall * SIDE * depth.whole() / 2..].as_ptr().cast(),
                                right: above[to * broad * depth.whole() / 2 * SIDE..].as_ptr().cast(),
                            }
                        }));
                    }
                    let home = task / blocks * size + (place * inputs + mine.start * SIDE) * outputs;
                    let job = Backward { outputs, depth, mine: mine.clone(), live, keep: first > rows.start };
                    job.run(&sizes, &terms, shared, home);
                }
            }
        });
    });
}

/// The gradient of the weights of one place and one or two tiles of inputs.
struct Backward {
    outputs: usize,
    depth: Depth,
    mine: Range<usize>,
    /// Inputs of each tile.
    live: [usize; 2],
    keep: bool,
}

impl Backward {
    fn run(&self, sizes: &Sizes, terms: &[Term], sums: &Shared, home: usize) {
        let Self { outputs, depth, ref mine, live, keep } = *self;
        let broad = outputs.div_ceil(SIDE);
        let many = live[0] + live[1];
        let mut spill = [0.0_f32; 4 * SIDE * SIDE];
        for column in (0..broad).step_by(2) {
            let wide = (broad - column).min(2);
            let channels = (outputs - column * SIDE).min(wide * SIDE);
            let whole = channels == wide * SIDE;
            let (sum, row, keep_here) = if whole {
                (sums.at(home + column * SIDE), outputs, keep)
            } else {
                (spill.as_mut_ptr(), 2 * SIDE, false)
            };
            let product = Product {
                left_shift: mine.start * SIDE * depth.whole() * 2,
                right_shift: column * depth.whole() / 2 * SIDE * 4,
                steps: depth.steps,
                left_row: depth.whole() * 2,
                left_step: depth.deep * 2,
                left_second: SIDE * depth.whole() * 2,
                right_step: depth.deep / 2 * SIDE * 4,
                right_second: depth.whole() / 2 * SIDE * 4,
                sum,
                sum_row: row * 4,
                sum_second: SIDE * row * 4,
                keep: usize::from(keep_here),
            };
            // SAFETY: the terms are pixels of buffers that hold whole tiles of `depth` for each; the sums are this task's
            // own rows, place and inputs, or `spill`, which holds four tiles.
            unsafe { tiles::multiply(sizes, [mine.len(), wide], &product, terms) };
            if !whole {
                for (index, from) in spill.chunks_exact(2 * SIDE).take(many).enumerate() {
                    // SAFETY: this task's own.
                    let to = unsafe { sums.part(home + index * outputs + column * SIDE, channels) };
                    if keep {
                        to.iter_mut().zip(from).for_each(|(to, sum)| *to += sum);
                    } else {
                        to.copy_from_slice(&from[..channels]);
                    }
                }
            }
        }
    }
}
