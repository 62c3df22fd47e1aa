//! t-SNE of features: van der Maaten and Hinton, JMLR 2008, <https://www.jmlr.org/papers/v9/vandermaaten08a.html>; exact,
//! with the usual early exaggeration, momentum and gains, and the rate of Belkina et al., Nature Communications 2019,
//! <https://doi.org/10.1038/s41467-019-13055-y>. Each point's sums run in one order, so the map depends on the seed alone.

use rayon::prelude::*;

use super::figure::{Figure, Series, Shape};
use super::{Evidence, Measured, Metric, Need};
use crate::error::Result;
use crate::rng::Rng;

pub const TSNE: Metric = Metric {
    name: "tsne",
    about: "a map of forget, retain and test images by features, a figure",
    paper: "van der Maaten and Hinton, JMLR 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html",
    needs: &[Need::Features],
    measure,
};

/// Images at most, shared out evenly over the parts.
pub const IMAGES: usize = 1_000;
const PERPLEXITY: f64 = 30.0;
const STEPS: usize = 750;
/// Steps with attraction times this and less momentum.
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;

type Points = Vec<[f64; 2]>;

/// Squared Euclidean distances, row by row.
fn distances(x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let between = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    x.par_iter().map(|a| x.iter().map(|b| between(a, b)).collect()).collect()
}

/// p_{j|i} of one row of distances, with the width whose entropy is log of the perplexity, found by bisection.
fn conditional(row: &[f64], own: usize, perplexity: f64) -> Vec<f64> {
    let nearest = (0..row.len()).filter(|&j| j != own).fold(f64::INFINITY, |least, j| least.min(row[j]));
    let weights = |beta: f64| -> Vec<f64> {
        let mut p: Vec<f64> = row.iter().map(|d| (-(d - nearest) * beta).exp()).collect();
        p[own] = 0.0;
        let sum: f64 = p.iter().sum();
        p.into_iter().map(|p| p / sum).collect()
    };
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, 1.0);
    let mut p = weights(beta);
    for _ in 0..100 {
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let over = entropy - perplexity.ln();
        if over.abs() < 1e-6 {
            break;
        }
        if over > 0.0 {
            low = beta;
        } else {
            high = beta;
        }
        beta = if high.is_finite() { f64::midpoint(low, high) } else { 2.0 * low };
        p = weights(beta);
    }
    p
}

/// p_ij: symmetric, together 1, with that perplexity a point (at most a third of the others).
#[must_use]
pub fn affinities(x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = x.len();
    let perplexity = PERPLEXITY.min((n.saturating_sub(1)) as f64 / 3.0);
    let rows: Vec<Vec<f64>> =
        distances(x).par_iter().enumerate().map(|(own, row)| conditional(row, own, perplexity)).collect();
    let pair = |i: usize, j: usize| (rows[i][j] + rows[j][i]) / (2.0 * n as f64);
    (0..n).into_par_iter().map(|i| (0..n).map(|j| pair(i, j)).collect()).collect()
}

/// The gradient of KL(P || Q) by each point, attraction times `exaggeration`: with w = 1 / (1 + |y_i - y_j|^2) and Z the sum
/// of all w, 4 sum_j (p_ij w - w^2 / Z) (y_i - y_j).
#[must_use]
pub fn gradient(p: &[Vec<f64>], y: &Points, exaggeration: f64) -> Points {
    let rows: Vec<[f64; 5]> = p
        .par_iter()
        .zip(y)
        .map(|(p, here)| {
            let [mut ax, mut ay, mut rx, mut ry, mut z] = [0.0; 5];
            for (p, there) in p.iter().zip(y) {
                let (dx, dy) = (here[0] - there[0], here[1] - there[1]);
                let w = 1.0 / (1.0 + dx * dx + dy * dy);
                let (pull, push) = (p * w, w * w);
                ax += pull * dx;
                ay += pull * dy;
                rx += push * dx;
                ry += push * dy;
                z += w;
            }
            // less the point itself
            [ax, ay, rx, ry, z - 1.0]
        })
        .collect();
    let z: f64 = rows.iter().map(|row| row[4]).sum();
    rows.iter()
        .map(|[ax, ay, rx, ry, _]| [4.0 * (exaggeration * ax - rx / z), 4.0 * (exaggeration * ay - ry / z)])
        .collect()
}

/// KL(P || Q), in nats.
#[must_use]
pub fn divergence(p: &[Vec<f64>], y: &Points) -> f64 {
    let w = |i: usize, j: usize| 1.0 / (1.0 + (y[i][0] - y[j][0]).powi(2) + (y[i][1] - y[j][1]).powi(2));
    let others = |i: usize| (0..y.len()).filter(move |&j| j != i);
    let z: f64 = (0..y.len()).map(|i| others(i).map(|j| w(i, j)).sum::<f64>()).sum();
    let term = |i: usize, j: usize| if p[i][j] > 0.0 { p[i][j] * (p[i][j] * z / w(i, j)).ln() } else { 0.0 };
    (0..y.len()).map(|i| others(i).map(|j| term(i, j)).sum::<f64>()).sum()
}

/// A place in the plane for each row of `x`, whose rows are of one length.
#[must_use]
pub fn embed(p: &[Vec<f64>], steps: usize, mut rng: Rng) -> Points {
    let n = p.len();
    let mut y: Points = (0..n).map(|_| [(); 2].map(|()| 1e-4 * f64::from(rng.normal()))).collect();
    let (mut speed, mut gains) = (vec![[0.0; 2]; n], vec![[1.0_f64; 2]; n]);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..steps {
        let (exaggeration, momentum) = if step < EARLY { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let slopes = gradient(p, &y, exaggeration);
        for (i, slope) in slopes.iter().enumerate() {
            for axis in 0..2 {
                let same = (slope[axis] > 0.0) == (speed[i][axis] > 0.0);
                gains[i][axis] = if same { (gains[i][axis] * 0.8).max(0.01) } else { gains[i][axis] + 0.2 };
                speed[i][axis] = momentum * speed[i][axis] - rate * gains[i][axis] * slope[axis];
                y[i][axis] += speed[i][axis];
            }
        }
    }
    y
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let x: Vec<Vec<f64>> = evidence.features.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    if x.len() < 4 {
        return Ok(Measured::nothing("tsne: left out, it needs 4 images"));
    }
    if x.iter().flatten().any(|value| !value.is_finite()) {
        return Ok(Measured::nothing("tsne: left out, a feature is no number"));
    }
    let p = affinities(&x);
    let y = embed(&p, STEPS, evidence.rng.fork("tsne"));
    let mut rest = y.as_slice();
    let groups = evidence.features.iter().map(|(name, rows)| {
        let (own, others) = rest.split_at(rows.len());
        rest = others;
        let (x, y) = own.iter().map(|&[x, y]| (x, y)).unzip();
        Series::new(name, x, y)
    });
    let groups: Vec<Series> = groups.collect();
    let counts: Vec<String> = groups.iter().map(|group| format!("{} {}", group.x.len(), group.name)).collect();
    Ok(Measured::default().note(format!("tsne: {} images", counts.join(", "))).figure(Figure::new(
        "tsne",
        "t-SNE of the features",
        Shape::Points { groups },
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three clouds in ten dimensions, 20 points each.
    fn clouds() -> Vec<Vec<f64>> {
        let mut rng = Rng::new(3).fork("clouds");
        let point = |index: usize| (0..10).map(|axis| if axis == index / 20 { 8.0 } else { 0.0 }).collect::<Vec<f64>>();
        let mut all: Vec<Vec<f64>> = (0..60).map(point).collect();
        all.iter_mut().flatten().for_each(|value| *value += f64::from(rng.normal()));
        all
    }

    #[test]
    fn affinities_are_symmetric_and_have_the_perplexity() {
        let x = clouds();
        let p = affinities(&x);
        let sum: f64 = p.iter().flatten().sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert!((0..60).all(|i| p[i][i] == 0.0 && (0..60).all(|j| p[i][j] == p[j][i])));
        let row = conditional(&distances(&x)[7], 7, 12.0);
        let entropy: f64 = row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - 12.0).abs() < 1e-4, "{}", entropy.exp());
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_divergence() {
        let p = affinities(&clouds());
        let mut rng = Rng::new(5).fork("places");
        let y: Points = (0..60).map(|_| [(); 2].map(|()| f64::from(rng.normal()))).collect();
        let slopes = gradient(&p, &y, 1.0);
        for (i, axis) in [(0, 0), (7, 1), (31, 0), (59, 1)] {
            let at = |shift: f64| {
                let mut moved = y.clone();
                moved[i][axis] += shift;
                divergence(&p, &moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((slope - slopes[i][axis]).abs() < 1e-8, "{slope} {}", slopes[i][axis]);
        }
    }

    #[test]
    fn the_divergence_falls_and_clouds_stay_apart() {
        let p = affinities(&clouds());
        let at = |steps: usize| embed(&p, steps, Rng::new(1));
        let (start, end) = (divergence(&p, &at(0)), divergence(&p, &at(STEPS)));
        assert!(end < start / 3.0, "{start} {end}");
        let y = at(STEPS);
        let distance = |i: usize, j: usize| (y[i][0] - y[j][0]).hypot(y[i][1] - y[j][1]);
        for i in 0..60 {
            let nearest = (0..60).filter(|&j| j != i).min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            assert_eq!(nearest.unwrap() / 20, i / 20, "{i}");
        }
    }

    #[test]
    fn the_map_does_not_depend_on_threads() {
        let x = clouds();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| embed(&affinities(&x), 300, Rng::new(2)))
        };
        let bits = |points: Points| points.into_iter().map(|p| p.map(f64::to_bits)).collect::<Vec<_>>();
        let one = bits(with(1));
        assert!(one == bits(with(2)) && one == bits(with(5)));
        assert!(one != bits(embed(&affinities(&x), 300, Rng::new(3))));
    }
}
