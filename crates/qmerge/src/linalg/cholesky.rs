//! Triangular factors of Gram matrices that may be singular.

use super::axpy;

/// G = Tᵀ T of a Gram matrix of some columns, as far as they do not depend on each other.
#[derive(Clone, Debug)]
pub struct Cholesky {
    /// The columns that the others are made of, in the order in which they were taken: the longest rest first.
    pub pivots: Vec<usize>,
    /// T (pivots, n): triangular in the order of the pivots.
    pub t: Vec<f64>,
    n: usize,
}

impl Cholesky {
    /// Takes columns while one has more left of its square than `new` of the largest.
    pub fn new(g: &[f64], n: usize, new: f64) -> Self {
        let mut left: Vec<f64> = (0..n).map(|i| g[i * n + i]).collect();
        let least = new * left.iter().fold(0.0_f64, |most, x| most.max(*x));
        let (mut pivots, mut t) = (Vec::new(), Vec::<f64>::new());
        let mut is_taken = vec![false; n];
        while let Some(pivot) =
            (0..n).filter(|&i| !is_taken[i]).max_by(|&i, &j| left[i].total_cmp(&left[j]).then(j.cmp(&i)))
        {
            if left[pivot].is_nan() || left[pivot] <= least {
                break;
            }
            let mut row = g[pivot * n..(pivot + 1) * n].to_vec();
            for before in t.chunks_exact(n) {
                axpy(-before[pivot], before, &mut row);
            }
            let length = left[pivot].sqrt();
            for (i, x) in row.iter_mut().enumerate() {
                *x = if is_taken[i] { 0.0 } else { *x / length };
                left[i] -= *x * *x;
            }
            row[pivot] = length;
            is_taken[pivot] = true;
            pivots.push(pivot);
            t.extend_from_slice(&row);
        }
        Self { pivots, t, n }
    }

    /// Weights of all columns whose sum is Q u, where the columns are Q T.
    pub fn weights(&self, mut u: Vec<f64>) -> Vec<f64> {
        let mut weights = vec![0.0; self.n];
        for (k, &pivot) in self.pivots.iter().enumerate().rev() {
            let later: f64 = self.pivots[k + 1..].iter().map(|&p| self.t[k * self.n + p] * weights[p]).sum();
            u[k] = (u[k] - later) / self.t[k * self.n + pivot];
            weights[pivot] = u[k];
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::super::mixed;
    use super::*;

    #[test]
    fn columns_that_depend_on_others_are_left_out() {
        // Six columns of seven values, of which the fourth is the sum of the first two and the fifth is zero.
        let mut x: Vec<Vec<f64>> = mixed(42).chunks(7).map(<[f64]>::to_vec).collect();
        x[3] = x[0].iter().zip(&x[1]).map(|(a, b)| a + b).collect();
        x[4] = vec![0.0; 7];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let g: Vec<f64> = (0..36).map(|at| dot(&x[at / 6], &x[at % 6])).collect();
        let found = Cholesky::new(&g, 6, 1e-14);
        assert_eq!(found.pivots.len(), 4);
        for at in 0..36 {
            let sum: f64 = found.t.chunks(6).map(|row| row[at / 6] * row[at % 6]).sum();
            assert!((sum - g[at]).abs() < 1e-12, "{at}");
        }
        // Q has orthonormal columns.
        let q: Vec<Vec<f64>> = (0..4)
            .map(|k| {
                let weights = found.weights((0..4).map(|i| f64::from(u8::from(i == k))).collect());
                (0..7).map(|r| (0..6).map(|c| weights[c] * x[c][r]).sum()).collect()
            })
            .collect();
        for at in 0..16 {
            let want = f64::from(u8::from(at / 4 == at % 4));
            assert!((dot(&q[at / 4], &q[at % 4]) - want).abs() < 1e-12);
        }
        assert!(Cholesky::new(&[0.0; 4], 2, 1e-14).pivots.is_empty());
    }
}
