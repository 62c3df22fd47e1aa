//! The last pass of a bf16 convolution, over sums that just left the tile registers and lie in a first-level cache: bias,
//! what is there already, or batch norm with residual and ReLU.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _CMP_NGT_UQ, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_loadu_ps,
    _mm512_mask_mul_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_si512,
};
use std::ops::Range;

use super::number::Number;
use super::parallel::Shared;
use super::product::Fold;
use super::tiles::{SIDE, available};

/// What becomes of a sum.
pub(super) enum End<'a> {
    /// It is written, with a bias or without.
    Bias(Option<&'a [f32]>),
    /// It is added to what is there.
    Add,
    Fold(Fold<'a>),
}

/// So many rows of an output, from `place` on, `apart`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) many: usize,
    pub(super) place: usize,
    pub(super) apart: usize,
}

/// Columns of the sums: two tiles.
const WIDE: usize = 2 * SIDE;

/// Of each column: after(sum scale + shift + added), where a negative one is multiplied by the slope.
struct Line {
    scale: [f32; WIDE],
    shift: [f32; WIDE],
    slope: f32,
}

/// Writes what becomes of sums to rows of some channels. Nobody else touches those meanwhile.
pub(super) fn finish<N: Number>(
    sums: &[f32; 2 * SIDE * WIDE],
    end: &End,
    channels: &Range<usize>,
    output: &Shared<N>,
    rows: Rows,
) {
    let wide = channels.len();
    let mut line = Line { scale: [1.0; WIDE], shift: [0.0; WIDE], slope: 1.0 };
    let mut residual: &[N] = &[];
    match end {
        End::Bias(Some(bias)) => line.shift[..wide].copy_from_slice(&bias[channels.clone()]),
        End::Fold(fold) => {
            line.scale[..wide].copy_from_slice(&fold.scale[channels.clone()]);
            line.shift[..wide].copy_from_slice(&fold.shift[channels.clone()]);
            (residual, line.slope) = (N::of(fold.residual), fold.after.slope());
        }
        End::Bias(None) | End::Add => {}
    }
    let rows = (0..rows.many).map(|index| rows.place + index * rows.apart);
    if !N::FULL && wide.is_multiple_of(SIDE) && available() {
        for (place, sums) in rows.zip(sums.chunks_exact(WIDE)) {
            // SAFETY: the caller's promise.
            let to = unsafe { output.part(place, wide) }.as_mut_ptr().cast::<u16>();
            let added = match residual.get(place..place + wide) {
                Some(added) => added.as_ptr().cast(),
                None if matches!(end, End::Add) => to.cast_const(),
                None => std::ptr::null(),
            };
            // SAFETY: `available` found the features; a `Number` that is not f32 is a bf16; `to` and what is added have
            // one or two vectors, as `wide` says.
            unsafe { if wide == WIDE { two(sums, &line, added, to) } else { one(sums, &line, added, to) } }
        }
        return;
    }
    for (place, sums) in rows.zip(sums.chunks_exact(WIDE)) {
        // SAFETY: the caller's promise.
        let to = unsafe { output.part(place, wide) };
        let added = residual.get(place..place + wide);
        for (column, (to, sum)) in to.iter_mut().zip(sums).enumerate() {
            let added = match added {
                Some(added) => added[column].wide(),
                None if matches!(end, End::Add) => to.wide(),
                None => 0.0,
            };
            let sum = sum * line.scale[column] + line.shift[column] + added;
            *to = N::nearest(if sum > 0.0 { sum } else { sum * line.slope });
        }
    }
}

/// One vector of a row; `added`: bf16, or null.
#[target_feature(enable = "avx512f")]
unsafe fn vector(sums: *const f32, line: &Line, first: usize, added: *const u16) -> __m512 {
    // SAFETY: the caller's promise: 16 of each from `first` on.
    unsafe {
        let scale = _mm512_loadu_ps(line.scale.as_ptr().add(first));
        let shift = _mm512_loadu_ps(line.shift.as_ptr().add(first));
        let mut sum = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(sums.add(first)), scale), shift);
        if !added.is_null() {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(added.add(first).cast()));
            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)));
        }
        // not above 0, or not a number
        let low = _mm512_cmp_ps_mask::<_CMP_NGT_UQ>(sum, _mm512_setzero_ps());
        _mm512_mask_mul_ps(sum, low, sum, _mm512_set1_ps(line.slope))
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn two(sums: &[f32], line: &Line, added: *const u16, to: *mut u16) {
    // SAFETY: the caller's promise: rows of 32.
    unsafe {
        let (low, high) = (vector(sums.as_ptr(), line, 0, added), vector(sums.as_ptr(), line, SIDE, added));
        let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to.cast(), both);
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn one(sums: &[f32], line: &Line, added: *const u16, to: *mut u16) {
    // SAFETY: the caller's promise: rows of 16.
    unsafe {
        let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(vector(sums.as_ptr(), line, 0, added)));
        _mm256_storeu_si256(to.cast(), half);
    }
}
