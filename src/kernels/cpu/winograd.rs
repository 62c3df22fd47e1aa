//! Convolution with 3 x 3 windows and stride 1 by Winograd's minimal filtering F(4 x 4, 3 x 3): a tile of 4 x 4 outputs
//! takes 36 products a pair of channels in place of 144 (Lavin and Gray 2016, arXiv:1509.09308, with the points 0, +-1,
//! +-2 and infinity).
//!
//! With d the 6 x 6 inputs of a tile and g the window, Y = A' [(G g G') o (B' d B)] A, and "o" is, for each of the 36
//! places, one matrix product over channels. The gradient of the input is the same with the window turned round; that of
//! the window is the transposed algorithm, G' [sum over tiles of (B' d B) o (A dY A')] G.
//!
//! Rows of the 36 places go in three pairs, {1, 2}, {3, 4}, {0, 5}: the two of a pair share their sums and differences,
//! and what one task holds, 12 places of some 64 rows, stays in a second-level cache. Each output belongs to one task and
//! sees its products in one order, whatever else is in the batch, so neither threads nor batch sizes change a bit.
//!
//! Share of the bound of direct sums (docs/kernels.md): 2.24 forward, 2.40 back, 1.72 for the gradient of weights; with a quarter of
//! the products, 4 would be the most.

mod outer;

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Buffer, Pool, scratch};
use super::geometry::Geometry;
use super::parallel::{Shared, each};
use super::product::{DEPTH, Fold, Start, groups};
use super::simd::{Level, Strided};
use super::transform::{PAIRS, Transforms};
use super::weights::{BLOCK, Panel, Ready, Weights, blocks, channels, panels, strips};

/// Outputs along one side of a tile, and the inputs they see.
const SIDE: usize = 4;
const SEEN: usize = 6;
/// Places of a pair of rows.
const PLACES: usize = 12;
/// Floats between two places of a row of 36 matrices, beyond the matrix: one line of a cache. Sizes are powers of two
/// all too often, and 36 lines of one cache set push each other out.
const SKEW: usize = 16;

/// How an image is cut into tiles, for one convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    level: Level,
    weights: Weights,
    output: [usize; 2],
    input: [usize; 2],
    padding: usize,
    /// The window is turned round: the geometry is that of a gradient.
    turned: bool,
    /// Tiles down and across.
    tiles: [usize; 2],
    /// Rows (tiles x batch) that a task has in hand, about.
    rows: usize,
}

/// Some images of some neighbouring tiles.
struct Unit {
    tiles: Range<usize>,
    images: Range<usize>,
}

impl Unit {
    fn rows(&self) -> usize {
        self.tiles.len() * self.images.len()
    }
}

impl Tiling {
    /// Where the algorithm fits, and saves multiplications: small images waste more of their tiles than is won.
    pub(super) fn of(level: Level, geometry: &Geometry, weights: Weights) -> Option<Self> {
        let Geometry { output, input, window, transposed } = *geometry;
        let fits = window.kernel == 3 && window.stride == 1 && window.padding <= 2;
        let tiles = output.map(|size| size.div_ceil(SIDE));
        let pays = weights.inputs >= 8 && weights.outputs >= 8 && 2 * 36 * tiles[0] * tiles[1] <= geometry.products();
        let padding = if transposed { 2 - window.padding.min(2) } else { window.padding };
        // few rows where all windows stay in a second-level cache beside them, else as many as there is room for
        let rows = if weights.inputs * weights.outputs < 100 * 100 { 32 } else { 64 };
        (fits && pays).then_some(Self { level, weights, output, input, padding, turned: transposed, tiles, rows })
    }

    /// The images are shared out in slices, and where they are few, neighbouring tiles go together.
    fn units(&self, batch: usize) -> Vec<Unit> {
        let slices = batch.div_ceil(self.rows);
        let slice = batch.div_ceil(slices);
        let total = self.tiles[0] * self.tiles[1];
        let together = (self.rows / slice).clamp(1, total);
        (0..total)
            .step_by(together)
            .flat_map(|tile| {
                let tiles = tile..(tile + together).min(total);
                (0..batch)
                    .step_by(slice)
                    .map(move |image| Unit { tiles: tiles.clone(), images: image..(image + slice).min(batch) })
            })
            .collect()
    }

    /// Where pixel (row, column) of a tile's `side x side` pixels is, if it is in the image.
    fn pixel(size: [usize; 2], first: [usize; 2], padding: usize, place: usize, side: usize) -> Option<usize> {
        let row = (first[0] + place / side).checked_sub(padding).filter(|&row| row < size[0])?;
        let column = (first[1] + place % side).checked_sub(padding).filter(|&column| column < size[1])?;
        Some(row * size[1] + column)
    }

    fn first(&self, tile: usize) -> [usize; 2] {
        [tile / self.tiles[1] * SIDE, tile % self.tiles[1] * SIDE]
    }

    fn inputs(&self, tile: usize) -> [Option<usize>; SEEN * SEEN] {
        std::array::from_fn(|place| Self::pixel(self.input, self.first(tile), self.padding, place, SEEN))
    }

    fn outputs(&self, tile: usize) -> [Option<usize>; SIDE * SIDE] {
        std::array::from_fn(|place| Self::pixel(self.output, self.first(tile), 0, place, SIDE))
    }

    /// G g G', in the order it is read: pair, panel, place, input channel, output channel.
    pub(super) fn pack(&self, theta: &[f32], pool: &Arc<Pool>) -> Buffer {
        let Self { level, weights: Weights { inputs, outputs, .. }, .. } = *self;
        let panels = panels(level, outputs);
        let pair: usize = panels.iter().map(|panel| PLACES * place(inputs, panel.vectors * level.lanes())).sum();
        let mut packed = pool.lend(PAIRS * pair);
        let shared = Shared::new(&mut packed);
        let chunks = inputs.div_ceil(BLOCK);
        each(panels.len() * chunks, 16 * pair, |task| {
            let (panel, chunk) = (panels[task / chunks], task % chunks * BLOCK);
            let wide = panel.vectors * level.lanes();
            let mine = chunk..(chunk + BLOCK).min(inputs);
            let (home, step) = (home(level, panel, inputs) + mine.start * wide, place(inputs, wide));
            let end = home + (PAIRS - 1) * pair + (PLACES - 1) * step + mine.len() * wide;
            assert!(end <= PAIRS * pair, "the last place is within the buffer");
            scratch(mine.len() * 9 * wide, |windows| {
                self.windows(theta, &mine, (panel, wide), windows);
                for (k, window) in windows.chunks_exact(9 * wide).enumerate() {
                    for (index, transform) in Transforms::at(level).window.iter().enumerate() {
                        let (from, row) = self.start(window, wide);
                        let to = shared.at(home + index * pair + k * wide);
                        // SAFETY: nine rows of `wide` in; out of the pair's 12 places one row of `wide`, this task's own, the
                        // last of which was found to be within the buffer.
                        unsafe { transform(from, row, wide, to, step) };
                    }
                }
            });
        });
        packed
    }

    /// The windows of some inputs and of a panel's outputs: for each input nine rows of `wide`.
    fn windows(&self, theta: &[f32], inputs: &Range<usize>, (panel, wide): (Panel, usize), windows: &mut [f32]) {
        let chunks = inputs.clone().step_by(BLOCK).map(|first| first..(first + BLOCK).min(inputs.end));
        for (mine, windows) in chunks.zip(windows.chunks_mut(BLOCK * 9 * wide)) {
            blocks(self.weights, theta, &mine, (panel, wide), windows);
        }
    }

    /// Where the first row of a window is, and how far the next one is from it.
    fn start(&self, window: &[f32], wide: usize) -> (*const f32, isize) {
        let row = wide as isize;
        if self.turned { (window[8 * wide..].as_ptr(), -row) } else { (window.as_ptr(), row) }
    }

    /// Whether each window is read by one task alone, and all together are more than a cache holds.
    pub(super) fn once(&self, batch: usize) -> bool {
        const CACHE: usize = 1 << 22;
        36 * self.weights.inputs * self.weights.outputs > CACHE && self.units(batch).len() == 1
    }

    /// `output` = start + x * window, and its end, if there is one; `x`: pixels x batch x inputs.
    pub(super) fn product(
        &self,
        batch: usize,
        x: &[f32],
        weights: &Ready,
        (start, fold): (&Start, Option<Fold>),
        output: &mut [f32],
    ) {
        let Self { level, weights: Weights { inputs, outputs, .. }, .. } = *self;
        let pixels = |size: [usize; 2]| size[0] * size[1];
        // what the raw places rest on
        assert_eq!(x.len(), pixels(self.input) * batch * inputs, "an input has its geometry's size");
        assert_eq!(output.len(), pixels(self.output) * batch * outputs, "an output has its geometry's size");
        let units = self.units(batch);
        let panels = panels(level, outputs);
        let groups = groups(&panels, 2 * units.len());
        let work = self.tiles[0] * self.tiles[1] * batch * 36 * inputs * outputs;
        let shared = Shared::new(output);
        let job = Job { tiling: self, batch, x, weights };
        each(units.len() * groups.len(), work, |task| {
            let (mine, unit) = (groups[task % groups.len()], &units[task / groups.len()]);
            job.run(unit, mine, start, &shared);
            let Some(fold) = fold else { return };
            for pixel in unit.tiles.clone().flat_map(|tile| self.outputs(tile)).flatten() {
                // this task's own pixels, images and channels
                let home = pixel * batch;
                fold.end(home + unit.images.start..home + unit.images.end, channels(mine), &shared);
            }
        });
    }
}

/// The distance of two places with matrices of that size.
fn place(rows: usize, columns: usize) -> usize {
    rows * columns + SKEW
}

/// Where a panel's packed windows begin; all panels before it are full.
fn home(level: Level, panel: Panel, inputs: usize) -> usize {
    panel.start / level.panel() * PLACES * place(inputs, level.panel())
}

/// A product.
struct Job<'a> {
    tiling: &'a Tiling,
    batch: usize,
    x: &'a [f32],
    weights: &'a Ready<'a>,
}

impl Job<'_> {
    /// Some tiles, images and channels of the output, which nobody else touches meanwhile.
    fn run(&self, unit: &Unit, mine: &[Panel], start: &Start, output: &Shared) {
        let Self { tiling, batch, x, .. } = *self;
        let Tiling { level, weights: Weights { inputs, outputs, .. }, .. } = *tiling;
        let transforms = Transforms::at(level);
        let (rows, many) = (unit.rows(), unit.images.len());
        let run = many * inputs;
        let wide = level.panel();
        if let Start::Bias(Some(bias)) = start {
            self.fill(unit, mine, bias, output);
        }
        let fresh = matches!(start, Start::Bias(None));
        // windows of all panels, then places of some of one
        let room = match self.weights {
            Ready::Packed(_) => 0,
            Ready::Theta(_) => mine.len() * 9 * inputs * wide + PLACES * place(DEPTH.min(inputs), wide),
        };
        let sizes = [PLACES * place(rows, inputs), PLACES * place(rows, wide), run, room, many * outputs];
        scratch(sizes.iter().sum(), |space| {
            let (seen, rest) = space.split_at_mut(sizes[0]);
            let (products, rest) = rest.split_at_mut(sizes[1]);
            let (zeros, rest) = rest.split_at_mut(sizes[2]);
            let (room, spill) = rest.split_at_mut(sizes[3]);
            zeros.fill(0.0);
            if let Ready::Theta(theta) = self.weights {
                for (panel, windows) in mine.iter().zip(room.chunks_mut(9 * inputs * wide)) {
                    let wide = panel.vectors * level.lanes();
                    tiling.windows(theta, &(0..inputs), (*panel, wide), &mut windows[..9 * inputs * wide]);
                }
            }
            for pair in 0..PAIRS {
                for (index, tile) in unit.tiles.clone().enumerate() {
                    let pixels = tiling.inputs(tile).map(|pixel| match pixel {
                        Some(pixel) => x[(pixel * batch + unit.images.start) * inputs..][..run].as_ptr(),
                        None => zeros.as_ptr(),
                    });
                    let to = seen[index * run..].as_mut_ptr();
                    // SAFETY: runs of `run` elements in; in each of the 12 places of rows x inputs one such run out.
                    unsafe { (transforms.input[pair])(&pixels, 0, run, to, place(rows, inputs)) };
                }
                for (number, panel) in mine.iter().enumerate() {
                    let wide = panel.vectors * level.lanes();
                    match self.weights {
                        Ready::Packed(packed) => {
                            let windows = &packed[pair * (packed.len() / PAIRS) + home(level, *panel, inputs)..];
                            self.multiply(*panel, rows, seen, windows, products);
                        }
                        Ready::Theta(_) => {
                            let (windows, places) = room.split_at_mut(mine.len() * 9 * inputs * level.panel());
                            let windows = &windows[number * 9 * inputs * level.panel()..][..9 * inputs * wide];
                            self.transform_and_multiply(pair, *panel, rows, seen, (windows, places), products);
                        }
                    }
                    for (index, tile) in unit.tiles.clone().enumerate() {
                        let spill = spill.as_mut_ptr();
                        let pixels = tiling.outputs(tile).map(|pixel| match pixel {
                            Some(pixel) => output.at((pixel * batch + unit.images.start) * outputs),
                            None => spill,
                        });
                        let from = &products[index * many * wide..];
                        let fresh = fresh && pair == 0;
                        // SAFETY: 12 places of rows x wide in; at each pixel `many` rows of `outputs` elements, of which
                        // the panel's are this task's own.
                        unsafe {
                            let (from, step) = (Strided(from.as_ptr(), wide), place(rows, wide));
                            let to = pixels.map(|pixel| pixel.wrapping_add(panel.start));
                            (transforms.output[pair])(
                                many,
                                (panel.vectors, panel.last),
                                from,
                                step,
                                &to,
                                outputs,
                                fresh,
                            );
                        }
                    }
                }
            }
        });
    }

    /// For each of a pair's 12 places, rows x inputs of `seen` times the windows of a panel.
    fn multiply(&self, panel: Panel, rows: usize, seen: &[f32], windows: &[f32], products: &mut [f32]) {
        let Tiling { level, weights: Weights { inputs, .. }, .. } = *self.tiling;
        let wide = panel.vectors * level.lanes();
        for index in 0..PLACES {
            let windows = &windows[index * place(inputs, wide)..][..inputs * wide];
            let a = &seen[index * place(rows, inputs)..][..rows * inputs];
            let c = &mut products[index * place(rows, wide)..][..rows * wide];
            for mine in depths(inputs) {
                multiply(level, (a, inputs), &mine, &windows[mine.start * wide..], c, panel.vectors);
            }
        }
    }

    /// The same from windows as they are: what is multiplied next is transformed into `places`.
    fn transform_and_multiply(
        &self,
        pair: usize,
        panel: Panel,
        rows: usize,
        seen: &[f32],
        (windows, places): (&[f32], &mut [f32]),
        products: &mut [f32],
    ) {
        let Tiling { level, weights: Weights { inputs, .. }, .. } = *self.tiling;
        let wide = panel.vectors * level.lanes();
        for mine in depths(inputs) {
            let step = place(mine.len(), wide);
            assert!(PLACES * step <= places.len(), "the last place is within the room");
            for (k, window) in windows[9 * wide * mine.start..].chunks_exact(9 * wide).take(mine.len()).enumerate() {
                let (from, row) = self.tiling.start(window, wide);
                // SAFETY: nine rows of `wide` in; one row of `wide`, of as many as a place has, in each of the 12 places out.
                unsafe { (Transforms::at(level).window[pair])(from, row, wide, places[k * wide..].as_mut_ptr(), step) };
            }
            for index in 0..PLACES {
                let a = &seen[index * place(rows, inputs)..][..rows * inputs];
                let c = &mut products[index * place(rows, wide)..][..rows * wide];
                multiply(level, (a, inputs), &mine, &places[index * step..], c, panel.vectors);
            }
        }
    }

    fn fill(&self, unit: &Unit, mine: &[Panel], bias: &[f32], output: &Shared) {
        for pixel in unit.tiles.clone().flat_map(|tile| self.tiling.outputs(tile)).flatten() {
            for image in unit.images.clone() {
                for panel in mine {
                    let place = (pixel * self.batch + image) * self.tiling.weights.outputs + panel.start;
                    // SAFETY: this task's own pixels, images and channels.
                    let part = unsafe { output.part(place, panel.width) };
                    part.copy_from_slice(&bias[panel.start..panel.start + panel.width]);
                }
            }
        }
    }
}

/// The inputs that are summed before the sums go to memory, one part after the other.
fn depths(inputs: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inputs).step_by(DEPTH).map(move |first| first..(first + DEPTH).min(inputs))
}

/// c = a b, of some of the inputs, the first of which write and the others add: rows x inputs times rows of whole vectors.
fn multiply(level: Level, (a, inputs): (&[f32], usize), mine: &Range<usize>, b: &[f32], c: &mut [f32], vectors: usize) {
    let rows = a.len() / inputs;
    let wide = c.len() / rows;
    let b = &b[..mine.len() * wide];
    for (row, kernel) in strips(rows, level.block(vectors)) {
        let a = Strided(a[row * inputs + mine.start..].as_ptr(), inputs);
        // SAFETY: `strips` stays below `rows`; each row of `a` has `mine` of its elements, `b` as many rows of `wide`, `c` rows
        // of `wide`.
        unsafe { kernel(mine.len(), a, b.as_ptr(), (c[row * wide..].as_mut_ptr(), wide), mine.start == 0) };
    }
}
