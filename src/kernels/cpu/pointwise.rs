//! The small layers: activations, pooling, layout. Values lie as height x width x batch x channels. Share of the bound, which is
//! memory's (docs/kernels.md): max-pooling and means 0.6 to 1.7, activations 1.3 to 3, out of a cache.

#![expect(clippy::inline_always, reason = "parts of loops that are compiled for several vector widths")]

use std::sync::{Mutex, PoisonError};

use super::number::{Number, convert};
use super::parallel::{Shared, each};
use crate::kernels::Window;
use crate::kernels::steps::{Activation, Slide};
use crate::wide::wide;

const CHUNK: usize = 16_384;

impl Activation {
    pub(super) fn forward<N: Number>(self, x: &[N], y: &mut [N]) {
        let shared = Shared::new(y);
        let cost = if matches!(self, Activation::Leaky(_)) { 2 } else { 32 };
        each(x.len().div_ceil(CHUNK), x.len() * cost, |chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(x.len());
            // SAFETY: each task has its own chunk.
            let (x, y) = (&x[range.clone()], unsafe { shared.part(range.start, range.len()) });
            match self {
                Activation::Leaky(slope) => leaky(x, y, slope),
                Activation::Sigmoid => map(x, y, |x| 1.0 / (1.0 + (-x).exp())),
                Activation::Tanh => map(x, y, f32::tanh),
            }
        });
    }

    /// The gradient of x from that of y, in place.
    pub(super) fn backward<N: Number>(self, y: &[N], gradient: &mut [N]) {
        let shared = Shared::new(gradient);
        each(y.len().div_ceil(CHUNK), y.len() * 2, |chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(y.len());
            // SAFETY: each task has its own chunk.
            let (y, g) = (&y[range.clone()], unsafe { shared.part(range.start, range.len()) });
            match self {
                Activation::Leaky(slope) => leaky_back(y, g, slope),
                Activation::Sigmoid => times(y, g, |y| y * (1.0 - y)),
                Activation::Tanh => times(y, g, |y| 1.0 - y * y),
            }
        });
    }
}

wide! {
    fn leaky<N: Number>(x: &[N], y: &mut [N], slope: f32) {
        for (x, y) in x.iter().zip(y) {
            let x = x.wide();
            *y = N::nearest(if x > 0.0 { x } else { slope * x });
        }
    }
}

wide! {
    fn leaky_back<N: Number>(y: &[N], gradient: &mut [N], slope: f32) {
        for (y, g) in y.iter().zip(gradient) {
            *g = N::nearest(g.wide() * if y.wide() > 0.0 { 1.0 } else { slope });
        }
    }
}

fn map<N: Number>(x: &[N], y: &mut [N], of: impl Fn(f32) -> f32) {
    x.iter().zip(y).for_each(|(x, y)| *y = N::nearest(of(x.wide())));
}

fn times<N: Number>(y: &[N], gradient: &mut [N], slope: impl Fn(f32) -> f32) {
    y.iter().zip(gradient).for_each(|(y, g)| *g = N::nearest(g.wide() * slope(y.wide())));
}

wide! {
    /// a += b.
    pub(super) fn add<A: Number, B: Number>(a: &mut [A], b: &[B]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = A::nearest(a.wide() + b.wide()));
    }
}

/// a += b, on all threads.
pub(super) fn add_all<N: Number>(a: &mut [N], b: &[N]) {
    let shared = Shared::new(a);
    each(b.len().div_ceil(CHUNK), b.len() * 2, |chunk| {
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(b.len());
        // SAFETY: each task has its own chunk.
        add(unsafe { shared.part(range.start, range.len()) }, &b[range]);
    });
}

wide! {
    /// a *= b.
    pub(super) fn multiply<N: Number>(a: &mut [N], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = N::nearest(a.wide() * b));
    }
}

wide! {
    fn scaled<N: Number>(to: &mut [f32], from: &[N], factor: f32) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from.wide() * factor);
    }
}

/// Values that are gathered at a time, in registers.
const LANES: usize = 32;

wide! {
    /// The largest of what some pixels hold, value by value, and its place in the window. `seen`: places, and where the pixels begin.
    fn largest<N: Number>(x: &[N], seen: &[(u8, usize)], y: &mut [N], choice: &mut [u8]) {
        let whole = y.len() / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            largest_of::<N, LANES>(x, seen, start, y, choice);
        }
        for start in whole..y.len() {
            largest_of::<N, 1>(x, seen, start, y, choice);
        }
    }
}

#[inline(always)]
fn largest_of<N: Number, const COUNT: usize>(
    x: &[N],
    seen: &[(u8, usize)],
    start: usize,
    y: &mut [N],
    choice: &mut [u8],
) {
    let (mut best, mut places) = ([f32::NEG_INFINITY; COUNT], [0_u32; COUNT]);
    for &(place, from) in seen {
        let x = &x[from + start..][..COUNT];
        for lane in 0..COUNT {
            let x = x[lane].wide();
            // strictly greater: of equal values the first keeps the gradient
            let larger = x > best[lane];
            best[lane] = if larger { x } else { best[lane] };
            places[lane] = if larger { u32::from(place) } else { places[lane] };
        }
    }
    let (y, choice) = (&mut y[start..][..COUNT], &mut choice[start..][..COUNT]);
    for lane in 0..COUNT {
        y[lane] = N::nearest(best[lane]);
        choice[lane] = places[lane] as u8;
    }
}

wide! {
    /// The gradients of those outputs that chose this pixel. `seers`: places, and where the outputs begin.
    fn chosen<N: Number>(gradient: &[N], choice: &[u8], seers: &[(u8, usize)], below: &mut [N]) {
        let whole = below.len() / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            chosen_of::<N, LANES>(gradient, choice, seers, start, below);
        }
        for start in whole..below.len() {
            chosen_of::<N, 1>(gradient, choice, seers, start, below);
        }
    }
}

#[inline(always)]
fn chosen_of<N: Number, const COUNT: usize>(
    gradient: &[N],
    choice: &[u8],
    seers: &[(u8, usize)],
    start: usize,
    below: &mut [N],
) {
    let mut sums = [0.0_f32; COUNT];
    for &(place, from) in seers {
        let (gradient, choice) = (&gradient[from + start..][..COUNT], &choice[from + start..][..COUNT]);
        for lane in 0..COUNT {
            let value = gradient[lane].wide();
            sums[lane] += if choice[lane] == place { value } else { 0.0 };
        }
    }
    for (below, sum) in below[start..][..COUNT].iter_mut().zip(sums) {
        *below = N::nearest(sum);
    }
}

/// `depth` is batch x channels.
impl Slide {
    /// The inputs that an output pixel sees: place in the window, input pixel.
    fn seen(&self, pixel: usize) -> impl Iterator<Item = (u8, usize)> + use<> {
        let Slide { input, output, window: Window { kernel, stride, padding } } = *self;
        let (row, column) = (pixel / output[1], pixel % output[1]);
        (0..kernel * kernel).filter_map(move |place| {
            let y = (row * stride + place / kernel).checked_sub(padding).filter(|&y| y < input[0])?;
            let x = (column * stride + place % kernel).checked_sub(padding).filter(|&x| x < input[1])?;
            Some((place as u8, y * input[1] + x))
        })
    }

    /// The outputs that see an input pixel: place in the window, output pixel.
    fn seers(&self, pixel: usize) -> impl Iterator<Item = (u8, usize)> + use<> {
        let Slide { input, output, window: Window { kernel, stride, padding } } = *self;
        let (row, column) = (pixel / input[1], pixel % input[1]);
        let along = move |at: usize, place: usize, size: usize| {
            let shifted = (at + padding).checked_sub(place).filter(|shifted| shifted % stride == 0)?;
            Some(shifted / stride).filter(|&at| at < size)
        };
        (0..kernel * kernel).filter_map(move |place| {
            let y = along(row, place / kernel, output[0])?;
            let x = along(column, place % kernel, output[1])?;
            Some((place as u8, y * output[1] + x))
        })
    }

    /// Calls `fill` for every pixel of `to`, on several threads where that is worth it.
    fn pixels<N: Number>(self, to: &mut [N], depth: usize, fill: impl Fn(usize, &mut [N]) + Sync + Send) {
        let count = to.len() / depth.max(1);
        let shared = Shared::new(to);
        let area = self.window.kernel * self.window.kernel;
        each(count, count * depth * area, |pixel| {
            // SAFETY: each task has its own pixel.
            fill(pixel, unsafe { shared.part(pixel * depth, depth) });
        });
    }

    /// `choice`: for each output the place of its largest input.
    pub(super) fn max<N: Number>(&self, x: &[N], depth: usize, y: &mut [N], choice: &mut [u8]) {
        // the second output goes through a lock for each pixel, taken once
        let choices: Vec<Mutex<&mut [u8]>> = choice.chunks_exact_mut(depth).map(Mutex::new).collect();
        self.pixels(y, depth, |pixel, y| {
            let mut choice = choices[pixel].lock().unwrap_or_else(PoisonError::into_inner);
            let seen: Vec<(u8, usize)> = self.seen(pixel).map(|(place, from)| (place, from * depth)).collect();
            largest(x, &seen, y, &mut choice);
        });
    }

    pub(super) fn max_back<N: Number>(&self, gradient: &[N], choice: &[u8], depth: usize, below: &mut [N]) {
        self.pixels(below, depth, |pixel, below| {
            let seers: Vec<(u8, usize)> = self.seers(pixel).map(|(place, from)| (place, from * depth)).collect();
            chosen(gradient, choice, &seers, below);
        });
    }

    fn share(self) -> f32 {
        1.0 / (self.window.kernel * self.window.kernel) as f32
    }

    /// Zeros of the padding count.
    pub(super) fn mean<N: Number>(&self, x: &[N], depth: usize, y: &mut [N]) {
        self.pixels(y, depth, |pixel, y| {
            N::fill(y, |y| {
                y.fill(0.0);
                self.seen(pixel).for_each(|(_, from)| scaled(y, &x[from * depth..][..depth], self.share()));
            });
        });
    }

    pub(super) fn mean_back<N: Number>(&self, gradient: &[N], depth: usize, below: &mut [N]) {
        self.pixels(below, depth, |pixel, below| {
            N::fill(below, |below| {
                below.fill(0.0);
                self.seers(pixel).for_each(|(_, from)| scaled(below, &gradient[from * depth..][..depth], self.share()));
            });
        });
    }
}

/// The mean over all pixels; `depth` is batch x channels.
pub(super) fn global<N: Number>(x: &[N], depth: usize, y: &mut [f32]) {
    y.fill(0.0);
    x.chunks_exact(depth).for_each(|x| add(y, x));
    let share = depth as f32 / x.len() as f32;
    for y in y {
        *y *= share;
    }
}

pub(super) fn global_back<N: Number>(gradient: &[f32], below: &mut [N]) {
    let share = gradient.len() as f32 / below.len() as f32;
    for below in below.chunks_exact_mut(gradient.len()) {
        below.iter_mut().zip(gradient).for_each(|(b, g)| *b = N::nearest(g * share));
    }
}

/// Rows x columns to columns x rows: batch x channels x pixels is pixels x batch x channels transposed.
pub(super) fn transpose<A: Number, B: Number>(x: &[A], rows: usize, columns: usize, y: &mut [B]) {
    const SIDE: usize = 32;
    if rows == 1 || columns == 1 {
        convert(x, y);
        return;
    }
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..(top + SIDE).min(rows) {
                for column in left..(left + SIDE).min(columns) {
                    y[column * rows + row] = B::nearest(x[row * columns + column].wide());
                }
            }
        }
    }
}

/// Pixels x batch x channels to batch x (channels x pixels).
pub(super) fn flatten<N: Number>(x: &[N], [pixels, batch, channels]: [usize; 3], y: &mut [f32]) {
    for (spread, x) in x.iter().enumerate() {
        y[flat(spread, [pixels, batch, channels])] = x.wide();
    }
}

pub(super) fn flatten_back<N: Number>(gradient: &[f32], [pixels, batch, channels]: [usize; 3], below: &mut [N]) {
    for (spread, below) in below.iter_mut().enumerate() {
        *below = N::nearest(gradient[flat(spread, [pixels, batch, channels])]);
    }
}

/// Where a value lies when it is flat.
fn flat(spread: usize, [pixels, batch, channels]: [usize; 3]) -> usize {
    let (pixel, image, channel) = (spread / (batch * channels), spread / channels % batch, spread % channels);
    (image * channels + channel) * pixels + pixel
}
