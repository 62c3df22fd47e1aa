//! Batch norm with what follows it, a residual and a leaky or plain ReLU, in one: two passes over memory forward, two
//! back. Sums go over chunks of fixed size and are combined in a fixed order (Chan, Golub and LeVeque 1983). Share of the
//! bound, which is memory's (docs/kernels.md): at least 1.2 but for the moments, 0.4 to 1.1; more than 1 out of a cache.

use std::ops::Range;

use super::number::Number;
use super::parallel::{Shared, each};
use crate::kernels::EPSILON;
use crate::kernels::steps::After;
use crate::wide::wide;

/// Elements in one chunk, about: it stays in a first- or second-level cache.
const CHUNK: usize = 16_384;

/// How channels and rows are cut. Several rows of few channels make one wide row, so that loops are long enough to
/// vectorise.
#[derive(Clone, Copy)]
struct Cut {
    channels: usize,
    /// Elements of a wide row: a multiple of the channels.
    wide: usize,
    /// Elements of a chunk: a multiple of a wide row.
    chunk: usize,
    total: usize,
}

impl Cut {
    /// For loops that change nothing but each element: long wide rows.
    fn long(channels: usize, total: usize) -> Self {
        Self::new(channels, total, 512)
    }

    /// For sums, whose bits depend on how long a wide row is: those of f32 are what they were.
    fn sums<N: Number>(channels: usize, total: usize) -> Self {
        Self::new(channels, total, if N::FULL { 64 } else { 512 })
    }

    fn new(channels: usize, total: usize, least: usize) -> Self {
        let wide = channels * least.div_ceil(channels);
        Self { channels, wide, chunk: wide * CHUNK.div_ceil(wide), total }
    }

    fn chunks(&self) -> usize {
        self.total.div_ceil(self.chunk)
    }

    fn range(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.total)
    }

    /// Per-channel numbers over a wide row.
    fn spread(&self, values: &[f32]) -> Vec<f32> {
        values.iter().copied().cycle().take(self.wide).collect()
    }

    /// Sums over a wide row to sums over channels.
    fn fold(&self, wide: &[f32], sums: &mut [f32]) {
        sums.fill(0.0);
        for part in wide.chunks_exact(self.channels) {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// What one batch saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) mean: Vec<f32>,
    /// Biased.
    pub(super) variance: Vec<f32>,
}

wide! {
    fn sum<N: Number>(x: &[N], wide: &mut [f32]) {
        for row in x.chunks(wide.len()) {
            wide.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.wide());
        }
    }
}

wide! {
    fn squares<N: Number>(x: &[N], mean: &[f32], wide: &mut [f32]) {
        for row in x.chunks(wide.len()) {
            for ((sum, x), mean) in wide.iter_mut().zip(row).zip(mean) {
                let d = x.wide() - mean;
                *sum += d * d;
            }
        }
    }
}

/// Mean and variance of each channel; `x` is rows x channels.
pub(super) fn moments<N: Number>(x: &[N], channels: usize) -> Seen {
    let cut = Cut::sums::<N>(channels, x.len());
    let mut partial = vec![0.0_f32; cut.chunks() * 2 * channels];
    let shared = Shared::new(&mut partial);
    each(cut.chunks(), x.len() * 4, |chunk| {
        let x = &x[cut.range(chunk)];
        // SAFETY: each task has its own chunk's sums.
        let (mean, squared) = unsafe { shared.part(chunk * 2 * channels, 2 * channels) }.split_at_mut(channels);
        let mut wide = vec![0.0; cut.wide];
        sum(x, &mut wide);
        cut.fold(&wide, mean);
        let count = (x.len() / channels) as f32;
        for mean in &mut *mean {
            *mean /= count;
        }
        wide.fill(0.0);
        squares(x, &cut.spread(mean), &mut wide);
        cut.fold(&wide, squared);
    });
    let mut mean = vec![0.0_f64; channels];
    let mut squared = vec![0.0_f64; channels];
    let mut seen = 0.0;
    for (chunk, part) in partial.chunks_exact(2 * channels).enumerate() {
        let count = (cut.range(chunk).len() / channels) as f64;
        let share = count / (seen + count);
        for c in 0..channels {
            let apart = f64::from(part[c]) - mean[c];
            mean[c] += apart * share;
            squared[c] += f64::from(part[channels + c]) + apart * apart * seen * share;
        }
        seen += count;
    }
    Seen {
        mean: mean.into_iter().map(|x| x as f32).collect(),
        variance: squared.into_iter().map(|x| (x / seen) as f32).collect(),
    }
}

/// 1 / sqrt(variance + eps).
pub(super) fn inverse(variance: &[f32]) -> Vec<f32> {
    variance.iter().map(|&v| (1.0 / (f64::from(v) + EPSILON).sqrt()) as f32).collect()
}

wide! {
    fn line<N: Number>(x: &[N], scale: &[f32], shift: &[f32], residual: Option<&[N]>, after: After, y: &mut [N]) {
        let wide = scale.len();
        let slope = after.slope();
        let end = |sum: f32| N::nearest(if sum > 0.0 { sum } else { sum * slope });
        let rows = y.chunks_mut(wide).zip(x.chunks(wide));
        if let Some(residual) = residual {
            for ((y, x), r) in rows.zip(residual.chunks(wide)) {
                for ((((y, x), scale), shift), r) in y.iter_mut().zip(x).zip(scale).zip(shift).zip(r) {
                    *y = end(x.wide() * scale + shift + r.wide());
                }
            }
        } else {
            for (y, x) in rows {
                for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                    *y = end(x.wide() * scale + shift);
                }
            }
        }
    }
}

wide! {
    /// `line` in place, of one row of sums.
    pub(super) fn end<N: Number>(y: &mut [f32], scale: &[f32], shift: &[f32], residual: Option<&[N]>, after: After) {
        let slope = after.slope();
        let end = |sum: f32| if sum > 0.0 { sum } else { sum * slope };
        let columns = y.iter_mut().zip(scale).zip(shift);
        match residual {
            Some(residual) => {
                columns.zip(residual).for_each(|(((y, scale), shift), r)| *y = end(*y * scale + shift + r.wide()));
            }
            None => columns.for_each(|((y, scale), shift)| *y = end(*y * scale + shift)),
        }
    }
}

/// Batch norm as x scale + shift.
pub(super) fn line_of([mean, inverse, weight, bias]: [&[f32]; 4]) -> [Vec<f32>; 2] {
    let scale = weight.iter().zip(inverse).map(|(w, i)| w * i).collect();
    let shift = (0..mean.len()).map(|c| {
        let scale = f64::from(weight[c]) * f64::from(inverse[c]);
        (f64::from(bias[c]) - f64::from(mean[c]) * scale) as f32
    });
    [scale, shift.collect()]
}

/// y = after((x - mean) inverse weight + bias + residual).
pub(super) fn forward<N: Number>(
    x: &[N],
    [mean, inverse, weight, bias]: [&[f32]; 4],
    residual: Option<&[N]>,
    after: After,
    y: &mut [N],
) {
    let channels = mean.len();
    let cut = Cut::long(channels, x.len());
    let [scale, shift] = line_of([mean, inverse, weight, bias]).map(|line| cut.spread(&line));
    let shared = Shared::new(y);
    each(cut.chunks(), x.len() * 4, |chunk| {
        let range = cut.range(chunk);
        // SAFETY: each task has its own chunk.
        let y = unsafe { shared.part(range.start, range.len()) };
        line(&x[range.clone()], &scale, &shift, residual.map(|r| &r[range]), after, y);
    });
}

/// What decides on the gradient before what follows: of a leaky ReLU with that slope, whether its input was above 0.
#[derive(Clone, Copy)]
enum Gate<'a, N> {
    /// The value that came out: with a residual.
    Value(&'a [N]),
    /// x scale + shift, over a wide row: one pass over memory less.
    Line { scale: &'a [f32], shift: &'a [f32] },
}

fn gate<'a, N>(added: Option<&'a [N]>, part: Range<usize>, scale: &'a [f32], shift: &'a [f32]) -> Gate<'a, N> {
    added.map_or(Gate::Line { scale, shift }, |y| Gate::Value(&y[part]))
}

wide! {
    /// The sum of the gradient before what follows, and its sum times (x - mean). Where the gate is a value, that gradient
    /// is left in `gradient`.
    fn sums<N: Number>(
        x: &[N],
        gate: Gate<'_, N>,
        slope: f32,
        mean: &[f32],
        gradient: &mut [N],
        plain: &mut [f32],
        times: &mut [f32],
    ) {
        let wide = mean.len();
        match gate {
            Gate::Value(y) => {
                for ((g, y), x) in gradient.chunks_mut(wide).zip(y.chunks(wide)).zip(x.chunks(wide)) {
                    for (g, y) in g.iter_mut().zip(y) {
                        *g = if y.wide() > 0.0 { *g } else { N::nearest(g.wide() * slope) };
                    }
                    for ((((g, x), mean), plain), times) in g.iter().zip(x).zip(mean).zip(&mut *plain).zip(&mut *times) {
                        *plain += g.wide();
                        *times += g.wide() * (x.wide() - mean);
                    }
                }
            }
            Gate::Line { scale, shift } => {
                for (g, x) in gradient.chunks(wide).zip(x.chunks(wide)) {
                    let sums = plain.iter_mut().zip(&mut *times);
                    let of_channels = scale.iter().zip(shift).zip(mean);
                    for (((g, x), ((scale, shift), mean)), (plain, times)) in g.iter().zip(x).zip(of_channels).zip(sums) {
                        let (g, x) = (g.wide(), x.wide());
                        let g = if x * scale + shift > 0.0 { g } else { g * slope };
                        *plain += g;
                        *times += g * (x - mean);
                    }
                }
            }
        }
    }
}

/// Over a wide row: below = g scale - constant - (x - mean) slope.
#[derive(Clone, Copy)]
struct Factors<'a> {
    scale: &'a [f32],
    constant: &'a [f32],
    slope: &'a [f32],
}

wide! {
    fn apply<N: Number>(
        g: &[N],
        x: &[N],
        gate: Gate<'_, N>,
        slope: f32,
        mean: &[f32],
        factors: Factors<'_>,
        below: &mut [N],
    ) {
        let wide = mean.len();
        let rows = below.chunks_mut(wide).zip(g.chunks(wide)).zip(x.chunks(wide));
        let Factors { scale: scales, constant: constants, slope: slopes } = factors;
        match gate {
            // it is that before what follows already
            Gate::Value(_) => {
                for ((below, g), x) in rows {
                    for (c, ((below, g), x)) in below.iter_mut().zip(g).zip(x).enumerate() {
                        *below = N::nearest(g.wide() * scales[c] - constants[c] - (x.wide() - mean[c]) * slopes[c]);
                    }
                }
            }
            Gate::Line { scale, shift } => {
                for ((below, g), x) in rows {
                    for (c, ((below, g), x)) in below.iter_mut().zip(g).zip(x).enumerate() {
                        let (g, x) = (g.wide(), x.wide());
                        let g = if x * scale[c] + shift[c] > 0.0 { g } else { g * slope };
                        *below = N::nearest(g * scales[c] - constants[c] - (x - mean[c]) * slopes[c]);
                    }
                }
            }
        }
    }
}

/// Gradients of batch norm.
pub(super) struct Gradients {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// `gradient`: of y; where a residual was added, `added` is y, and `gradient` becomes that before what follows, which is the
/// residual's too. `below`: of x. With `batch` statistics, mean and variance depend on x.
pub(super) fn backward<N: Number>(
    x: &[N],
    added: Option<&[N]>,
    [mean, inverse, weight, bias]: [&[f32]; 4],
    batch: bool,
    after: After,
    gradient: &mut [N],
    below: Option<&mut [N]>,
) -> Gradients {
    let channels = mean.len();
    let slope = after.slope();
    let line = line_of([mean, inverse, weight, bias]);
    let cut = Cut::sums::<N>(channels, x.len());
    let [wide_mean, scale, shift] = [mean, &line[0], &line[1]].map(|values| cut.spread(values));
    let mut partial = vec![0.0_f32; cut.chunks() * 2 * channels];
    let (shared, shared_gradient) = (Shared::new(&mut partial), Shared::new(gradient));
    each(cut.chunks(), x.len() * 6, |chunk| {
        let range = cut.range(chunk);
        // SAFETY: each task has its own chunk and its sums.
        let (part, g) = unsafe {
            (shared.part(chunk * 2 * channels, 2 * channels), shared_gradient.part(range.start, range.len()))
        };
        let (mut plain, mut times) = (vec![0.0; cut.wide], vec![0.0; cut.wide]);
        sums(&x[range.clone()], gate(added, range, &scale, &shift), slope, &wide_mean, g, &mut plain, &mut times);
        let (a, b) = part.split_at_mut(channels);
        cut.fold(&plain, a);
        cut.fold(&times, b);
    });
    let mut totals = vec![0.0_f64; 2 * channels];
    for part in partial.chunks_exact(2 * channels) {
        totals.iter_mut().zip(part).for_each(|(total, &x)| *total += f64::from(x));
    }
    let (plain, times) = totals.split_at(channels);
    if let Some(below) = below {
        let count = (x.len() / channels) as f64;
        let cut = Cut::long(channels, x.len());
        let [wide_mean, scale, shift] = [mean, &line[0], &line[1]].map(|values| cut.spread(values));
        let of = |f: &dyn Fn(usize) -> f64| cut.spread(&(0..channels).map(|c| f(c) as f32).collect::<Vec<_>>());
        let own = |c: usize| f64::from(weight[c]) * f64::from(inverse[c]);
        let through = if batch { 1.0 / count } else { 0.0 };
        let scales = of(&own);
        let constants = of(&|c| through * own(c) * plain[c]);
        let slopes = of(&|c| through * own(c) * times[c] * f64::from(inverse[c]).powi(2));
        let factors = Factors { scale: &scales, constant: &constants, slope: &slopes };
        let shared = Shared::new(below);
        let gradient = &*gradient;
        each(cut.chunks(), x.len() * 4, |chunk| {
            let range = cut.range(chunk);
            // SAFETY: each task has its own chunk.
            let below = unsafe { shared.part(range.start, range.len()) };
            let (g, x) = (&gradient[range.clone()], &x[range.clone()]);
            apply(g, x, gate(added, range, &scale, &shift), slope, &wide_mean, factors, below);
        });
    }
    Gradients {
        weight: times.iter().zip(inverse).map(|(&t, &i)| (t * f64::from(i)) as f32).collect(),
        bias: plain.iter().map(|&p| p as f32).collect(),
    }
}
