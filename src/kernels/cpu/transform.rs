//! Winograd's transforms for F(4 x 4, 3 x 3), as vector code along channels: of inputs (B' d B), of windows (G g G'), of
//! products (A' M A), and, transposed, of gradients (A dY A') and of the sums for windows (G' U G).
//!
//! One dimension of each, with the points 0, 1, -1, 2, -2 and infinity:
//!
//! ```text
//!      4  0 -5  0  1  0         1/4    0    0
//!      0 -4 -4  1  1  0        -1/6 -1/6 -1/6          1  1  1  1  1  0
//! B' = 0  4 -4 -1  1  0    G = -1/6  1/6 -1/6     A' = 0  1 -1  2 -2  0
//!      0 -2 -1  2  1  0        1/24 1/12  1/6          0  1  1  4  4  0
//!      0  2 -1 -2  1  0        1/24 -1/12 1/6          0  1 -1  8 -8  1
//!      0  4  0 -5  0  1           0    0    1
//! ```

use super::simd::{Level, Strided};

/// Pairs of rows of the 6 x 6 places: {1, 2}, {3, 4}, {0, 5}. Place `6 h + j` of a pair is column j of its row h.
pub(super) const PAIRS: usize = 3;

/// `width` elements at `start` of each of the 6 x 6 pixels, to place p at `to + p step`.
type Input = unsafe fn(pixels: &[*const f32; 36], start: usize, width: usize, to: *mut f32, step: usize);
/// `width` elements at `start` of each of the 4 x 4 pixels, to whole vectors of place p at `to + p step`.
type Gradient = unsafe fn(pixels: &[*const f32; 16], start: usize, width: usize, to: *mut f32, step: usize);
/// `rows` rows of so many vectors (the last with so many live lanes) from place p at `from + p step`: added to the rows,
/// `to_step` apart, at each of the 4 x 4 pixels; where `fresh`, written there. The first pair touches all pixels.
type Output = unsafe fn(
    rows: usize,
    vectors: (usize, usize),
    from: Strided,
    step: usize,
    to: &[*mut f32; 16],
    to_step: usize,
    fresh: bool,
);
/// Nine rows of `wide` elements, whole vectors, to the 12 places of a pair, `step` apart. Rows follow each other by so many
/// elements, less than 0 for a window that is turned round.
type Window = unsafe fn(window: *const f32, row: isize, wide: usize, to: *mut f32, step: usize);
/// `wide` elements, whole vectors, of 36 places `step` apart, in the order pair, place, to nine rows.
type Unwindow = unsafe fn(places: *const f32, step: usize, wide: usize, window: *mut f32);

/// The transforms of a level.
pub(super) struct Transforms {
    pub(super) input: [Input; PAIRS],
    pub(super) gradient: [Gradient; PAIRS],
    pub(super) output: [Output; PAIRS],
    pub(super) window: [Window; PAIRS],
    pub(super) unwindow: Unwindow,
}

impl Transforms {
    pub(super) fn at(level: Level) -> &'static Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &avx512::ALL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &avx2::ALL,
            Level::Portable => &portable::ALL,
        }
    }
}

/// Writes the transforms once for a level: its attributes, vector type, lanes and operations.
macro_rules! level {
    ($name:ident, [$($attribute:meta)?], $vector:ty, $lanes:literal, $operations:path) => {
        mod $name {
            use super::{Strided, Transforms};
            use $operations::{add, fma, load, load_part, mul, splat, store, store_part, sub, zero};

            /// Vectors of a line of a cache. Pixels are apart by powers of two all too often, so their lines push each other
            /// out: of each, all that is there is taken at once.
            const PARTS: usize = 16 / $lanes;

            /// Live lanes of each vector of a line, where so many elements are left.
            #[inline]
            fn lives(left: usize) -> [usize; PARTS] {
                std::array::from_fn(|part| left.saturating_sub(part * $lanes).min($lanes))
            }

            pub(super) static ALL: Transforms = Transforms {
                input: [input::<0>, input::<1>, input::<2>],
                gradient: [gradient::<0>, gradient::<1>, gradient::<2>],
                output: [output::<0>, output::<1>, output::<2>],
                window: [window::<0>, window::<1>, window::<2>],
                unwindow,
            };

            /// # Safety
            /// `live` elements are there.
            $(#[$attribute])?
            #[inline]
            unsafe fn get(at: *const f32, live: usize) -> $vector {
                // SAFETY: by the caller's promise.
                unsafe { if live == $lanes { load(at) } else { load_part(at, live) } }
            }

            /// # Safety
            /// `live` elements are there.
            $(#[$attribute])?
            #[inline]
            unsafe fn put(at: *mut f32, value: $vector, live: usize) {
                // SAFETY: by the caller's promise.
                unsafe { if live == $lanes { store(at, value) } else { store_part(at, value, live) } }
            }

            /// Two rows of B'.
            $(#[$attribute])?
            #[inline]
            fn seen<const PAIR: usize>(d: [$vector; 6]) -> [$vector; 2] {
                let [d0, d1, d2, d3, d4, d5] = d;
                match PAIR {
                    0 => {
                        let (even, odd) = (fma(splat(-4.0), d2, d4), fma(splat(-4.0), d1, d3));
                        [add(even, odd), sub(even, odd)]
                    }
                    1 => {
                        let (even, odd) = (sub(d4, d2), sub(d3, d1));
                        [fma(splat(2.0), odd, even), fma(splat(-2.0), odd, even)]
                    }
                    _ => [
                        fma(splat(-5.0), d2, fma(splat(4.0), d0, d4)),
                        fma(splat(-5.0), d3, fma(splat(4.0), d1, d5)),
                    ],
                }
            }

            /// # Safety
            /// As the type says; the processor has the level's features.
            $(#[$attribute])?
            unsafe fn input<const PAIR: usize>(
                pixels: &[*const f32; 36],
                start: usize,
                width: usize,
                to: *mut f32,
                step: usize,
            ) {
                let mut at = 0;
                while at < width {
                    let lives = lives(width - at);
                    let mut rows = [[[zero(); 6]; 2]; PARTS];
                    for column in 0..6 {
                        for (part, live) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                            let mut d = [zero(); 6];
                            for (row, d) in d.iter_mut().enumerate() {
                                // the pairs inside do not see the first and the last row
                                if PAIR == 2 || (row > 0 && row < 5) {
                                    // SAFETY: `live` elements are left of the pixel's `width`.
                                    *d = unsafe { get(pixels[6 * row + column].add(start + at + part * $lanes), live) };
                                }
                            }
                            let [one, other] = seen::<PAIR>(d);
                            rows[part][0][column] = one;
                            rows[part][1][column] = other;
                        }
                    }
                    for (part, live) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                        for (half, row) in rows[part].into_iter().enumerate() {
                            let [one, two] = seen::<0>(row);
                            let [three, four] = seen::<1>(row);
                            let [nought, five] = seen::<2>(row);
                            for (column, value) in [nought, one, two, three, four, five].into_iter().enumerate() {
                                // SAFETY: `live` elements are left of the place's `width`.
                                unsafe { put(to.add((6 * half + column) * step + at + part * $lanes), value, live) };
                            }
                        }
                    }
                    at += PARTS * $lanes;
                }
            }

            /// Two rows of A.
            $(#[$attribute])?
            #[inline]
            fn spread<const PAIR: usize>(g: [$vector; 4]) -> [$vector; 2] {
                let [g0, g1, g2, g3] = g;
                match PAIR {
                    0 => {
                        let (even, odd) = (add(g0, g2), add(g1, g3));
                        [add(even, odd), sub(even, odd)]
                    }
                    1 => {
                        let (even, odd) = (fma(splat(4.0), g2, g0), fma(splat(4.0), g3, g1));
                        [fma(splat(2.0), odd, even), fma(splat(-2.0), odd, even)]
                    }
                    _ => [g0, g3],
                }
            }

            /// # Safety
            /// As the type says; the processor has the level's features.
            $(#[$attribute])?
            unsafe fn gradient<const PAIR: usize>(
                pixels: &[*const f32; 16],
                start: usize,
                width: usize,
                to: *mut f32,
                step: usize,
            ) {
                let mut at = 0;
                while at < width {
                    let lives = lives(width - at);
                    let mut rows = [[[zero(); 4]; 2]; PARTS];
                    for column in 0..4 {
                        for (part, live) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                            let mut g = [zero(); 4];
                            for (row, g) in g.iter_mut().enumerate() {
                                // the pair outside sees the first and the last row alone
                                if PAIR < 2 || row == 0 || row == 3 {
                                    // SAFETY: `live` elements are left of the pixel's `width`.
                                    *g = unsafe { get(pixels[4 * row + column].add(start + at + part * $lanes), live) };
                                }
                            }
                            let [one, other] = spread::<PAIR>(g);
                            rows[part][0][column] = one;
                            rows[part][1][column] = other;
                        }
                    }
                    for (part, _) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                        for (half, row) in rows[part].into_iter().enumerate() {
                            let [one, two] = spread::<0>(row);
                            let [three, four] = spread::<1>(row);
                            for (column, value) in [row[0], one, two, three, four, row[3]].into_iter().enumerate() {
                                // SAFETY: a place has room for whole vectors.
                                unsafe { store(to.add((6 * half + column) * step + at + part * $lanes), value) };
                            }
                        }
                    }
                    at += PARTS * $lanes;
                }
            }

            /// # Safety
            /// As the type says; the processor has the level's features.
            $(#[$attribute])?
            unsafe fn output<const PAIR: usize>(
                rows: usize,
                (vectors, last): (usize, usize),
                from: Strided,
                step: usize,
                to: &[*mut f32; 16],
                to_step: usize,
                fresh: bool,
            ) {
                let width = (vectors - 1) * $lanes + last;
                for row in 0..rows {
                    for first in (0..vectors).step_by(PARTS) {
                        let lives = lives(width - first * $lanes);
                        let mut halves = [[[zero(); 4]; 2]; PARTS];
                        for (part, _) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                            for (half, sums) in halves[part].iter_mut().enumerate() {
                                let mut m = [zero(); 6];
                                for (column, m) in m.iter_mut().enumerate() {
                                    let at = (6 * half + column) * step + row * from.1 + (first + part) * $lanes;
                                    // SAFETY: a whole vector of a row of the place.
                                    *m = unsafe { load(from.0.add(at)) };
                                }
                                let (even, odd) = (add(m[1], m[2]), sub(m[1], m[2]));
                                let (even2, odd2) = (add(m[3], m[4]), sub(m[3], m[4]));
                                *sums = [
                                    add(add(m[0], even), even2),
                                    fma(splat(2.0), odd2, odd),
                                    fma(splat(4.0), even2, even),
                                    fma(splat(8.0), odd2, add(odd, m[5])),
                                ];
                            }
                        }
                        for column in 0..4 {
                            for (part, live) in lives.into_iter().enumerate().filter(|(_, live)| *live > 0) {
                                let [one, other] = [halves[part][0][column], halves[part][1][column]];
                                let at = row * to_step + (first + part) * $lanes;
                                // SAFETY: `live` elements of a row of each pixel.
                                unsafe {
                                    let pixel = |row: usize| to[4 * row + column].add(at);
                                    match PAIR {
                                        0 => {
                                            let (even, odd) = (add(one, other), sub(one, other));
                                            for (row, value) in [even, odd, even, odd].into_iter().enumerate() {
                                                let at = pixel(row);
                                                put(at, if fresh { value } else { add(get(at, live), value) }, live);
                                            }
                                        }
                                        1 => {
                                            let (even, odd) = (add(one, other), sub(one, other));
                                            let factors = [(1.0, even), (2.0, odd), (4.0, even), (8.0, odd)];
                                            for (row, (factor, value)) in factors.into_iter().enumerate() {
                                                let at = pixel(row);
                                                put(at, fma(splat(factor), value, get(at, live)), live);
                                            }
                                        }
                                        _ => {
                                            put(pixel(0), add(get(pixel(0), live), one), live);
                                            put(pixel(3), add(get(pixel(3), live), other), live);
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }

            /// G.
            $(#[$attribute])?
            #[inline]
            fn widen(g: [$vector; 3]) -> [$vector; 6] {
                let sixth = splat(1.0 / 6.0);
                let (ends, middle) = (mul(add(g[0], g[2]), sixth), mul(g[1], sixth));
                let even = fma(splat(1.0 / 24.0), g[0], mul(g[2], sixth));
                let odd = mul(g[1], splat(1.0 / 12.0));
                [
                    mul(g[0], splat(0.25)),
                    sub(zero(), add(ends, middle)),
                    sub(middle, ends),
                    add(even, odd),
                    sub(even, odd),
                    g[2],
                ]
            }

            /// # Safety
            /// As the type says; the processor has the level's features.
            $(#[$attribute])?
            unsafe fn window<const PAIR: usize>(
                window: *const f32,
                row: isize,
                wide: usize,
                to: *mut f32,
                step: usize,
            ) {
                for at in (0..wide).step_by($lanes) {
                    let mut columns = [[zero(); 6]; 3];
                    for (column, to) in columns.iter_mut().enumerate() {
                        let place = |index: isize| window.wrapping_offset((index + column as isize) * row + at as isize);
                        // SAFETY: a whole vector of each of the nine rows.
                        let g = [0, 3, 6].map(|index| unsafe { load(place(index)) });
                        *to = widen(g);
                    }
                    for (half, row) in [[1, 2], [3, 4], [0, 5]][PAIR].into_iter().enumerate() {
                        let places = widen([columns[0][row], columns[1][row], columns[2][row]]);
                        for (column, value) in places.into_iter().enumerate() {
                            // SAFETY: a whole vector of the place.
                            unsafe { store(to.add((6 * half + column) * step + at), value) };
                        }
                    }
                }
            }

            /// G'.
            $(#[$attribute])?
            #[inline]
            fn narrow(u: [$vector; 6]) -> [$vector; 3] {
                let sixth = splat(1.0 / 6.0);
                let (even, odd) = (mul(add(u[1], u[2]), sixth), mul(sub(u[2], u[1]), sixth));
                let (even2, odd2) = (add(u[3], u[4]), sub(u[3], u[4]));
                [
                    fma(splat(1.0 / 24.0), even2, sub(mul(u[0], splat(0.25)), even)),
                    fma(splat(1.0 / 12.0), odd2, odd),
                    add(fma(sixth, even2, sub(zero(), even)), u[5]),
                ]
            }

            /// # Safety
            /// As the type says; the processor has the level's features.
            $(#[$attribute])?
            unsafe fn unwindow(places: *const f32, step: usize, wide: usize, window: *mut f32) {
                for at in (0..wide).step_by($lanes) {
                    let mut columns = [[zero(); 3]; 6];
                    for (column, to) in columns.iter_mut().enumerate() {
                        // row r of the places is a half of a pair
                        let u = [24, 0, 6, 12, 18, 30].map(|row| {
                            // SAFETY: a whole vector of the place.
                            unsafe { load(places.add((row + column) * step + at)) }
                        });
                        *to = narrow(u);
                    }
                    for row in 0..3 {
                        let sums = narrow(std::array::from_fn(|column| columns[column][row]));
                        for (column, value) in sums.into_iter().enumerate() {
                            // SAFETY: a whole vector of one of the nine rows.
                            unsafe { store(window.add((3 * row + column) * wide + at), value) };
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
level!(avx512, [target_feature(enable = "avx512f")], std::arch::x86_64::__m512, 16, super::super::simd::operations512);
#[cfg(target_arch = "x86_64")]
level!(avx2, [target_feature(enable = "avx2,fma")], std::arch::x86_64::__m256, 8, super::super::simd::operations2);
level!(portable, [], super::super::simd::plain::Vector, 8, super::super::simd::plain);
