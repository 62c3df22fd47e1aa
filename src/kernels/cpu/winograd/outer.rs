//! The gradient of weights by Winograd's algorithm: G' [sum over tiles of (B' d B) o (A dY A')] G, d the inputs of a tile and dY the
//! gradient of its outputs.

use std::ops::Range;
use std::sync::Arc;

use super::super::buffer::{Pool, scratch};
use super::super::outer::in_parts;
use super::super::parallel::{Shared, each};
use super::super::product::TASKS;
use super::super::simd::{Level, Strided};
use super::super::transform::{PAIRS, Transforms};
use super::super::weights::{Weights, panels, strips};
use super::{PLACES, Tiling, Unit, place};

/// Channels that one task of the gradient of weights takes, of inputs and of outputs: its 36 sums stay in a second-level
/// cache.
const SLICE: usize = 64;

impl Tiling {
    /// The gradient of the weights, into theta's layout. `above`: gradient of the output.
    pub(in super::super) fn gradient(
        &self,
        batch: usize,
        x: &[f32],
        above: &[f32],
        pool: &Arc<Pool>,
        gradient: &mut [f32],
    ) {
        let Weights { inputs, outputs, .. } = self.weights;
        let pixels = |size: [usize; 2]| size[0] * size[1];
        assert_eq!(x.len(), pixels(self.input) * batch * inputs, "an input has its geometry's size");
        assert_eq!(above.len(), pixels(self.output) * batch * outputs, "a gradient has its geometry's size");
        let units = self.units(batch);
        let cut = |channels: usize| channels.div_ceil(channels.div_ceil(SLICE)).next_multiple_of(16).min(channels);
        let (slice, strip) = (cut(inputs), cut(outputs));
        let (slices, strips) = (inputs.div_ceil(slice), outputs.div_ceil(strip));
        // where channels give few tasks, tiles are shared out too, and each group of them has sums of its own
        let groups = (TASKS / 2).div_ceil(slices * strips).min(units.len());
        let group = units.len().div_ceil(groups);
        let groups = units.len().div_ceil(group);
        let size = 9 * inputs * outputs;
        assert_eq!(gradient.len(), size, "weights have their layer's size");
        let work = self.tiles[0] * self.tiles[1] * batch * 36 * inputs * outputs;
        in_parts(groups, pool, gradient, |shared| {
            each(groups * slices * strips, work, |task| {
                let (mine, task) = (task / (slices * strips), task % (slices * strips));
                let (input, output) = (task / strips * slice, task % strips * strip);
                let (from, to) = (input..(input + slice).min(inputs), output..(output + strip).min(outputs));
                let part = Outer { tiling: self, batch, from, to, home: mine * size };
                part.run(&units[mine * group..((mine + 1) * group).min(units.len())], x, above, shared);
            });
        });
    }
}

/// One task of the gradient of the weights: some tiles, some input and output channels.
struct Outer<'a> {
    tiling: &'a Tiling,
    batch: usize,
    from: Range<usize>,
    to: Range<usize>,
    /// Where the windows of this task's tiles begin.
    home: usize,
}

impl Outer<'_> {
    fn run(&self, units: &[Unit], x: &[f32], above: &[f32], windows: &Shared) {
        let Self { tiling, ref from, ref to, home, .. } = *self;
        let Tiling { level, weights, .. } = *tiling;
        let (deep, wide) = (from.len(), to.len().next_multiple_of(level.lanes()));
        let most = units.iter().map(Unit::rows).max().unwrap_or(0);
        let images = units.iter().map(|unit| unit.images.len()).max().unwrap_or(0);
        let none = weights.inputs.max(weights.outputs) * images;
        let apart = place(deep, wide);
        let sizes = [PAIRS * PLACES * apart, PLACES * place(most, deep), PLACES * place(most, wide), none, 9 * wide];
        scratch(sizes.iter().sum(), |space| {
            let (places, rest) = space.split_at_mut(sizes[0]);
            let (seen, rest) = rest.split_at_mut(sizes[1]);
            let (gradients, rest) = rest.split_at_mut(sizes[2]);
            let (zeros, window) = rest.split_at_mut(sizes[3]);
            places.fill(0.0);
            zeros.fill(0.0);
            for unit in units {
                for pair in 0..PAIRS {
                    self.transform(unit, pair, [x, above], zeros, [&mut *seen, &mut *gradients]);
                    let rows = unit.rows();
                    for index in 0..PLACES {
                        let a = &seen[index * place(rows, deep)..][..rows * deep];
                        let b = &gradients[index * place(rows, wide)..][..rows * wide];
                        let c = &mut places[(pair * PLACES + index) * apart..][..deep * wide];
                        accumulate(level, rows, a, b, c);
                    }
                }
            }
            for (k, input) in from.clone().enumerate() {
                let places = &places[k * wide..];
                assert!((PAIRS * PLACES - 1) * apart + wide <= places.len(), "the last place is among the sums");
                // SAFETY: a row of each of the 36 places in, nine rows of whole vectors out.
                unsafe { (Transforms::at(level).unwindow)(places.as_ptr(), apart, wide, window.as_mut_ptr()) };
                for (n, output) in to.clone().enumerate() {
                    let at = home + input * weights.input_step + output * weights.output_step;
                    // SAFETY: each task has its own tiles, input and output channels.
                    let to = unsafe { windows.part(at, 9) };
                    for (index, to) in to.iter_mut().enumerate() {
                        *to = window[index * wide + n];
                    }
                }
            }
        });
    }

    /// The 12 places of a pair of rows: of the inputs rows x channels, of the gradients rows x whole vectors.
    fn transform(
        &self,
        unit: &Unit,
        pair: usize,
        [x, above]: [&[f32]; 2],
        zeros: &[f32],
        [seen, gradients]: [&mut [f32]; 2],
    ) {
        let Self { tiling, batch, ref from, ref to, .. } = *self;
        let Tiling { level, weights: Weights { inputs, outputs, .. }, .. } = *tiling;
        let transforms = Transforms::at(level);
        let (rows, many) = (unit.rows(), unit.images.len());
        let (deep, wide) = (from.len(), to.len().next_multiple_of(level.lanes()));
        let pixel = |data: &[f32], pixel: Option<usize>, channels: usize| match pixel {
            Some(pixel) => data[(pixel * batch + unit.images.start) * channels..][..many * channels].as_ptr(),
            None => zeros.as_ptr(),
        };
        // all images at once where rows follow each other, else one after the other
        let all = |channels: usize, mine: usize, room: usize| {
            if channels == mine && mine == room { (1, many * mine) } else { (many, mine) }
        };
        for (index, tile) in unit.tiles.clone().enumerate() {
            let pixels = tiling.inputs(tile).map(|place| pixel(x, place, inputs));
            let (times, run) = all(inputs, deep, deep);
            for image in 0..times {
                let seen = seen[(index * many + image) * deep..].as_mut_ptr();
                // SAFETY: at each pixel `many` rows of all channels, of which this task's are read; one row, or all, in each
                // of the 12 places out.
                unsafe {
                    let start = image * inputs + from.start;
                    (transforms.input[pair])(&pixels, start, run, seen, place(rows, deep));
                }
            }
            let pixels = tiling.outputs(tile).map(|place| pixel(above, place, outputs));
            let (times, run) = all(outputs, to.len(), wide);
            for image in 0..times {
                let gradients = gradients[(index * many + image) * wide..].as_mut_ptr();
                // SAFETY: as above.
                unsafe {
                    let start = image * outputs + to.start;
                    (transforms.gradient[pair])(&pixels, start, run, gradients, place(rows, wide));
                }
            }
        }
    }
}

/// c += a' b: rows x inputs, turned, times rows x whole vectors.
fn accumulate(level: Level, rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let (deep, wide) = (a.len() / rows, b.len() / rows);
    for panel in panels(level, wide) {
        for (input, kernel) in strips(deep, level.outer(panel.vectors)) {
            let c = c[input * wide + panel.start..].as_mut_ptr();
            let (a, b) = (Strided(a[input..].as_ptr(), deep), Strided(b[panel.start..].as_ptr(), wide));
            // SAFETY: `a` has `rows` rows of `deep` elements, of which `strips` stays within, `b` as many of whole vectors,
            // and `c` has `deep` of them.
            unsafe { kernel(rows, a, b, (c, wide), panel.last) };
        }
    }
}
