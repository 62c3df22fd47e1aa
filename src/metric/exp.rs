//! exp for wide loops.

/// Coefficients of exp from r^13 down to r^2: 1 / n!.
const TAYLOR: [f64; 12] = [
    1.0 / 6227020800.0,
    1.0 / 479001600.0,
    1.0 / 39916800.0,
    1.0 / 3628800.0,
    1.0 / 362880.0,
    1.0 / 40320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
];

/// exp(x) for x in [-infinity, 0], off by 0.8 units of the last place at most; below -708, where f64 runs out of digits, it
/// is exp(-708). Made to be inlined into wide loops: x = n ln 2 + r with |r| <= ln 2 / 2, a Taylor series in r, and n into
/// the exponent.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    /// Its last bit is worth 1: adding it rounds to a whole number, in two's complement in the low bits.
    const ROUND: f64 = 6755399441055744.0;
    /// ln 2 in two parts; a whole number of 11 bits times the first is exact.
    const HIGH: f64 = 0.693_147_180_369_123_8;
    const LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = x.max(-708.0);
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let (most, least) = (x - n * HIGH, n * LOW);
    let r = most - least;
    let rest = (most - r) - least;
    let tail = TAYLOR[1..].iter().fold(TAYLOR[0], |sum, c| sum * r + c);
    // the small before the large: only the last sum rounds by much
    let power = 1.0 + (r + (r * r * tail + rest));
    f64::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library_but_for_the_last_digit() {
        for step in 0..200_000 {
            let x = -708.0 * (f64::from(step) / 200_000.0).powi(3);
            let (mine, theirs) = (exp(x), x.exp());
            let off = (mine.to_bits() as i64 - theirs.to_bits() as i64).abs();
            assert!(off <= 1, "{x}: {mine:e} {theirs:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(f64::NEG_INFINITY), exp(-1e9)), (exp(-708.0), exp(-708.0)));
    }
}
