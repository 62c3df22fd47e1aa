//! The two inner loops of all matrix work, for AVX-512, AVX2 with FMA, and anything else. Vectors run along output
//! channels, every element sums in the same order with fused multiply-adds at each level, so all levels give the same
//! bits.

use std::sync::OnceLock;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// `c[r][0..width] += sum over d of a[r][d] * b[d][0..width]` for the six rows; `b` is packed, `V` vectors a row; the
/// last vector has `last` live lanes in `c`.
pub(super) type Tile =
    unsafe fn(depth: usize, a: &[*const f32; ROWS], b: *const f32, c: &[*mut f32; ROWS], last: usize);

/// `c[r][0..width] += sum over n of a[n][r] * b[n][0..width]` for `R` neighbours r in each row n of `a`.
pub(super) type Outer = unsafe fn(rows: usize, a: Strided, b: Strided, c: (*mut f32, usize), last: usize);

/// `c[r][0..width] (+)= sum over d of a[r][d] * b[d][0..width]` for `R` rows; all of `width` is whole vectors. Written
/// where `fresh`, else added.
pub(super) type Block = unsafe fn(depth: usize, a: Strided, b: *const f32, c: (*mut f32, usize), fresh: bool);

/// A matrix by its first element and the distance of its rows.
#[derive(Clone, Copy)]
pub(super) struct Strided(pub(super) *const f32, pub(super) usize);

/// What this processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    /// All that run here, best first.
    pub(super) fn all() -> Vec<Level> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Level::Avx2);
            }
        }
        found.push(Level::Portable);
        found
    }

    pub(super) fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::all().first().copied().unwrap_or(Level::Portable))
    }

    pub(super) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 8,
            Level::Portable => 8,
        }
    }

    /// Columns of a full panel: as many vectors as leave registers for the rest.
    pub(super) fn panel(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 64,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 16,
            Level::Portable => 16,
        }
    }

    /// The tile loop for panels of so many vectors.
    pub(super) fn tile(self, vectors: usize) -> Tile {
        match (self, vectors) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 1) => avx512::tile::<1>,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 2) => avx512::tile::<2>,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 3) => avx512::tile::<3>,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => avx512::tile::<4>,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 1) => avx2::tile::<1>,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => avx2::tile::<2>,
            (Level::Portable, 1) => portable::tile::<1>,
            (Level::Portable, _) => portable::tile::<2>,
        }
    }

    /// The block loops: six rows at once, four, and one.
    pub(super) fn block(self, vectors: usize) -> [(usize, Block); 3] {
        macro_rules! of {
            ($level:ident, $vectors:literal) => {
                [
                    (6, $level::block::<6, $vectors>),
                    (4, $level::block::<4, $vectors>),
                    (1, $level::block::<1, $vectors>),
                ]
            };
        }
        match (self, vectors) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 1) => of!(avx512, 1),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 2) => of!(avx512, 2),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 3) => of!(avx512, 3),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => of!(avx512, 4),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 1) => of!(avx2, 1),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => of!(avx2, 2),
            (Level::Portable, 1) => of!(portable, 1),
            (Level::Portable, _) => of!(portable, 2),
        }
    }

    /// The outer-product loops: six rows of `c` at once, four, and one.
    pub(super) fn outer(self, vectors: usize) -> [(usize, Outer); 3] {
        match (self, vectors) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 1) => [(6, avx512::outer::<6, 1>), (4, avx512::outer::<4, 1>), (1, avx512::outer::<1, 1>)],
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 2) => [(6, avx512::outer::<6, 2>), (4, avx512::outer::<4, 2>), (1, avx512::outer::<1, 2>)],
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 3) => [(6, avx512::outer::<6, 3>), (4, avx512::outer::<4, 3>), (1, avx512::outer::<1, 3>)],
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => [(6, avx512::outer::<6, 4>), (4, avx512::outer::<4, 4>), (1, avx512::outer::<1, 4>)],
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 1) => [(6, avx2::outer::<6, 1>), (4, avx2::outer::<4, 1>), (1, avx2::outer::<1, 1>)],
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => [(6, avx2::outer::<6, 2>), (4, avx2::outer::<4, 2>), (1, avx2::outer::<1, 2>)],
            (Level::Portable, 1) => {
                [(6, portable::outer::<6, 1>), (4, portable::outer::<4, 1>), (1, portable::outer::<1, 1>)]
            }
            (Level::Portable, _) => {
                [(6, portable::outer::<6, 2>), (4, portable::outer::<4, 2>), (1, portable::outer::<1, 2>)]
            }
        }
    }
}

/// Writes the loops once for a level: its attributes, vector type, lanes, and the names of five operations.
macro_rules! level {
    ($name:ident, [$($attribute:meta)?], $vector:ty, $lanes:literal, $operations:path) => {
        pub(super) mod $name {
            use super::{ROWS, Strided};
            use $operations::{add, add_part, fma, load, splat, store, zero};

            /// Adds the sums to `V` vectors of `c`, of the last one only so many lanes.
            ///
            /// # Safety
            /// `c` holds `V - 1` whole vectors and `last` lanes.
            $(#[$attribute])?
            #[inline]
            unsafe fn put<const V: usize>(sums: &[$vector; V], c: *mut f32, last: usize) {
                for (v, &sum) in sums.iter().enumerate() {
                    // SAFETY: within the row, by the caller's promise.
                    unsafe {
                        let at = c.add(v * $lanes);
                        if v + 1 < V || last == $lanes {
                            store(at, add(load(at), sum));
                        } else {
                            add_part(at, sum, last);
                        }
                    }
                }
            }

            /// # Safety
            /// The processor has the level's features; each `a` row has `depth` elements, `b` that many packed rows
            /// of `V` vectors, each `c` row the live width.
            $(#[$attribute])?
            pub(in super::super) unsafe fn tile<const V: usize>(
                depth: usize,
                a: &[*const f32; ROWS],
                b: *const f32,
                c: &[*mut f32; ROWS],
                last: usize,
            ) {
                let mut sums = [[zero(); V]; ROWS];
                let [a0, a1, a2, a3, a4, a5] = *a;
                for d in 0..depth {
                    // SAFETY: d < depth.
                    unsafe {
                        let mut columns = [zero(); V];
                        for (v, column) in columns.iter_mut().enumerate() {
                            *column = load(b.add((d * V + v) * $lanes));
                        }
                        let row = [*a0.add(d), *a1.add(d), *a2.add(d), *a3.add(d), *a4.add(d), *a5.add(d)];
                        for r in 0..ROWS {
                            let factor = splat(row[r]);
                            for v in 0..V {
                                sums[r][v] = fma(factor, columns[v], sums[r][v]);
                            }
                        }
                    }
                }
                for r in 0..ROWS {
                    // SAFETY: by the caller's promise.
                    unsafe { put(&sums[r], c[r], last) };
                }
            }

            /// # Safety
            /// The processor has the level's features; `a` has `R` rows of `depth` elements, `b` that many packed rows of
            /// `V` vectors, `c` `R` rows of as many.
            $(#[$attribute])?
            pub(in super::super) unsafe fn block<const R: usize, const V: usize>(
                depth: usize,
                a: Strided,
                b: *const f32,
                c: (*mut f32, usize),
                fresh: bool,
            ) {
                let mut sums = [[zero(); V]; R];
                for d in 0..depth {
                    // SAFETY: d < depth.
                    unsafe {
                        let mut columns = [zero(); V];
                        for (v, column) in columns.iter_mut().enumerate() {
                            *column = load(b.add((d * V + v) * $lanes));
                        }
                        for r in 0..R {
                            let factor = splat(*a.0.add(r * a.1 + d));
                            for v in 0..V {
                                sums[r][v] = fma(factor, columns[v], sums[r][v]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for (v, &sum) in sums[r].iter().enumerate() {
                        // SAFETY: by the caller's promise.
                        unsafe {
                            let at = c.0.add(r * c.1 + v * $lanes);
                            store(at, if fresh { sum } else { add(load(at), sum) });
                        }
                    }
                }
            }

            /// # Safety
            /// The processor has the level's features; `a` has `rows` rows of `R` elements, `b` as many of `V` whole
            /// vectors, `c` has `R` rows of the live width.
            $(#[$attribute])?
            pub(in super::super) unsafe fn outer<const R: usize, const V: usize>(
                rows: usize,
                a: Strided,
                b: Strided,
                c: (*mut f32, usize),
                last: usize,
            ) {
                let mut sums = [[zero(); V]; R];
                let (mut x, mut y) = (a.0, b.0);
                for _ in 0..rows {
                    // SAFETY: one of `rows` rows; the step past the last one is never read.
                    unsafe {
                        let mut columns = [zero(); V];
                        for (v, column) in columns.iter_mut().enumerate() {
                            *column = load(y.add(v * $lanes));
                        }
                        for r in 0..R {
                            let factor = splat(*x.add(r));
                            for v in 0..V {
                                sums[r][v] = fma(factor, columns[v], sums[r][v]);
                            }
                        }
                        x = x.wrapping_add(a.1);
                        y = y.wrapping_add(b.1);
                    }
                }
                for r in 0..R {
                    // SAFETY: by the caller's promise.
                    unsafe { put(&sums[r], c.0.add(r * c.1), last) };
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) mod operations512 {
    use std::arch::x86_64::{__m512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps};
    pub(in super::super) use std::arch::x86_64::{
        _mm512_add_ps as add, _mm512_fmadd_ps as fma, _mm512_loadu_ps as load, _mm512_mul_ps as mul,
        _mm512_set1_ps as splat, _mm512_setzero_ps as zero, _mm512_storeu_ps as store, _mm512_sub_ps as sub,
    };

    /// The first lanes, zeros for the rest.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in super::super) unsafe fn load_part(at: *const f32, lanes: usize) -> __m512 {
        // SAFETY: lanes beyond the mask are not touched.
        unsafe { _mm512_maskz_loadu_ps((1_u16 << lanes) - 1, at) }
    }

    /// Writes the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in super::super) unsafe fn store_part(at: *mut f32, value: __m512, lanes: usize) {
        // SAFETY: lanes beyond the mask are not touched.
        unsafe { _mm512_mask_storeu_ps(at, (1_u16 << lanes) - 1, value) };
    }

    /// Adds the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn add_part(at: *mut f32, sum: __m512, lanes: usize) {
        // SAFETY: by the caller's promise.
        unsafe { store_part(at, add(load_part(at, lanes), sum), lanes) };
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod operations2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_cmpgt_epi32, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_set1_epi32,
        _mm256_setr_epi32,
    };
    pub(in super::super) use std::arch::x86_64::{
        _mm256_add_ps as add, _mm256_fmadd_ps as fma, _mm256_loadu_ps as load, _mm256_mul_ps as mul,
        _mm256_set1_ps as splat, _mm256_setzero_ps as zero, _mm256_storeu_ps as store, _mm256_sub_ps as sub,
    };

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn mask(lanes: usize) -> __m256i {
        _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }

    /// The first lanes, zeros for the rest.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(in super::super) unsafe fn load_part(at: *const f32, lanes: usize) -> __m256 {
        // SAFETY: lanes beyond the mask are not touched.
        unsafe { _mm256_maskload_ps(at, mask(lanes)) }
    }

    /// Writes the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(in super::super) unsafe fn store_part(at: *mut f32, value: __m256, lanes: usize) {
        // SAFETY: lanes beyond the mask are not touched.
        unsafe { _mm256_maskstore_ps(at, mask(lanes), value) };
    }

    /// Adds the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) unsafe fn add_part(at: *mut f32, sum: __m256, lanes: usize) {
        // SAFETY: by the caller's promise.
        unsafe { store_part(at, add(load_part(at, lanes), sum), lanes) };
    }
}

pub(super) mod plain {
    pub(in super::super) type Vector = [f32; 8];

    #[inline]
    pub(in super::super) fn zero() -> Vector {
        [0.0; 8]
    }

    #[inline]
    pub(in super::super) fn splat(x: f32) -> Vector {
        [x; 8]
    }

    #[inline]
    pub(in super::super) fn add(a: Vector, b: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline]
    pub(in super::super) fn sub(a: Vector, b: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline]
    pub(in super::super) fn mul(a: Vector, b: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline]
    pub(in super::super) fn fma(a: Vector, b: Vector, c: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    /// Adds the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[inline]
    pub(in super::super) unsafe fn add_part(at: *mut f32, sum: Vector, lanes: usize) {
        for (lane, value) in sum.iter().take(lanes).enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { *at.add(lane) += value };
        }
    }

    /// The first lanes, zeros for the rest.
    ///
    /// # Safety
    /// So many elements are there.
    #[inline]
    pub(in super::super) unsafe fn load_part(at: *const f32, lanes: usize) -> Vector {
        // SAFETY: by the caller's promise.
        std::array::from_fn(|lane| if lane < lanes { unsafe { *at.add(lane) } } else { 0.0 })
    }

    /// Writes the first lanes.
    ///
    /// # Safety
    /// So many elements are there.
    #[inline]
    pub(in super::super) unsafe fn store_part(at: *mut f32, value: Vector, lanes: usize) {
        for (lane, value) in value.iter().take(lanes).enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { *at.add(lane) = *value };
        }
    }

    /// # Safety
    /// Eight elements are there.
    #[inline]
    pub(in super::super) unsafe fn load(at: *const f32) -> Vector {
        // SAFETY: by the caller's promise; the read needs no alignment.
        unsafe { at.cast::<Vector>().read_unaligned() }
    }

    /// # Safety
    /// Eight elements are there.
    #[inline]
    pub(in super::super) unsafe fn store(at: *mut f32, vector: Vector) {
        // SAFETY: by the caller's promise; the write needs no alignment.
        unsafe { at.cast::<Vector>().write_unaligned(vector) }
    }
}

#[cfg(target_arch = "x86_64")]
level!(avx512, [target_feature(enable = "avx512f")], std::arch::x86_64::__m512, 16, super::operations512);
#[cfg(target_arch = "x86_64")]
level!(avx2, [target_feature(enable = "avx2,fma")], std::arch::x86_64::__m256, 8, super::operations2);
level!(portable, [], super::plain::Vector, 8, super::plain);
