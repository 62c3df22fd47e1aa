//! Batch norm with what follows it, a residual and a leaky or plain ReLU, in one: two passes over memory forward, two
//! back. Sums go over chunks of fixed size and are combined in a fixed order (Chan, Golub and LeVeque 1983).

use super::number::Number;
use super::parallel::{Shared, each};
use crate::kernels::EPSILON;
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
    fn new(channels: usize, total: usize) -> Self {
        let wide = channels * 64_usize.div_ceil(channels);
        Self { channels, wide, chunk: wide * CHUNK.div_ceil(wide), total }
    }

    fn chunks(&self) -> usize {
        self.total.div_ceil(self.chunk)
    }

    fn range(&self, chunk: usize) -> std::ops::Range<usize> {
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
    let cut = Cut::new(channels, x.len());
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

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum After {
    Nothing,
    /// Slope below 0; plain ReLU has 0.
    Leaky(f32),
}

/// 1 / sqrt(variance + eps).
pub(super) fn inverse(variance: &[f32]) -> Vec<f32> {
    variance.iter().map(|&v| (1.0 / (f64::from(v) + EPSILON).sqrt()) as f32).collect()
}

wide! {
    fn line<N: Number>(x: &[N], scale: &[f32], shift: &[f32], residual: Option<&[N]>, after: After, y: &mut [N]) {
        let wide = scale.len();
        // a slope of 1 is none
        let slope = if let After::Leaky(slope) = after { slope } else { 1.0 };
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

/// y = after((x - mean) inverse weight + bias + residual).
pub(super) fn forward<N: Number>(
    x: &[N],
    [mean, inverse, weight, bias]: [&[f32]; 4],
    residual: Option<&[N]>,
    after: After,
    y: &mut [N],
) {
    let channels = mean.len();
    let cut = Cut::new(channels, x.len());
    let scale: Vec<f32> = weight.iter().zip(inverse).map(|(w, i)| w * i).collect();
    let shift: Vec<f32> = (0..channels)
        .map(|c| {
            let scale = f64::from(weight[c]) * f64::from(inverse[c]);
            (f64::from(bias[c]) - f64::from(mean[c]) * scale) as f32
        })
        .collect();
    let (scale, shift) = (cut.spread(&scale), cut.spread(&shift));
    let shared = Shared::new(y);
    each(cut.chunks(), x.len() * 4, |chunk| {
        let range = cut.range(chunk);
        // SAFETY: each task has its own chunk.
        let y = unsafe { shared.part(range.start, range.len()) };
        line(&x[range.clone()], &scale, &shift, residual.map(|r| &r[range]), after, y);
    });
}

wide! {
    /// The gradient before what follows, in place, with its sum and its sum times (x - mean).
    fn sums<N: Number>(x: &[N], y: &[N], mean: &[f32], after: After, gradient: &mut [N], plain: &mut [f32], times: &mut [f32]) {
        let wide = mean.len();
        for ((g, y), x) in gradient.chunks_mut(wide).zip(y.chunks(wide)).zip(x.chunks(wide)) {
            if let After::Leaky(slope) = after {
                for (g, y) in g.iter_mut().zip(y) {
                    *g = if y.wide() > 0.0 { *g } else { N::nearest(g.wide() * slope) };
                }
            }
            for ((((g, x), mean), plain), times) in g.iter().zip(x).zip(mean).zip(&mut *plain).zip(&mut *times) {
                *plain += g.wide();
                *times += g.wide() * (x.wide() - mean);
            }
        }
    }
}

wide! {
    fn apply<N: Number>(g: &[N], x: &[N], mean: &[f32], factors: (&[f32], &[f32], &[f32]), below: &mut [N]) {
        let wide = mean.len();
        let (scale, constant, slope) = factors;
        for ((below, g), x) in below.chunks_mut(wide).zip(g.chunks(wide)).zip(x.chunks(wide)) {
            for (c, ((below, g), x)) in below.iter_mut().zip(g).zip(x).enumerate() {
                let own = g.wide() * scale[c] - constant[c] - (x.wide() - mean[c]) * slope[c];
                *below = N::nearest(own);
            }
        }
    }
}

/// Gradients of batch norm.
pub(super) struct Gradients {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// `gradient`: of y; becomes that before what follows, which is the residual's too. `below`: of x. With `batch`
/// statistics, mean and variance depend on x.
pub(super) fn backward<N: Number>(
    x: &[N],
    y: &[N],
    [mean, inverse, weight]: [&[f32]; 3],
    batch: bool,
    after: After,
    gradient: &mut [N],
    below: Option<&mut [N]>,
) -> Gradients {
    let channels = mean.len();
    let cut = Cut::new(channels, x.len());
    let wide_mean = cut.spread(mean);
    let mut partial = vec![0.0_f32; cut.chunks() * 2 * channels];
    let (shared, shared_gradient) = (Shared::new(&mut partial), Shared::new(gradient));
    each(cut.chunks(), x.len() * 6, |chunk| {
        let range = cut.range(chunk);
        // SAFETY: each task has its own chunk and its sums.
        let (part, g) = unsafe {
            (shared.part(chunk * 2 * channels, 2 * channels), shared_gradient.part(range.start, range.len()))
        };
        let (mut plain, mut times) = (vec![0.0; cut.wide], vec![0.0; cut.wide]);
        sums(&x[range.clone()], &y[range], &wide_mean, after, g, &mut plain, &mut times);
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
        let of = |f: &dyn Fn(usize) -> f64| cut.spread(&(0..channels).map(|c| f(c) as f32).collect::<Vec<_>>());
        let scale = |c: usize| f64::from(weight[c]) * f64::from(inverse[c]);
        let through = if batch { 1.0 / count } else { 0.0 };
        let scales = of(&scale);
        let constants = of(&|c| through * scale(c) * plain[c]);
        let slopes = of(&|c| through * scale(c) * times[c] * f64::from(inverse[c]).powi(2));
        let shared = Shared::new(below);
        let gradient = &*gradient;
        each(cut.chunks(), x.len() * 4, |chunk| {
            let range = cut.range(chunk);
            // SAFETY: each task has its own chunk.
            let below = unsafe { shared.part(range.start, range.len()) };
            apply(&gradient[range.clone()], &x[range], &wide_mean, (&scales, &constants, &slopes), below);
        });
    }
    Gradients {
        weight: times.iter().zip(inverse).map(|(&t, &i)| (t * f64::from(i)) as f32).collect(),
        bias: plain.iter().map(|&p| p as f32).collect(),
    }
}
