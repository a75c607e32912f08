//! Systems of linear equations of a few hundred unknowns.

/// A square matrix, taken apart as P A = L U (Gauss, the largest pivot of each column).
#[derive(Clone, Debug)]
pub struct Lu {
    n: usize,
    /// L below the diagonal, whose own is 1; U on it and above (n, n).
    factors: Vec<f64>,
    /// Which row of A each row of the factors was.
    rows: Vec<usize>,
}

impl Lu {
    /// Takes `a` (n, n) apart; `None` if a pivot is zero or no number, so that A has no inverse.
    pub fn new(mut a: Vec<f64>, n: usize) -> Option<Self> {
        let mut rows: Vec<usize> = (0..n).collect();
        for k in 0..n {
            // The first of the largest, on every machine.
            let pivot = (k..n).rev().max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs()))?;
            if pivot != k {
                (0..n).for_each(|j| a.swap(k * n + j, pivot * n + j));
                rows.swap(k, pivot);
            }
            let (above, below) = a.split_at_mut((k + 1) * n);
            let own = &above[k * n..];
            if own[k] == 0.0 || !own[k].is_finite() {
                return None;
            }
            for row in below.chunks_exact_mut(n) {
                let factor = row[k] / own[k];
                row[k] = factor;
                row[k + 1..].iter_mut().zip(&own[k + 1..]).for_each(|(x, own)| *x -= factor * own);
            }
        }
        Some(Self { n, factors: a, rows })
    }

    /// X (n, columns) with A X = `b` (n, columns). The residual is about n units in the last place of A's entries times X's; the error is that times A's condition.
    pub(crate) fn solve(&self, b: &[f64], columns: usize) -> Vec<f64> {
        let Self { n, factors, rows } = self;
        let mut x: Vec<f64> =
            rows.iter().flat_map(|&row| b[row * columns..(row + 1) * columns].iter().copied()).collect();
        let subtract = |own: &mut [f64], other: &[f64], factor: f64| {
            own.iter_mut().zip(other).for_each(|(own, other)| *own -= factor * other);
        };
        for i in 0..*n {
            let (before, own) = x.split_at_mut(i * columns);
            for k in 0..i {
                subtract(&mut own[..columns], &before[k * columns..(k + 1) * columns], factors[i * n + k]);
            }
        }
        for i in (0..*n).rev() {
            let (own, after) = x[i * columns..].split_at_mut(columns);
            for k in i + 1..*n {
                subtract(own, &after[(k - i - 1) * columns..(k - i) * columns], factors[i * n + k]);
            }
            own.iter_mut().for_each(|x| *x /= factors[i * n + i]);
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::super::mixed;
    use super::*;

    #[test]
    fn solutions_give_back_the_right_side() {
        for (n, columns) in [(1, 1), (2, 3), (7, 2), (60, 5)] {
            let (a, b) = (mixed(n * n), mixed(n * n + n * columns).split_off(n * n));
            let x = Lu::new(a.clone(), n).unwrap().solve(&b, columns);
            for i in 0..n {
                for c in 0..columns {
                    let sum: f64 = (0..n).map(|k| a[i * n + k] * x[k * columns + c]).sum();
                    assert!((sum - b[i * columns + c]).abs() < 1e-10, "{n}: {sum}");
                }
            }
        }
    }

    #[test]
    fn a_zero_in_the_first_place_is_no_obstacle_and_a_matrix_without_inverse_is_told() {
        let x = Lu::new(vec![0.0, 2.0, 1.0, 0.0], 2).unwrap().solve(&[6.0, 5.0], 1);
        assert_eq!(x, [5.0, 3.0]);
        assert!(Lu::new(vec![1.0, 2.0, 2.0, 4.0], 2).is_none());
        assert!(Lu::new(vec![f64::NAN], 1).is_none());
    }
}
