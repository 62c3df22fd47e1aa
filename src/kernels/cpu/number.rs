//! What values are stored in: f32, or bf16, which is its upper half.

#![expect(clippy::inline_always, reason = "parts of loops that are compiled for several vector widths")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::buffer::{Buffer, Pool, scratch};
use super::parallel::{Shared, each};
use crate::wide::wide;

/// A bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Half(u16);

pub(super) trait Number: Copy + Default + Send + Sync + 'static {
    /// Whether it is f32.
    const FULL: bool;

    fn wide(self) -> f32;
    /// The nearest one, of two the even one; NaN stays NaN.
    fn nearest(x: f32) -> Self;
    /// The nearest bf16.
    fn half(self) -> u16;
    /// Nothing where the value is stored otherwise.
    fn of(value: Option<&Value>) -> &[Self];
    fn of_mut(value: &mut Value) -> &mut [Self];
    /// Fills `to` with what `act` leaves in as many f32.
    fn fill(to: &mut [Self], act: impl FnOnce(&mut [f32]));
}

impl Number for f32 {
    const FULL: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn half(self) -> u16 {
        let bits = self.to_bits();
        let rounded = if self.is_nan() { bits | 0x40_0000 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) };
        (rounded >> 16) as u16
    }

    fn of(value: Option<&Value>) -> &[f32] {
        if let Some(Value::Full(data)) = value { data } else { &[] }
    }

    fn of_mut(value: &mut Value) -> &mut [f32] {
        if let Value::Full(data) = value { data } else { &mut [] }
    }

    fn fill(to: &mut [f32], act: impl FnOnce(&mut [f32])) {
        act(to);
    }
}

impl Number for Half {
    const FULL: bool = false;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn nearest(x: f32) -> Half {
        Half(x.half())
    }

    #[inline(always)]
    fn half(self) -> u16 {
        self.0
    }

    fn of(value: Option<&Value>) -> &[Half] {
        if let Some(Value::Half(data)) = value { data } else { &[] }
    }

    fn of_mut(value: &mut Value) -> &mut [Half] {
        if let Value::Half(data) = value { data } else { &mut [] }
    }

    fn fill(to: &mut [Half], act: impl FnOnce(&mut [f32])) {
        scratch(to.len(), |sums| {
            act(sums);
            convert(sums, to);
        });
    }
}

wide! {
    /// From one kind to another.
    pub(super) fn convert<A: Number, B: Number>(from: &[A], to: &mut [B]) {
        from.iter().zip(to).for_each(|(from, to)| *to = B::nearest(from.wide()));
    }
}

/// Elements of a chunk.
const CHUNK: usize = 16_384;

/// `convert` on all threads.
pub(super) fn convert_all<A: Number, B: Number>(from: &[A], to: &mut [B]) {
    let shared = Shared::new(to);
    each(from.len().div_ceil(CHUNK), 2 * from.len(), |chunk| {
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(from.len());
        // SAFETY: each task has its own chunk.
        convert(&from[range.clone()], unsafe { shared.part(range.start, range.len()) });
    });
}

/// Two neighbours as bf16 in one word, the first in the lower half.
#[inline(always)]
pub(super) fn pair<N: Number>(first: N, second: N) -> u32 {
    u32::from(first.half()) | u32::from(second.half()) << 16
}

/// Some bf16 of a pool's memory.
#[derive(Debug)]
pub(super) struct Halves {
    words: Buffer,
    length: usize,
}

impl Halves {
    pub(super) fn new(pool: &Arc<Pool>, length: usize) -> Self {
        Self { words: pool.lend(length.div_ceil(2)), length }
    }
}

impl Deref for Halves {
    type Target = [Half];

    fn deref(&self) -> &[Half] {
        // SAFETY: two bf16 to an f32, of which the buffer has enough; all bits mean something as either.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Halves {
    fn deref_mut(&mut self) -> &mut [Half] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.length) }
    }
}

/// A buffer's memory as words.
pub(super) fn words(buffer: &mut [f32]) -> &mut [u32] {
    // SAFETY: f32 and u32 have one size and alignment and no invalid bits.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) }
}

/// A buffer's memory as bf16, two to a word.
pub(super) fn halves(buffer: &mut [f32]) -> &mut [Half] {
    // SAFETY: two bf16 to an f32, of no greater alignment, without invalid bits.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), 2 * buffer.len()) }
}

/// A value of the network: in bf16 where it is an image and the network computes so.
#[derive(Debug)]
pub(super) enum Value {
    Full(Buffer),
    Half(Halves),
}

impl Value {
    pub(super) fn new(pool: &Arc<Pool>, length: usize, half: bool) -> Self {
        if half { Value::Half(Halves::new(pool, length)) } else { Value::Full(pool.lend(length)) }
    }

    #[cfg(test)]
    pub(super) fn of(numbers: &[f32], half: bool) -> Self {
        let mut value = Self::new(&Arc::default(), numbers.len(), half);
        match &mut value {
            Value::Full(data) => convert(numbers, data),
            Value::Half(data) => convert(numbers, data),
        }
        value
    }

    #[cfg(test)]
    pub(super) fn numbers(&self) -> Vec<f32> {
        match self {
            Value::Full(data) => data.to_vec(),
            Value::Half(data) => data.iter().map(|x| x.wide()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_takes_the_nearest_and_the_even() {
        let cases = [
            (1.0_f32, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (-0.0, 0x8000),
        ];
        for (x, bits) in cases {
            assert_eq!(Half::nearest(x), Half(bits), "{x}");
        }
        // bits that would carry over to something else than NaN
        assert!(Half::nearest(f32::from_bits(0x7fff_ffff)).wide().is_nan());
        assert!(Half::nearest(f32::from_bits(0xffff_ffff)).wide().is_nan());
    }
}
