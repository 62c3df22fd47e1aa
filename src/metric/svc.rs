//! A support-vector classifier with the kernel exp(-gamma |a - b|^2), trained as LIBSVM and scikit-learn train theirs, so that
//! it calls what they call: sequential minimal optimisation with the second-order choice of Fan, Chen and Lin, JMLR 6
//! (2005), <https://www.jmlr.org/papers/v6/fan05a.html>, the shrinking of Chang and Lin, LIBSVM (2011), section 5.1,
//! <https://www.csie.ntu.edu.tw/~cjlin/papers/libsvm.pdf>, kernel values in f32, sums in f64, stopping at 0.001. Where
//! LIBSVM reorders its arrays and lets shrunk points be, all stay in place here and shrunk ones are only not chosen: wide
//! loops over everything cost less than rows that change their order. Choices between all but equal candidates hang on the
//! last bits, so sums run in LIBSVM's order, also those by which points come back from shrinking, and of equal ones that
//! is taken which comes last in LIBSVM's order (`Order`).

mod kernel;
mod order;

use rayon::prelude::*;

use super::exp::exp;
use crate::error::Result;
use crate::halt::Halt;
use crate::wide::wide;
use kernel::Kernel;
use order::Order;

/// The pair that violates optimality most may do so by this much in the end.
const TOLERANCE: f64 = 1e-3;
/// In place of a curvature of 0.
const FLAT: f64 = 1e-12;
/// Points of a block, whose largest values are kept.
const BLOCK: usize = 256;
/// Points asked at once.
const ASKED: usize = 64;
/// Steps after which it ends in any case.
const STEPS: usize = 10_000_000;

/// A trained classifier.
#[derive(Clone, Debug)]
pub struct Svc {
    gamma: f64,
    /// Support vectors, strangers before members, with alpha times the sign of their side.
    vectors: Vec<(Vec<f64>, f64)>,
    offset: f64,
    /// Steps of the optimisation.
    pub steps: usize,
}

impl Svc {
    /// Learns to tell members from strangers: rows of one length, of finite numbers. `penalty` is C.
    pub fn fit(
        members: &[Vec<f64>],
        strangers: &[Vec<f64>],
        (penalty, gamma): (f64, f64),
        halt: &Halt,
    ) -> Result<Self> {
        // scikit-learn takes the lower label first, as the positive side
        let rows: Vec<&[f64]> = strangers.iter().chain(members).map(Vec::as_slice).collect();
        let mut solver = Solver::new(&rows, strangers.len(), penalty, gamma);
        solver.solve(halt)?;
        let weighted = rows.iter().zip(&solver.alpha).zip(&solver.sign);
        let vectors = weighted.filter(|((_, alpha), _)| **alpha > 0.0).map(|((row, a), sign)| (row.to_vec(), a * sign));
        Ok(Self { gamma, vectors: vectors.collect(), offset: solver.offset(), steps: solver.steps })
    }

    /// The decision value of each row, positive for members, as scikit-learn's `decision_function` gives it.
    pub fn decide(&self, asked: &[Vec<f64>], halt: &Halt) -> Result<Vec<f64>> {
        let width = asked.first().map_or(0, Vec::len);
        let block = |rows: &[Vec<f64>]| {
            halt()?;
            let mut columns = vec![[0.0; ASKED]; width];
            for (at, row) in rows.iter().enumerate() {
                columns.iter_mut().zip(row).for_each(|(column, value)| column[at] = *value);
            }
            let mut sums = [0.0; ASKED];
            decide(&columns, &self.vectors, self.gamma, &mut sums);
            Ok(sums[..rows.len()].iter().map(|sum| -(sum - self.offset)).collect::<Vec<f64>>())
        };
        let blocks: Vec<Result<Vec<f64>>> = asked.par_chunks(ASKED).map(block).collect();
        Ok(blocks.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }
}

wide! {
    /// Adds each support vector's part to the sums of some points, whose features are columns.
    fn decide(columns: &[[f64; ASKED]], vectors: &[(Vec<f64>, f64)], gamma: f64, sums: &mut [f64; ASKED]) {
        for (vector, weight) in vectors {
            let mut far = [0.0; ASKED];
            for (column, value) in columns.iter().zip(vector) {
                for (far, x) in far.iter_mut().zip(column) {
                    let d = x - value;
                    *far += d * d;
                }
            }
            for (sum, far) in sums.iter_mut().zip(&far) {
                *sum += weight * exp(-gamma * far);
            }
        }
    }
}

/// The dual problem, least sum_ij a_i a_j s_i s_j K_ij / 2 - sum_i a_i for a_i in [0, C] and sum_i s_i a_i = 0.
struct Solver {
    kernel: Kernel,
    penalty: f64,
    sign: Vec<f64>,
    alpha: Vec<f64>,
    /// -s_i times the gradient: a pair (i, j) violates optimality where i may rise, j may fall and i's is the larger.
    value: Vec<f64>,
    /// The part of `value` that comes from points at the upper bound.
    bound: Vec<f64>,
    /// 0 where s_i a_i may rise, minus infinity where it may not or the point is shrunk.
    up: Vec<f32>,
    /// The same for falling.
    low: Vec<f32>,
    order: Order,
    /// The largest of `value` that may rise, by block.
    tops: Vec<f64>,
    gains: Vec<f64>,
    steps: usize,
}

impl Solver {
    fn new(rows: &[&[f64]], positive: usize, penalty: f64, gamma: f64) -> Self {
        let count = rows.len();
        let sign: Vec<f64> = (0..count).map(|at| if at < positive { 1.0 } else { -1.0 }).collect();
        let open = |wanted: f64| sign.iter().map(|&s| if s == wanted { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mut solver = Self {
            kernel: Kernel::new(rows, gamma),
            penalty,
            alpha: vec![0.0; count],
            value: sign.clone(),
            bound: vec![0.0; count],
            up: open(1.0),
            low: open(-1.0),
            sign,
            order: Order::new(count),
            tops: vec![0.0; count.div_ceil(BLOCK)],
            gains: vec![0.0; count],
            steps: 0,
        };
        // nothing moves, but the largest values are found
        solver.look();
        solver
    }

    fn solve(&mut self, halt: &Halt) -> Result<()> {
        let pause = self.value.len().min(1000);
        let mut pending = pause + 1;
        while self.steps < STEPS {
            pending -= 1;
            if pending == 0 {
                pending = pause;
                self.shrink(halt)?;
            }
            let mut pair = self.choose();
            if pair.is_none() {
                // optimal among those that are left: all come back, and are shrunk again at once
                self.restore(halt)?;
                pending = 1;
                pair = self.choose();
            }
            let Some((i, j)) = pair else { break };
            self.steps += 1;
            self.step(i, j);
        }
        Ok(())
    }

    /// Looks for the largest values again after points were taken out or back.
    fn look(&mut self) {
        let none = vec![0.0; self.value.len()];
        advance(&mut self.value, [&none, &none], [0.0, 0.0], &self.up, &mut self.tops);
    }

    /// Of the points with the largest value, by the largest of each block, the one that comes last in the order.
    fn last(&self, tops: &[f64], value: impl Fn(usize) -> f64) -> Option<usize> {
        let top = largest(tops);
        let blocks = (0..tops.len()).filter(|&block| tops[block] == top).map(|block| block * BLOCK);
        let points = blocks.flat_map(|start| start..(start + BLOCK).min(self.value.len()));
        points.filter(|&at| value(at) == top).max_by_key(|&at| self.order.place[at])
    }

    /// The point that may rise with the largest value, and the one whose fall with it gains most; none where the pair
    /// violates optimality by less than the tolerance.
    fn choose(&mut self) -> Option<(usize, usize)> {
        let i = self.last(&self.tops, |at| self.value[at] + f64::from(self.up[at]))?;
        let row = self.kernel.row(i);
        let mut best = vec![f64::NEG_INFINITY; self.tops.len()];
        let gap = gain(self.value[i], &self.value, self.kernel.at(row), &self.low, &mut self.gains, &mut best);
        // also where nothing may rise or fall
        if gap < TOLERANCE || self.up[i] < 0.0 {
            return None;
        }
        Some((i, self.last(&best, |at| self.gains[at])?))
    }

    /// The best change of that pair within the bounds, and what follows from it.
    fn step(&mut self, i: usize, j: usize) {
        let (row_i, row_j) = (self.kernel.row(i), self.kernel.row(j));
        let between = self.kernel.at(row_i)[j];
        let curvature = 2.0 - 2.0 * f64::from(between);
        let curvature = if curvature > 0.0 { curvature } else { FLAT };
        let (old_i, old_j, most) = (self.alpha[i], self.alpha[j], self.penalty);
        let slope = |at: usize| -self.sign[at] * self.value[at];
        let (mut new_i, mut new_j);
        if self.sign[i] == self.sign[j] {
            let delta = (slope(i) - slope(j)) / curvature;
            let sum = old_i + old_j;
            (new_i, new_j) = (old_i - delta, old_j + delta);
            if sum > most {
                if new_i > most {
                    (new_i, new_j) = (most, sum - most);
                }
                if new_j > most {
                    (new_i, new_j) = (sum - most, most);
                }
            } else {
                if new_j < 0.0 {
                    (new_i, new_j) = (sum, 0.0);
                }
                if new_i < 0.0 {
                    (new_i, new_j) = (0.0, sum);
                }
            }
        } else {
            let delta = (-slope(i) - slope(j)) / curvature;
            let difference = old_i - old_j;
            (new_i, new_j) = (old_i + delta, old_j + delta);
            if difference > 0.0 {
                if new_j < 0.0 {
                    (new_i, new_j) = (difference, 0.0);
                }
                if new_i > most {
                    (new_i, new_j) = (most, most - difference);
                }
            } else {
                if new_i < 0.0 {
                    (new_i, new_j) = (0.0, -difference);
                }
                if new_j > most {
                    (new_i, new_j) = (most + difference, most);
                }
            }
        }
        (self.alpha[i], self.alpha[j]) = (new_i, new_j);
        self.mark(i);
        self.mark(j);
        let moves = [self.sign[i] * (new_i - old_i), self.sign[j] * (new_j - old_j)];
        let rows = [self.kernel.at(row_i), self.kernel.at(row_j)];
        advance(&mut self.value, rows, moves, &self.up, &mut self.tops);
        for (at, old, row) in [(i, old_i, rows[0]), (j, old_j, rows[1])] {
            let (was, is) = (old >= most, self.alpha[at] >= most);
            if was != is {
                let sign = if is { self.sign[at] } else { -self.sign[at] };
                subtract(&mut self.bound, row, sign * most);
            }
        }
    }

    /// Which ways a point may move.
    fn mark(&mut self, at: usize) {
        let (rises, falls) = (self.alpha[at] < self.penalty, self.alpha[at] > 0.0);
        let (up, low) = if self.sign[at] > 0.0 { (rises, falls) } else { (falls, rises) };
        let open = |open: bool| if open { 0.0 } else { f32::NEG_INFINITY };
        (self.up[at], self.low[at]) = (open(up), open(low));
    }

    /// Leaves out points at a bound that will very likely stay there.
    fn shrink(&mut self, halt: &Halt) -> Result<()> {
        halt()?;
        let [rise, fall] = self.extremes();
        if !self.order.restored && rise + fall <= 10.0 * TOLERANCE {
            self.order.restored = true;
            self.restore(halt)?;
        }
        let settled = |at: usize| match (self.up[at] == 0.0, self.low[at] == 0.0) {
            (false, true) => self.value[at] > rise,
            (true, false) => -self.value[at] > fall,
            _ => false,
        };
        for at in self.order.shrink(settled) {
            (self.up[at], self.low[at]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        }
        self.look();
        Ok(())
    }

    /// The largest value that may rise, and the largest negative one that may fall.
    fn extremes(&self) -> [f64; 2] {
        let open = |open: &[f32], sign: f64| {
            let all = self.value.iter().zip(open).filter(|(_, open)| **open == 0.0);
            all.fold(f64::NEG_INFINITY, |top, (value, _)| top.max(sign * value))
        };
        [open(&self.up, 1.0), open(&self.low, -1.0)]
    }

    /// Takes the points back that are shrunk. Their values are summed afresh, as LIBSVM does, who did not keep them up.
    fn restore(&mut self, halt: &Halt) -> Result<()> {
        let active = self.order.active;
        let back = self.order.restore();
        if back.is_empty() {
            return Ok(());
        }
        for &at in &back {
            self.mark(at);
            self.value[at] = self.bound[at] + self.sign[at];
        }
        for place in 0..active {
            if place % ASKED == 0 {
                halt()?;
            }
            let from = self.order.points[place];
            if self.alpha[from] > 0.0 && self.alpha[from] < self.penalty {
                let row = self.kernel.row(from);
                let (weight, row) = (self.alpha[from] * self.sign[from], self.kernel.at(row));
                for &at in &back {
                    self.value[at] -= weight * f64::from(row[at]);
                }
            }
        }
        self.look();
        Ok(())
    }

    /// The decision's threshold: the mean over points between the bounds, or the middle of what the others allow.
    fn offset(&self) -> f64 {
        let inside = |at: &&usize| self.alpha[**at] > 0.0 && self.alpha[**at] < self.penalty;
        let free: Vec<f64> = self.order.points.iter().filter(inside).map(|&at| -self.value[at]).collect();
        if !free.is_empty() {
            return free.iter().sum::<f64>() / free.len() as f64;
        }
        let [rise, fall] = self.extremes();
        (fall - rise) / 2.0
    }
}

/// The largest of some numbers.
#[expect(clippy::inline_always, reason = "a part of wide loops")]
#[inline(always)]
fn largest(values: &[f64]) -> f64 {
    let pick = |a: f64, b: f64| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [f64::NEG_INFINITY; 8];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = pick(*lane, *value));
    }
    lanes.iter().chain(rest).fold(f64::NEG_INFINITY, |top, value| pick(top, *value))
}

wide! {
    /// Moves the values by those multiples of two kernel rows and finds the largest, by block, that may rise.
    fn advance(value: &mut [f64], rows: [&[f32]; 2], moves: [f64; 2], up: &[f32], tops: &mut [f64]) {
        let mut open = [0.0; BLOCK];
        let blocks = value.chunks_mut(BLOCK).zip(rows[0].chunks(BLOCK)).zip(rows[1].chunks(BLOCK)).zip(up.chunks(BLOCK));
        for ((((value, a), b), up), top) in blocks.zip(tops) {
            let open = &mut open[..value.len()];
            for ((((value, a), b), up), open) in value.iter_mut().zip(a).zip(b).zip(up).zip(open.iter_mut()) {
                *value -= f64::from(*a) * moves[0] + f64::from(*b) * moves[1];
                *open = *value + f64::from(*up);
            }
            *top = largest(open);
        }
    }
}

wide! {
    fn subtract(sums: &mut [f64], row: &[f32], weight: f64) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum -= weight * f64::from(*value));
    }
}

wide! {
    /// What each point that may fall gains with the one whose value is `top`: squared difference over curvature, minus
    /// infinity where nothing is gained; the largest by block, and the largest difference of all.
    fn gain(top: f64, value: &[f64], row: &[f32], low: &[f32], gains: &mut [f64], best: &mut [f64]) -> f64 {
        let (mut gaps, mut most) = ([0.0; BLOCK], f64::NEG_INFINITY);
        let blocks = value.chunks(BLOCK).zip(row.chunks(BLOCK)).zip(low.chunks(BLOCK)).zip(gains.chunks_mut(BLOCK));
        for ((((value, row), low), gains), best) in blocks.zip(best) {
            let gaps = &mut gaps[..value.len()];
            for ((((value, row), low), gap), gain) in value.iter().zip(row).zip(low).zip(gaps.iter_mut()).zip(&mut *gains) {
                *gap = top - value + f64::from(*low);
                let curvature = 2.0 - 2.0 * f64::from(*row);
                let curvature = if curvature > 0.0 { curvature } else { FLAT };
                let square = *gap * *gap / curvature;
                *gain = if *gap > 0.0 { square } else { f64::NEG_INFINITY };
            }
            *best = largest(gains);
            most = most.max(largest(gaps));
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::halt::never;
    use crate::rng::Rng;

    /// Two clouds that overlap, some points of which are there several times.
    fn clouds(count: usize, width: usize) -> [Vec<Vec<f64>>; 2] {
        let mut rng = Rng::new(4).fork("clouds");
        let mut draw = |middle: f64| (middle + 0.3 * f64::from(rng.normal())).clamp(0.0, 1.0);
        [0.8, 0.6].map(|middle| (0..count).map(|_| (0..width).map(|_| draw(middle)).collect()).collect())
    }

    /// The conditions of the optimum, by decisions that have nothing of the optimisation in them but alpha and offset.
    #[test]
    fn every_point_is_as_the_optimum_has_it() {
        for (count, width) in [(1, 1), (300, 1), (1000, 6), (2500, 1)] {
            let [members, strangers] = clouds(count, width);
            let gamma = 1.0 / width as f64;
            let rows: Vec<&[f64]> = strangers.iter().chain(&members).map(Vec::as_slice).collect();
            let mut solver = Solver::new(&rows, count, 3.0, gamma);
            solver.solve(&never).unwrap();
            let svc = Svc::fit(&members, &strangers, (3.0, gamma), &never).unwrap();
            assert!(count < 2000 || !solver.order.points.is_sorted(), "{} steps: nothing was shrunk", svc.steps);
            let asked: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
            // kernel values in f32 are off by 2^-25
            let slack = TOLERANCE + 3.0 * rows.len() as f64 * 2f64.powi(-25);
            for ((value, sign), &alpha) in
                svc.decide(&asked, &never).unwrap().iter().zip(&solver.sign).zip(&solver.alpha)
            {
                let margin = -sign * value;
                assert!((0.0..=3.0).contains(&alpha));
                assert!(alpha >= 3.0 || margin >= 1.0 - slack, "{count}: {margin} at {alpha}");
                assert!(alpha <= 0.0 || margin <= 1.0 + slack, "{count}: {margin} at {alpha}");
            }
            let balance: f64 = solver.alpha.iter().zip(&solver.sign).map(|(alpha, sign)| alpha * sign).sum();
            assert!(balance.abs() < 1e-9, "{balance}");
        }
    }

    #[test]
    fn decisions_do_not_depend_on_threads() {
        // more than a thread takes of a kernel row at once
        let [members, strangers] = clouds(2000, 100);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let fit = || Svc::fit(&members, &strangers, (3.0, 0.01), &never);
            let decide = || fit()?.decide(&members, &never);
            pool.install(decide).unwrap().into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        let one = with(1);
        assert!(one == with(2) && one == with(5));
    }

    #[test]
    fn points_that_are_all_the_same_are_strangers_or_members_alike() {
        let svc = Svc::fit(&vec![vec![0.5]; 20], &vec![vec![0.5]; 20], (3.0, 1.0), &never).unwrap();
        let values = svc.decide(&[vec![0.5], vec![0.5], vec![0.5]], &never).unwrap();
        assert!(values.iter().all(|value| value.is_finite() && *value == values[0]));
    }
}
