//! Squares of 16 x 16 words, turned: weights and inputs come in one order and are read in the other.

/// Rows and columns of a square.
pub(super) const SQUARE: usize = 16;

/// `to[j][i] = from[i][j]`, rows of both so far apart as said.
pub(super) fn turn(from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there.
        return unsafe { avx512(from, from_row, to, to_row) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the feature is there.
        return unsafe { avx2(from, from_row, to, to_row) };
    }
    plain(from, from_row, to, to_row);
}

fn plain(from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    for i in 0..SQUARE {
        for (j, word) in from[i * from_row..][..SQUARE].iter().enumerate() {
            to[j * to_row + i] = *word;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    use std::arch::x86_64::{
        __m512i, _mm512_loadu_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    // SAFETY: 16 words within the slice.
    let load = |row: usize| unsafe { _mm512_loadu_si512(from[row * from_row..][..SQUARE].as_ptr().cast()) };
    let rows: [__m512i; SQUARE] = std::array::from_fn(load);
    let mut pairs = rows;
    for i in (0..SQUARE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // quads[4 g + q], lane l: column 4 l + q of rows 4 g to 4 g + 3
    let mut quads = pairs;
    for i in (0..SQUARE).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for q in 0..4 {
        // 0x88 takes lanes 0 and 2 of both, 0xdd lanes 1 and 3
        let [a, b, c, d] = [quads[q], quads[4 + q], quads[8 + q], quads[12 + q]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (more_even, more_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(even, more_even),
            _mm512_shuffle_i32x4::<0x88>(odd, more_odd),
            _mm512_shuffle_i32x4::<0xdd>(even, more_even),
            _mm512_shuffle_i32x4::<0xdd>(odd, more_odd),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            let row = &mut to[(4 * lane + q) * to_row..][..SQUARE];
            // SAFETY: 16 words within the slice.
            unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), column) };
        }
    }
}

/// By quarters of 8 x 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    use std::arch::x86_64::{
        __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    const SIDE: usize = SQUARE / 2;
    for (top, left) in [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)] {
        // SAFETY: 8 words within the slice.
        let load = |row: usize| unsafe { _mm256_loadu_ps(from[(top + row) * from_row + left..][..SIDE].as_ptr()) };
        let rows: [__m256; SIDE] = std::array::from_fn(load);
        let mut pairs = rows;
        for i in (0..SIDE).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // quads[4 g + q], half h: column 4 h + q of rows 4 g to 4 g + 3
        let mut quads = pairs;
        for i in (0..SIDE).step_by(4) {
            quads[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
            quads[i + 1] = _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
            quads[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
            quads[i + 3] = _mm256_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
        }
        for q in 0..4 {
            let columns = [
                _mm256_permute2f128_ps::<0x20>(quads[q], quads[4 + q]),
                _mm256_permute2f128_ps::<0x31>(quads[q], quads[4 + q]),
            ];
            for (half, column) in columns.into_iter().enumerate() {
                let row = &mut to[(left + 4 * half + q) * to_row + top..][..SIDE];
                // SAFETY: 8 words within the slice.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr(), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_turned() {
        let from: Vec<f32> = (0..19 * SQUARE).map(|i| i as f32).collect();
        let [mut to, mut slow] = [(); 2].map(|()| vec![-1.0; 21 * SQUARE]);
        turn(&from, 19, &mut to, 21);
        plain(&from, 19, &mut slow, 21);
        assert_eq!(to, slow);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            to.fill(-1.0);
            // SAFETY: the feature is there.
            unsafe { avx2(&from, 19, &mut to, 21) };
            assert_eq!(to, slow);
        }
        for (place, word) in to.into_iter().enumerate() {
            let (row, column) = (place / 21, place % 21);
            assert_eq!(word, if column < SQUARE { from[column * 19 + row] } else { -1.0 });
        }
    }
}
