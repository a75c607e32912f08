//! Orthogonal matrices made of skew ones, and blocks of them that turn a weight's inputs or outputs.

use crate::edit::{Map, Side, Tile};
use crate::linalg::{Lu, transposed};

/// A skew matrix (n, n) from its upper triangle, row by row.
pub(super) fn skew(upper: &[f32], n: usize, weight: f64) -> Vec<f64> {
    let mut q = vec![0.0; n * n];
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    for ((i, j), x) in pairs.zip(upper) {
        let x = weight * f64::from(*x);
        for (at, x) in [(i * n + j, x), (j * n + i, -x)] {
            if let Some(q) = q.get_mut(at) {
                *q = x;
            }
        }
    }
    q
}

/// Cayley's transform (I − Q)(I + Q)⁻¹ of a skew matrix; `None` if its values are too large for it.
pub(super) fn cayley(q: &[f64], n: usize) -> Option<Vec<f64>> {
    // The two commute. The eigenvalues of Q are imaginary, so that I + Q has none of zero.
    let with =
        |sign: f64| q.iter().enumerate().map(|(at, q)| sign * q + f64::from(at % (n + 1) == 0)).collect::<Vec<_>>();
    Some(Lu::new(with(1.0), n)?.solve(&with(-1.0), n))
}

/// The first terms of Cayley's transform of −Q as PEFT cuts them off: I + 2Q + 2Q² + … + Qᵏ, the last one halved.
pub(super) fn neumann(q: &[f64], n: usize, terms: usize) -> Vec<f64> {
    let mut r: Vec<f64> = (0..n * n).map(|at| f64::from(at % (n + 1) == 0)).collect();
    let mut add = |power: &[f64], factor: f64| r.iter_mut().zip(power).for_each(|(r, x)| *r += factor * x);
    if terms > 1 {
        add(q, 2.0);
    }
    if terms > 2 {
        let mut power = product(q, q, n);
        add(&power, 2.0);
        for _ in 3..terms - 1 {
            power = product(&power, q, n);
            add(&power, 2.0);
        }
        add(&product(&power, q, n), 1.0);
    }
    r
}

/// a · b, both (n, n).
pub(super) fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for (row, out) in a.chunks_exact(n.max(1)).zip(out.chunks_exact_mut(n.max(1))) {
        for (x, b) in row.iter().zip(b.chunks_exact(n.max(1))) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += x * b);
        }
    }
    out
}

/// The same in f32, transposed.
pub(super) fn transposed_f32(a: &[f64], n: usize) -> impl Iterator<Item = f32> {
    transposed(a, n).into_iter().map(|x| x as f32)
}

/// A block-diagonal matrix M of equal blocks: W becomes W · M on the side of the inputs, Mᵀ · W on that of the outputs.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Each (size, size); one stands for all.
    pub(super) blocks: Vec<f32>,
    pub(super) size: usize,
    pub(super) side: Side,
}

impl Blocks {
    /// Block `number`.
    fn block(&self, number: usize) -> &[f32] {
        let all = self.size * self.size;
        let first = if self.blocks.len() == all { 0 } else { number * all };
        self.blocks.get(first..first + all).unwrap_or(&[])
    }

    /// `out += Σ x[c] · M[c, :]` of one block, the row that it makes of x.
    fn row(&self, number: usize, x: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for (x, m) in x.iter().zip(self.block(number).chunks_exact(self.size.max(1))) {
            out.iter_mut().zip(m).for_each(|(out, m)| *out += x * m);
        }
    }

    /// Turns groups of rows of `width` values: `out[k] = Σ m(k, c) · x[c]`.
    fn rows(&self, first: usize, width: usize, values: &mut [f32], m: impl Fn(&[f32], usize, usize) -> f32) {
        let mut old = Vec::new();
        for (number, group) in values.chunks_exact_mut((self.size * width).max(1)).enumerate() {
            old.clear();
            old.extend_from_slice(group);
            group.fill(0.0);
            let block = self.block(first + number);
            for (k, out) in group.chunks_exact_mut(width).enumerate() {
                for (c, x) in old.chunks_exact(width).enumerate() {
                    let m = m(block, k, c);
                    out.iter_mut().zip(x).for_each(|(out, x)| *out += m * x);
                }
            }
        }
    }
}

impl Map for Blocks {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        let (size, width) = (self.size.max(1), tile.inputs.len().max(1));
        if self.side == Side::Outputs {
            return self.rows(tile.outputs.start / size, width, values, |block, k, c| at(block, c * size + k));
        }
        let mut out = vec![0.0; size];
        for row in values.chunks_exact_mut(width) {
            for (number, x) in row.chunks_exact_mut(size).enumerate() {
                self.row(tile.inputs.start / size + number, x, &mut out);
                x.copy_from_slice(&out);
            }
        }
    }

    fn side(&self) -> Option<Side> {
        Some(self.side)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        let size = self.size.max(1);
        match self.side {
            Side::Inputs => self.rows(0, tokens, activations, |block, k, c| at(block, k * size + c)),
            Side::Outputs => self.rows(0, tokens, activations, |block, k, c| at(block, c * size + k)),
        }
    }
}

fn at(block: &[f32], at: usize) -> f32 {
    block.get(at).copied().unwrap_or(f32::NAN)
}
