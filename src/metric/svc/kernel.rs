//! The kernel exp(-gamma |a - b|^2) between all points, a row at a time.

use std::collections::HashMap;

use rayon::prelude::*;

use super::BLOCK;
use crate::metric::exp::exp;
use crate::wide::wide;

/// Bytes of kernel rows that are kept.
const KEPT: usize = 64 << 20;
/// Multiplications of a kernel row from which on it is shared out over threads.
const SHARED: usize = 400_000;

/// Rows of the kernel matrix in f32, the last used of which are kept. Points with the same features share theirs.
pub(super) struct Kernel {
    gamma: f64,
    /// Features by column: one dimension of all points after the other.
    columns: Vec<f64>,
    squares: Vec<f64>,
    /// The first point with the same features.
    same: Vec<u32>,
    rows: Vec<Vec<f32>>,
    /// Which row is kept for that point, which point a row is of, and when it was last used.
    kept: HashMap<u32, usize>,
    of: Vec<u32>,
    used: Vec<u64>,
    clock: u64,
    most: usize,
}

impl Kernel {
    pub(super) fn new(points: &[&[f64]], gamma: f64) -> Self {
        let width = points.first().map_or(0, |point| point.len());
        let mut first: HashMap<Vec<u64>, u32> = HashMap::new();
        let bits = |point: &[f64]| point.iter().map(|value| value.to_bits()).collect();
        let same = points.iter().zip(0..).map(|(point, at)| *first.entry(bits(point)).or_insert(at)).collect();
        Self {
            gamma,
            columns: (0..width).flat_map(|column| points.iter().map(move |point| point[column])).collect(),
            squares: points.iter().map(|point| point.iter().map(|value| value * value).sum()).collect(),
            same,
            rows: Vec::new(),
            kept: HashMap::new(),
            of: Vec::new(),
            used: Vec::new(),
            clock: 0,
            most: (KEPT / (4 * points.len().max(1))).max(2),
        }
    }

    pub(super) fn at(&self, row: usize) -> &[f32] {
        &self.rows[row]
    }

    /// Where the row of a point is now; it stays there at least until another two were asked for.
    pub(super) fn row(&mut self, point: usize) -> usize {
        let point = self.same[point];
        self.clock += 1;
        let row = match self.kept.get(&point) {
            Some(&row) => row,
            None => {
                let row = if self.rows.len() < self.most {
                    self.rows.push(vec![0.0; self.squares.len()]);
                    self.of.push(point);
                    self.used.push(0);
                    self.rows.len() - 1
                } else {
                    let oldest = (0..self.used.len()).min_by_key(|&row| self.used[row]).unwrap_or(0);
                    self.kept.remove(&self.of[oldest]);
                    oldest
                };
                self.fill(row, point as usize);
                self.of[row] = point;
                self.kept.insert(point, row);
                row
            }
        };
        self.used[row] = self.clock;
        row
    }

    fn fill(&mut self, row: usize, point: usize) {
        let (count, columns, squares, gamma) = (self.squares.len(), &self.columns, &self.squares, self.gamma);
        let own: Vec<f64> = columns.chunks(count).map(|column| column[point]).collect();
        let block = |(start, row): (usize, &mut [f32])| {
            similar((&own, squares[point]), columns, &squares[start * BLOCK..], gamma, start * BLOCK, row);
        };
        let row = &mut self.rows[row];
        if count * (own.len() + 16) > SHARED {
            row.par_chunks_mut(BLOCK).enumerate().for_each(block);
        } else {
            row.chunks_mut(BLOCK).enumerate().for_each(block);
        }
    }
}

wide! {
    /// The kernel of one point, its features and their square, with a block of others from `start` on, whose squares are given.
    fn similar(own: (&[f64], f64), columns: &[f64], squares: &[f64], gamma: f64, start: usize, row: &mut [f32]) {
        let mut product = [0.0; BLOCK];
        let (product, all) = (&mut product[..row.len()], columns.len() / own.0.len().max(1));
        for (column, value) in columns.chunks(all.max(1)).zip(own.0) {
            for (product, x) in product.iter_mut().zip(&column[start..]) {
                *product += value * x;
            }
        }
        for ((row, product), square) in row.iter_mut().zip(product).zip(squares) {
            let far = own.1 + square - 2.0 * *product;
            *row = exp(-gamma * far) as f32;
        }
    }
}
