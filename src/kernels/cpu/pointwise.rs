//! The small layers: activations, pooling, layout. Values lie as height x width x batch x channels.

use std::sync::{Mutex, PoisonError};

use super::parallel::{Shared, each};
use crate::kernels::Window;
use crate::wide::wide;

const CHUNK: usize = 16_384;

/// An activation, by its value alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    Leaky(f32),
    Sigmoid,
    Tanh,
}

impl Activation {
    pub(super) fn forward(self, x: &[f32], y: &mut [f32]) {
        let shared = Shared::new(y);
        let cost = if matches!(self, Activation::Leaky(_)) { 2 } else { 32 };
        each(x.len().div_ceil(CHUNK), x.len() * cost, |chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(x.len());
            // SAFETY: each task has its own chunk.
            let pairs = unsafe { shared.part(range.start, range.len()) }.iter_mut().zip(&x[range]);
            match self {
                Activation::Leaky(slope) => pairs.for_each(|(y, &x)| *y = if x > 0.0 { x } else { slope * x }),
                Activation::Sigmoid => pairs.for_each(|(y, &x)| *y = 1.0 / (1.0 + (-x).exp())),
                Activation::Tanh => pairs.for_each(|(y, &x)| *y = x.tanh()),
            }
        });
    }

    /// The gradient of x from that of y, in place.
    pub(super) fn backward(self, y: &[f32], gradient: &mut [f32]) {
        let shared = Shared::new(gradient);
        each(y.len().div_ceil(CHUNK), y.len() * 2, |chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(y.len());
            // SAFETY: each task has its own chunk.
            let pairs = unsafe { shared.part(range.start, range.len()) }.iter_mut().zip(&y[range]);
            match self {
                Activation::Leaky(slope) => pairs.for_each(|(g, &y)| *g = if y > 0.0 { *g } else { *g * slope }),
                Activation::Sigmoid => pairs.for_each(|(g, &y)| *g *= y * (1.0 - y)),
                Activation::Tanh => pairs.for_each(|(g, &y)| *g *= 1.0 - y * y),
            }
        });
    }
}

wide! {
    /// a += b.
    pub(super) fn add(a: &mut [f32], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    }
}

/// a += b, on all threads.
pub(super) fn add_all(a: &mut [f32], b: &[f32]) {
    let shared = Shared::new(a);
    each(b.len().div_ceil(CHUNK), b.len() * 2, |chunk| {
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(b.len());
        // SAFETY: each task has its own chunk.
        add(unsafe { shared.part(range.start, range.len()) }, &b[range]);
    });
}

wide! {
    /// a *= b.
    pub(super) fn multiply(a: &mut [f32], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
    }
}

wide! {
    fn scaled(to: &mut [f32], from: &[f32], factor: f32) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from * factor);
    }
}

wide! {
    fn larger(best: &mut [f32], choice: &mut [u8], x: &[f32], place: u8) {
        for ((best, choice), &x) in best.iter_mut().zip(choice).zip(x) {
            // strictly greater: of equal values the first keeps the gradient
            if x > *best {
                *best = x;
                *choice = place;
            }
        }
    }
}

wide! {
    fn chosen(to: &mut [f32], from: &[f32], choice: &[u8], place: u8) {
        for ((to, from), choice) in to.iter_mut().zip(from).zip(choice) {
            *to += if *choice == place { *from } else { 0.0 };
        }
    }
}

/// A sliding window; `depth` is batch x channels. A window has at most 255 places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slide {
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) window: Window,
}

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
    fn pixels(self, to: &mut [f32], depth: usize, fill: impl Fn(usize, &mut [f32]) + Sync + Send) {
        let count = to.len() / depth.max(1);
        let shared = Shared::new(to);
        let area = self.window.kernel * self.window.kernel;
        each(count, count * depth * area, |pixel| {
            // SAFETY: each task has its own pixel.
            fill(pixel, unsafe { shared.part(pixel * depth, depth) });
        });
    }

    /// `choice`: for each output the place of its largest input.
    pub(super) fn max(&self, x: &[f32], depth: usize, y: &mut [f32], choice: &mut [u8]) {
        // the second output goes through a lock for each pixel, taken once
        let choices: Vec<Mutex<&mut [u8]>> = choice.chunks_exact_mut(depth).map(Mutex::new).collect();
        self.pixels(y, depth, |pixel, y| {
            let mut choice = choices[pixel].lock().unwrap_or_else(PoisonError::into_inner);
            y.fill(f32::NEG_INFINITY);
            choice.fill(0);
            for (place, from) in self.seen(pixel) {
                larger(y, &mut choice, &x[from * depth..][..depth], place);
            }
        });
    }

    pub(super) fn max_back(&self, gradient: &[f32], choice: &[u8], depth: usize, below: &mut [f32]) {
        self.pixels(below, depth, |pixel, below| {
            below.fill(0.0);
            for (place, from) in self.seers(pixel) {
                chosen(below, &gradient[from * depth..][..depth], &choice[from * depth..][..depth], place);
            }
        });
    }

    fn share(self) -> f32 {
        1.0 / (self.window.kernel * self.window.kernel) as f32
    }

    /// Zeros of the padding count.
    pub(super) fn mean(&self, x: &[f32], depth: usize, y: &mut [f32]) {
        self.pixels(y, depth, |pixel, y| {
            y.fill(0.0);
            self.seen(pixel).for_each(|(_, from)| scaled(y, &x[from * depth..][..depth], self.share()));
        });
    }

    pub(super) fn mean_back(&self, gradient: &[f32], depth: usize, below: &mut [f32]) {
        self.pixels(below, depth, |pixel, below| {
            below.fill(0.0);
            self.seers(pixel).for_each(|(_, from)| scaled(below, &gradient[from * depth..][..depth], self.share()));
        });
    }
}

/// The mean over all pixels; `depth` is batch x channels.
pub(super) fn global(x: &[f32], depth: usize, y: &mut [f32]) {
    y.fill(0.0);
    x.chunks_exact(depth).for_each(|x| add(y, x));
    let share = depth as f32 / x.len() as f32;
    for y in y {
        *y *= share;
    }
}

pub(super) fn global_back(gradient: &[f32], below: &mut [f32]) {
    let share = gradient.len() as f32 / below.len() as f32;
    for below in below.chunks_exact_mut(gradient.len()) {
        below.iter_mut().zip(gradient).for_each(|(b, g)| *b = g * share);
    }
}

/// Rows x columns to columns x rows: batch x channels x pixels is pixels x batch x channels transposed.
pub(super) fn transpose(x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    const SIDE: usize = 32;
    if rows == 1 || columns == 1 {
        y.copy_from_slice(x);
        return;
    }
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..(top + SIDE).min(rows) {
                for column in left..(left + SIDE).min(columns) {
                    y[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
}

/// Pixels x batch x channels to batch x (channels x pixels), or back.
pub(super) fn flatten(x: &[f32], [pixels, batch, channels]: [usize; 3], back: bool, y: &mut [f32]) {
    for pixel in 0..pixels {
        for image in 0..batch {
            for channel in 0..channels {
                let spread = (pixel * batch + image) * channels + channel;
                let flat = (image * channels + channel) * pixels + pixel;
                if back {
                    y[spread] = x[flat];
                } else {
                    y[flat] = x[spread];
                }
            }
        }
    }
}
