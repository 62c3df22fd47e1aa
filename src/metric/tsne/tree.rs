//! How points of a map push each other apart, after Barnes and Hut (van der Maaten, JMLR 15, 2014, section 4.2,
//! <https://www.jmlr.org/papers/v15/vandermaaten14a.html>): a cell of the plane that is small from afar stands for the points in
//! it. Points are sorted along a Z-shaped curve, so that a cell is a run of them and neighbours walk the tree together, one
//! a lane: a cell is taken whole where it may be for the nearest place of their bounding box, so for each of them.

use rayon::prelude::*;

use super::Points;
use crate::wide::wide;

/// Points that walk together.
const LANES: usize = 16;
/// Points of a cell that is not divided.
const LEAF: usize = 8;
/// The largest side, in distances, of a cell that stands for its points, as usual.
pub(super) const ANGLE: f64 = 0.5;
/// Times the plane is quartered, at most.
const DEPTH: u32 = 32;

/// A square cell; its parts follow it, then comes `next`.
struct Cell {
    centre: [f64; 2],
    count: f64,
    /// Square of its side.
    side: f64,
    next: u32,
    /// The points of a cell that is not divided; none of others.
    points: std::ops::Range<u32>,
}

/// What pushes each point, sum_j w^2 (y_i - y_j), and the sum of all w over pairs, w = 1 / (1 + |y_i - y_j|^2).
/// An angle of 0 takes all pairs.
pub(super) fn push(y: &Points, angle: f64) -> (Points, f64) {
    let tree = Tree::new(y);
    let mut pushed = vec![[0.0; 2]; y.len()];
    let runs: Vec<Lanes> =
        tree.places.par_chunks(LANES).map(|run| walk(&tree.cells, &tree.places, run, angle * angle)).collect();
    let mut total = 0.0;
    for (at, &point) in tree.points.iter().enumerate() {
        let [x, y, near] = [0, 1, 2].map(|row| runs[at / LANES].0[row][at % LANES]);
        pushed[point as usize] = [x, y];
        // less the point itself
        total += near - 1.0;
    }
    (pushed, total)
}

/// Pushes by axis and sums of w, a lane for each point.
struct Lanes([[f64; LANES]; 3]);

struct Tree {
    cells: Vec<Cell>,
    /// Points along the curve, and their places.
    points: Vec<u32>,
    places: Points,
}

impl Tree {
    fn new(y: &Points) -> Self {
        let bounds = |axis: usize| {
            y.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p[axis]), high.max(p[axis])))
        };
        let (x, y_axis) = (bounds(0), bounds(1));
        let side = (x.1 - x.0).max(y_axis.1 - y_axis.0).max(f64::MIN_POSITIVE);
        // a float that is too large becomes the largest whole number
        let whole = |value: f64, low: f64| spread(((value - low) / side * 2f64.powi(DEPTH as i32)) as u32);
        let mut keys: Vec<(u64, u32)> = y
            .par_iter()
            .zip(0..y.len() as u32)
            .map(|(p, at)| (whole(p[0], x.0) | whole(p[1], y_axis.0) << 1, at))
            .collect();
        keys.par_sort_unstable();
        let points: Vec<u32> = keys.iter().map(|key| key.1).collect();
        let places: Points = points.iter().map(|&point| y[point as usize]).collect();
        let mut tree = Self { cells: Vec::with_capacity(y.len()), points, places };
        tree.divide(&keys, 0, side, 0);
        tree
    }

    /// Adds the cell of those points, which begin at `start`, and its parts; gives the sum of their places.
    fn divide(&mut self, keys: &[(u64, u32)], start: usize, side: f64, depth: u32) -> [f64; 2] {
        let (own, count) = (self.cells.len(), keys.len());
        let leaf = count <= LEAF || depth == DEPTH;
        let points = if leaf { start as u32..(start + count) as u32 } else { 0..0 };
        self.cells.push(Cell { centre: [0.0; 2], count: count as f64, side: side * side, next: 0, points });
        let mut sum = [0.0; 2];
        let mut add = |part: [f64; 2]| sum = [sum[0] + part[0], sum[1] + part[1]];
        if leaf {
            self.places[start..start + count].iter().copied().for_each(&mut add);
        } else {
            let quarter = |key: u64| key >> (2 * (DEPTH - 1 - depth)) & 3;
            let mut from = 0;
            for part in 0..4 {
                let until = from + keys[from..].partition_point(|key| quarter(key.0) <= part);
                if until > from {
                    add(self.divide(&keys[from..until], start + from, side / 2.0, depth + 1));
                }
                from = until;
            }
        }
        let next = self.cells.len() as u32;
        let cell = &mut self.cells[own];
        (cell.centre, cell.next) = (sum.map(|sum| sum / count as f64), next);
        sum
    }
}

/// The bits of a number, each followed by a 0.
fn spread(value: u32) -> u64 {
    let mut all = u64::from(value);
    for (shift, mask) in [
        (16, 0x0000_ffff_0000_ffff),
        (8, 0x00ff_00ff_00ff_00ff),
        (4, 0x0f0f_0f0f_0f0f_0f0f),
        (2, 0x3333_3333_3333_3333),
        (1, 0x5555_5555_5555_5555),
    ] {
        all = (all | all << shift) & mask;
    }
    all
}

wide! {
    fn walk(cells: &[Cell], places: &Points, run: &[[f64; 2]], small: f64) -> Lanes {
        let mut own = [[0.0; LANES]; 2];
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for lane in 0..LANES {
            // lanes without a point walk with the last
            let place = run[lane.min(run.len() - 1)];
            for axis in 0..2 {
                own[axis][lane] = place[axis];
                low[axis] = low[axis].min(place[axis]);
                high[axis] = high[axis].max(place[axis]);
            }
        }
        let mut sums = [[0.0; LANES]; 3];
        let mut at = 0;
        while let Some(cell) = cells.get(at) {
            let off = [0, 1].map(|axis| (low[axis] - cell.centre[axis]).max(cell.centre[axis] - high[axis]).max(0.0));
            if cell.side < small * (off[0] * off[0] + off[1] * off[1]) {
                apart(&own, cell.centre, cell.count, &mut sums);
                at = cell.next as usize;
            } else {
                for place in &places[cell.points.start as usize..cell.points.end as usize] {
                    apart(&own, *place, 1.0, &mut sums);
                }
                at += 1;
            }
        }
        Lanes(sums)
    }
}

#[expect(clippy::inline_always, reason = "a part of a wide loop")]
#[inline(always)]
fn apart(own: &[[f64; LANES]; 2], there: [f64; 2], count: f64, sums: &mut [[f64; LANES]; 3]) {
    let [x, y] = own;
    let [push_x, push_y, near] = sums;
    for ((((x, y), push_x), push_y), near) in x.iter().zip(y).zip(push_x).zip(push_y).zip(near) {
        let (dx, dy) = (x - there[0], y - there[1]);
        let w = 1.0 / (1.0 + dx * dx + dy * dy);
        let all = count * w;
        *near += all;
        *push_x += all * w * dx;
        *push_y += all * w * dy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// By all pairs.
    fn slow(y: &Points) -> (Points, f64) {
        let mut total = 0.0;
        let all = y.iter().enumerate().map(|(own, here)| {
            let mut sum = [0.0; 2];
            for there in y.iter().take(own).chain(&y[own + 1..]) {
                let (dx, dy) = (here[0] - there[0], here[1] - there[1]);
                let w = 1.0 / (1.0 + dx * dx + dy * dy);
                total += w;
                sum = [sum[0] + w * w * dx, sum[1] + w * w * dy];
            }
            sum
        });
        (all.collect(), total)
    }

    fn places(count: usize, scale: f64) -> Points {
        let mut rng = Rng::new(5).fork("places");
        (0..count).map(|_| [(); 2].map(|()| scale * f64::from(rng.normal()))).collect()
    }

    /// A cell of side s at distance d stands for places that scatter by s^2 / 6 about its centre; second derivatives make
    /// an error of (s / d)^2 / 6 in w there and of twice that in the push, at most the square of the angle for (s / d)^2.
    #[test]
    fn pushes_are_those_of_all_pairs_but_for_the_angle() {
        for (count, scale) in [(1, 1.0), (2, 1.0), (17, 1e-4), (700, 0.1), (700, 20.0), (3001, 30.0)] {
            let y = places(count, scale);
            let (theirs, wanted) = slow(&y);
            for angle in [0.0, 0.1, ANGLE] {
                let (mine, sum) = push(&y, angle);
                let (square, rounding) = (angle * angle, 1e-12);
                assert!(
                    (sum - wanted).abs() <= (square / 6.0 + rounding) * wanted + rounding,
                    "{count} {scale}: {sum} {wanted}"
                );
                let length = |p: &[f64; 2]| p[0].hypot(p[1]);
                let all: f64 = theirs.iter().map(length).sum();
                let off: f64 = mine.iter().zip(&theirs).map(|(a, b)| length(&[a[0] - b[0], a[1] - b[1]])).sum();
                assert!(off <= (square / 3.0 + rounding) * all + rounding, "{count} {scale} {angle}: {off} of {all}");
            }
        }
    }

    /// Points in one place cannot be told apart by any division.
    #[test]
    fn points_in_one_place_count_each() {
        let y = [vec![[1.0, 2.0]; 100], vec![[-3.0, 2.0]]].concat();
        let (mine, sum) = push(&y, ANGLE);
        let w = 1.0 / 17.0;
        assert!((sum - (100.0 * 99.0 + 200.0 * w)).abs() < 1e-6, "{sum}");
        assert!((mine[100][0] - 100.0 * w * w * -4.0).abs() < 1e-12 && mine[100][1] == 0.0);
        let (same, sum) = push(&vec![[0.5; 2]; 40], ANGLE);
        assert!(same.iter().flatten().all(|push| *push == 0.0) && sum == 40.0 * 39.0);
    }
}
