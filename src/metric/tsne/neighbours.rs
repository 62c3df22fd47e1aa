//! Which points belong together, by how much: the nearest neighbours of each, exactly, and the affinities of van der Maaten,
//! JMLR 15 (2014), section 4.1, <https://www.jmlr.org/papers/v15/vandermaaten14a.html>.

use rayon::prelude::*;

use crate::wide::wide;

/// Points whose distances are taken at once.
const BLOCK: usize = 32;

/// A point's neighbours with a number for each: squared distance or affinity.
pub(super) type Row = Vec<(u32, f64)>;

/// The `count` nearest other points of each by Euclidean distance, squared, ordered by point; of equal ones the first.
pub(super) fn nearest(x: &[Vec<f64>], count: usize) -> Vec<Row> {
    let width = x.first().map_or(0, Vec::len);
    let block = |far: &mut Vec<[f64; BLOCK]>, (number, rows): (usize, &[Vec<f64>])| {
        let mut columns = vec![[0.0; BLOCK]; width];
        for (at, row) in rows.iter().enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, value)| column[at] = *value);
        }
        distances(&columns, x, far);
        let pick = |at: usize| {
            let own = number * BLOCK + at;
            let mut all: Row = (0..).zip(far.iter()).map(|(other, far)| (other, far[at])).collect();
            all.swap_remove(own);
            let order = |a: &(u32, f64), b: &(u32, f64)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
            if count < all.len() {
                all.select_nth_unstable_by(count, order);
                all.truncate(count);
            }
            all.sort_unstable_by_key(|(other, _)| *other);
            all
        };
        (0..rows.len()).map(pick).collect::<Vec<Row>>()
    };
    let blocks = x.par_chunks(BLOCK).enumerate().map_init(|| vec![[0.0; BLOCK]; x.len()], block);
    blocks.flatten_iter().collect()
}

wide! {
    /// Squared distances of some points, whose features are columns, from all.
    fn distances(columns: &[[f64; BLOCK]], x: &[Vec<f64>], far: &mut [[f64; BLOCK]]) {
        for (row, far) in x.iter().zip(far) {
            let mut sums = [0.0; BLOCK];
            for (column, value) in columns.iter().zip(row) {
                for (sum, x) in sums.iter_mut().zip(column) {
                    let d = x - value;
                    *sum += d * d;
                }
            }
            *far = sums;
        }
    }
}

/// p_{j|i} of one point's squared distances, with the width whose entropy is log of the perplexity, found by bisection.
pub(super) fn conditional(row: &[(u32, f64)], perplexity: f64) -> Vec<f64> {
    let nearest = row.iter().fold(f64::INFINITY, |least, (_, d)| least.min(*d));
    let weights = |beta: f64| -> Vec<f64> {
        let p: Vec<f64> = row.iter().map(|(_, d)| (-(d - nearest) * beta).exp()).collect();
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

/// p_ij of the pairs of which one is near the other, by point: symmetric, together 1, with that perplexity a point (at most
/// a third of the others), over three times as many neighbours.
pub(super) fn affinities(x: &[Vec<f64>], perplexity: f64) -> Vec<Row> {
    let n = x.len();
    let perplexity = perplexity.min(n.saturating_sub(1) as f64 / 3.0);
    let near = nearest(x, (3.0 * perplexity) as usize + 1);
    let given: Vec<Vec<f64>> = near.par_iter().map(|row| conditional(row, perplexity)).collect();
    let mut all: Vec<Row> = vec![Vec::new(); n];
    for (i, (row, given)) in near.iter().zip(&given).enumerate() {
        for (&(j, _), p) in row.iter().zip(given) {
            let half = p / (2.0 * n as f64);
            all[i].push((j, half));
            all[j as usize].push((i as u32, half));
        }
    }
    all.par_iter_mut().for_each(|row| {
        // both halves of a pair, added in one order on both sides
        row.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        row.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
    });
    all
}

#[cfg(test)]
mod tests {
    use super::super::tests::clouds;
    use super::*;

    #[test]
    fn neighbours_are_those_of_a_search_of_all() {
        let x = clouds();
        for (own, row) in nearest(&x, 7).into_iter().enumerate() {
            let far = |other: usize| x[own].iter().zip(&x[other]).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            let mut all: Vec<(u32, f64)> =
                (0..60).filter(|&other| other != own).map(|other| (other as u32, far(other))).collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            all.truncate(7);
            all.sort_by_key(|(other, _)| *other);
            assert_eq!(row, all);
        }
        assert!(nearest(&x, 70).iter().all(|row| row.len() == 59));
    }

    #[test]
    fn affinities_are_symmetric_and_have_the_perplexity() {
        let x = clouds();
        let all = affinities(&x, 12.0);
        let sum: f64 = all.iter().flatten().map(|(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        for (i, row) in all.iter().enumerate() {
            assert!(row.iter().all(|&(j, p)| j as usize != i && all[j as usize].contains(&(i as u32, p))));
        }
        let row = conditional(&nearest(&x, 37)[7], 12.0);
        let entropy: f64 = row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - 12.0).abs() < 1e-4, "{}", entropy.exp());
    }
}
