//! t-SNE of features: van der Maaten and Hinton, JMLR 2008, <https://www.jmlr.org/papers/v9/vandermaaten08a.html>, with
//! affinities of near neighbours and pushes by cells of the plane (van der Maaten, JMLR 2014,
//! <https://www.jmlr.org/papers/v15/vandermaaten14a.html>), the usual early exaggeration, momentum and gains, and the rate of
//! Belkina et al., Nature Communications 2019, <https://doi.org/10.1038/s41467-019-13055-y>. Each point's sums run in one
//! order, so the map depends on the seed alone.

mod neighbours;
mod tree;

use rayon::prelude::*;

use super::figure::{Figure, Series, Shape};
use super::{Evidence, Measured, Metric, Need};
use crate::error::Result;
use crate::halt::Halt;
use crate::rng::Rng;
use neighbours::{Row, affinities};

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
const STEPS: usize = 1_000;
/// Steps with attraction times this and less momentum.
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;

/// Places in the plane.
pub type Points = Vec<[f64; 2]>;

/// The gradient of KL(P || Q) by each point, attraction times `exaggeration`: with w = 1 / (1 + |y_i - y_j|^2) and Z the sum
/// of all w, 4 sum_j (p_ij w - w^2 / Z) (y_i - y_j).
fn gradient(p: &[Row], y: &Points, exaggeration: f64) -> Points {
    let (push, z) = tree::push(y, tree::ANGLE);
    let pull = |row: &Row, here: &[f64; 2]| {
        let mut sum = [0.0; 2];
        for &(other, p) in row {
            let there = y[other as usize];
            let (dx, dy) = (here[0] - there[0], here[1] - there[1]);
            let w = p / (1.0 + dx * dx + dy * dy);
            sum = [sum[0] + w * dx, sum[1] + w * dy];
        }
        sum
    };
    let slope = |((row, here), push): ((&Row, &[f64; 2]), &[f64; 2])| {
        let pull = pull(row, here);
        [0, 1].map(|axis| 4.0 * (exaggeration * pull[axis] - push[axis] / z))
    };
    p.par_iter().zip(y).zip(&push).map(slope).collect()
}

/// A place in the plane for each row of `x`, rows of one length and of finite numbers.
pub fn map(x: &[Vec<f64>], rng: Rng, halt: &Halt) -> Result<Points> {
    embed(&affinities(x, PERPLEXITY), STEPS, rng, halt)
}

fn embed(p: &[Row], steps: usize, mut rng: Rng, halt: &Halt) -> Result<Points> {
    let n = p.len();
    let mut y: Points = (0..n).map(|_| [(); 2].map(|()| 1e-4 * f64::from(rng.normal()))).collect();
    let (mut speed, mut gains) = (vec![[0.0; 2]; n], vec![[1.0_f64; 2]; n]);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..steps {
        halt()?;
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
    Ok(y)
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let x: Vec<Vec<f64>> = evidence.features.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    if x.len() < 4 {
        return Ok(Measured::nothing("tsne: left out, it needs 4 images"));
    }
    if x.iter().flatten().any(|value| !value.is_finite()) {
        return Ok(Measured::nothing("tsne: left out, a feature is no number"));
    }
    let y = map(&x, evidence.rng.fork("tsne"), evidence.halt)?;
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
    use crate::halt::never;

    /// Three clouds in ten dimensions, 20 points each.
    pub fn clouds() -> Vec<Vec<f64>> {
        let mut rng = Rng::new(3).fork("clouds");
        let point = |index: usize| (0..10).map(|axis| if axis == index / 20 { 8.0 } else { 0.0 }).collect::<Vec<f64>>();
        let mut all: Vec<Vec<f64>> = (0..60).map(point).collect();
        all.iter_mut().flatten().for_each(|value| *value += f64::from(rng.normal()));
        all
    }

    /// The slow twin of the gradient: all pairs.
    fn exact(p: &[Row], y: &Points, exaggeration: f64) -> Points {
        let w = |i: usize, j: usize| 1.0 / (1.0 + (y[i][0] - y[j][0]).powi(2) + (y[i][1] - y[j][1]).powi(2));
        let others = |i: usize| (0..y.len()).filter(move |&j| j != i);
        let z: f64 = (0..y.len()).flat_map(|i| others(i).map(move |j| w(i, j))).sum();
        let slope = |i: usize, axis: usize| {
            let pull: f64 = p[i].iter().map(|&(j, p)| p * w(i, j as usize) * (y[i][axis] - y[j as usize][axis])).sum();
            let push: f64 = others(i).map(|j| w(i, j).powi(2) * (y[i][axis] - y[j][axis])).sum();
            4.0 * (exaggeration * pull - push / z)
        };
        (0..y.len()).map(|i| [slope(i, 0), slope(i, 1)]).collect()
    }

    /// KL(P || Q), in nats.
    fn divergence(p: &[Row], y: &Points) -> f64 {
        let w = |i: usize, j: usize| 1.0 / (1.0 + (y[i][0] - y[j][0]).powi(2) + (y[i][1] - y[j][1]).powi(2));
        let z: f64 = (0..y.len()).flat_map(|i| (0..y.len()).filter(move |&j| j != i).map(move |j| w(i, j))).sum();
        let term = |i: usize, (j, p): (u32, f64)| if p > 0.0 { p * (p * z / w(i, j as usize)).ln() } else { 0.0 };
        p.iter().enumerate().map(|(i, row)| row.iter().map(|&pair| term(i, pair)).sum::<f64>()).sum()
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_divergence() {
        let p = affinities(&clouds(), 12.0);
        let mut rng = Rng::new(5).fork("places");
        let y: Points = (0..60).map(|_| [(); 2].map(|()| f64::from(rng.normal()))).collect();
        let slopes = exact(&p, &y, 1.0);
        for (i, axis) in [(0, 0), (7, 1), (31, 0), (59, 1)] {
            let at = |shift: f64| {
                let mut moved = y.clone();
                moved[i][axis] += shift;
                divergence(&p, &moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((slope - slopes[i][axis]).abs() < 1e-8, "{slope} {}", slopes[i][axis]);
        }
        for exaggeration in [1.0, 12.0] {
            let (fast, slow) = (gradient(&p, &y, exaggeration), exact(&p, &y, exaggeration));
            let length = |all: &mut dyn Iterator<Item = f64>| all.map(|value| value * value).sum::<f64>().sqrt();
            let off = length(&mut fast.iter().flatten().zip(slow.iter().flatten()).map(|(a, b)| a - b));
            assert!(off < 0.01 * length(&mut slow.iter().flatten().copied()), "{off}");
        }
    }

    #[test]
    fn the_divergence_falls_and_clouds_stay_apart() {
        let p = affinities(&clouds(), 12.0);
        let at = |steps: usize| embed(&p, steps, Rng::new(1), &never).unwrap();
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
            pool.install(|| map(&x, Rng::new(2), &never)).unwrap()
        };
        let bits = |points: Points| points.into_iter().map(|p| p.map(f64::to_bits)).collect::<Vec<_>>();
        let one = bits(with(1));
        assert!(one == bits(with(2)) && one == bits(with(5)));
        assert!(one != bits(map(&x, Rng::new(3), &never).unwrap()));
    }
}
