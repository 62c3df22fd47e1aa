//! Numbers in bf16: the upper half of an f32.

use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::parallel::{Shared, each};
use crate::wide::wide;

/// The nearest bf16, of two the even one; the upper half of an f32.
#[inline(always)]
fn nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    // NaN stays one
    let rounded = if x.is_nan() { bits | 0x40_0000 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) };
    (rounded >> 16) as u16
}

wide! {
    /// Rounded to bf16.
    pub(super) fn narrow(x: &[f32], to: &mut [u16]) {
        x.iter().zip(to).for_each(|(x, to)| *to = nearest(*x));
    }
}

wide! {
    fn round(x: &[f32], to: &mut [f32]) {
        x.iter().zip(to).for_each(|(x, to)| *to = f32::from_bits(u32::from(nearest(*x)) << 16));
    }
}

wide! {
    /// Two neighbours in one word, the first in the lower half.
    pub(super) fn pair(first: &[f32], second: &[f32], to: &mut [u32]) {
        for ((first, second), to) in first.iter().zip(second).zip(to) {
            *to = u32::from(nearest(*first)) | u32::from(nearest(*second)) << 16;
        }
    }
}

/// Elements of a chunk.
pub(super) const CHUNK: usize = 16_384;

/// Rounded to bf16, in f32.
pub(super) fn rounded(x: &[f32], pool: &Arc<Pool>) -> Buffer {
    let mut to = pool.lend(x.len());
    let shared = Shared::new(&mut to);
    each(x.len().div_ceil(CHUNK), 2 * x.len(), |chunk| {
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(x.len());
        // SAFETY: each task has its own chunk.
        round(&x[range.clone()], unsafe { shared.part(range.start, range.len()) });
    });
    to
}

/// A buffer's memory as words: all bits mean something as either.
pub(super) fn words(buffer: &mut [f32]) -> &mut [u32] {
    // SAFETY: f32 and u32 have one size and alignment and no invalid bits.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) }
}

pub(super) fn halves(buffer: &mut [f32]) -> &mut [u16] {
    // SAFETY: as above, two to each.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), 2 * buffer.len()) }
}
