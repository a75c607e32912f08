//! Orthonormal bases: Gram and Schmidt, twice, which leaves columns orthogonal to a few units in the last place of f64.

use super::dot;

/// Q with orthonormal columns, each of `rows` values, and T (columns of Q, count) with Q T = the columns of `x` (rows, count). Columns that lie in the span
/// of those before them, up to 1e-12 of their length, are left out of Q.
pub fn gram_schmidt<X: Copy + Into<f64>>(x: &[X], rows: usize, count: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut coefficients: Vec<Vec<f64>> = Vec::new();
    for c in 0..count {
        let mut column = column(x, rows, count, c);
        let before = dot(&column, &column).sqrt();
        let mut own = project_out(&mut column, &found, dot);
        let after = dot(&column, &column).sqrt();
        if after > 1e-12 * before {
            column.iter_mut().for_each(|x| *x /= after);
            found.push(column);
            own.push(after);
        }
        coefficients.push(own);
    }
    let mut t = vec![0.0; found.len() * count];
    for (c, own) in coefficients.iter().enumerate() {
        own.iter().enumerate().for_each(|(q, &x)| t[q * count + c] = x);
    }
    (found, t)
}

/// An orthonormal basis of the columns of `x` (rows, count), as (rows, directions) in f32, and the number of directions. Columns of which no more than `new`
/// of the longest lies outside the span of those before them are left out.
pub fn span(x: &[f32], rows: usize, count: usize, new: f64) -> (Vec<f32>, usize) {
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut largest = 0.0_f64;
    for c in 0..count {
        let mut column = column(x, rows, count, c);
        largest = largest.max(dot(&column, &column).sqrt());
        project_out(&mut column, &found, dot);
        let after = dot(&column, &column).sqrt();
        if after > new * largest && after.is_finite() {
            column.iter_mut().for_each(|x| *x /= after);
            found.push(column);
        }
    }
    let directions = found.len();
    let mut basis = vec![0.0; rows * directions];
    for (q, column) in found.iter().enumerate() {
        for (r, x) in column.iter().enumerate() {
            basis[r * directions + q] = *x as f32;
        }
    }
    (basis, directions)
}

fn column<X: Copy + Into<f64>>(x: &[X], rows: usize, count: usize, c: usize) -> Vec<f64> {
    (0..rows).map(|r| x[r * count + c].into()).collect()
}

/// Takes a column's shares of orthonormal others out of it, and returns them.
fn project_out(column: &mut [f64], others: &[Vec<f64>], dot: impl Fn(&[f64], &[f64]) -> f64) -> Vec<f64> {
    let mut shares = vec![0.0; others.len()];
    // What rounding left of the shares goes in the second round.
    for _ in 0..2 {
        for (other, share) in others.iter().zip(&mut shares) {
            let along = dot(column, other);
            *share += along;
            column.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependent_columns_are_left_out() {
        // The third column is twice the first, the fourth is zero.
        let x: Vec<f32> = [[1.0, 0.0, 2.0, 0.0], [2.0, 1.0, 4.0, 0.0], [0.0, 3.0, 0.0, 0.0]].concat();
        let (basis, t) = gram_schmidt(&x, 3, 4);
        assert_eq!(basis.len(), 2);
        for (at, &x) in x.iter().enumerate() {
            let sum: f64 = (0..2).map(|q| basis[q][at / 4] * t[q * 4 + at % 4]).sum();
            assert!((sum - f64::from(x)).abs() < 1e-12);
        }
        let (basis, directions) = span(&x, 3, 4, 1e-4);
        assert_eq!(directions, 2);
        let inner = |a: usize, b: usize| (0..3).map(|r| basis[r * 2 + a] * basis[r * 2 + b]).sum::<f32>();
        assert!((inner(0, 0) - 1.0).abs() < 1e-6 && (inner(1, 1) - 1.0).abs() < 1e-6 && inner(0, 1).abs() < 1e-6);
    }
}
