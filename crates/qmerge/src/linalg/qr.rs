//! Orthonormal columns by Householder's reflections.

use super::dot;

/// Q (rows, count) with Q R = `a` (rows, count), count being at most rows. Signs are those of LAPACK's `geqrf`, which torch and cuSOLVER use: a reflection sends a
/// column to the axis on the other side of its own first value, and is none where nothing is left to reflect.
pub fn orthonormal(a: &[f32], rows: usize, count: usize) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> =
        (0..count).map(|c| a.iter().skip(c).step_by(count.max(1)).map(|x| f64::from(*x)).collect()).collect();
    // I − τ v vᵀ, v being 1 in place k and 0 before.
    let mut reflections: Vec<(f64, Vec<f64>)> = Vec::with_capacity(count);
    for k in 0..count.min(rows) {
        let column = &columns[k];
        let (first, rest) = (column[k], dot(&column[k + 1..], &column[k + 1..]));
        let mut v = vec![0.0; rows];
        v[k] = 1.0;
        let mut tau = 0.0;
        if rest > 0.0 {
            let end = -first.signum() * (first * first + rest).sqrt();
            tau = (end - first) / end;
            v[k + 1..].iter_mut().zip(&column[k + 1..]).for_each(|(v, x)| *v = x / (first - end));
        }
        columns.iter_mut().skip(k).for_each(|column| reflect(column, tau, &v));
        reflections.push((tau, v));
    }
    let mut q = vec![0.0; rows * count];
    for c in 0..count {
        let mut column = vec![0.0; rows];
        if let Some(one) = column.get_mut(c) {
            *one = 1.0;
        }
        reflections.iter().rev().for_each(|(tau, v)| reflect(&mut column, *tau, v));
        column.iter().enumerate().for_each(|(r, x)| q[r * count + c] = *x);
    }
    q
}

fn reflect(x: &mut [f64], tau: f64, v: &[f64]) {
    let along = tau * dot(x, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.linalg.qr` of the same values (torch 2.15), which are exact in f32.
    #[test]
    fn signs_are_those_of_lapack() {
        let a = [2.0, -1.0, 0.5, -1.5, 0.25, 3.0, 1.0, -2.0, 0.75, 0.5, 1.25, -0.5];
        assert_close(&orthonormal(&a, 4, 3), &TALL);
        // Of a square one the last column is not reflected.
        assert_close(&orthonormal(&a[..9], 3, 3), &SQUARE);
        // Nothing to reflect.
        assert_eq!(orthonormal(&[-2.0, 0.0], 2, 1), [1.0, 0.0]);
    }

    fn assert_close(have: &[f64], want: &[f64]) {
        assert!(have.iter().zip(want).all(|(have, want)| (have - want).abs() < 1e-6), "{have:?}");
    }

    const TALL: [f64; 12] = [
        -0.730_296_85,
        0.0,
        0.511_301_28,
        0.547_722_58,
        -0.229_415_77,
        0.804_212_69,
        -0.365_148_37,
        -0.688_247_2,
        0.033_120_69,
        -0.182_574_18,
        0.688_247_2,
        0.301_191_48,
    ];
    const SQUARE: [f64; 9] = [
        -0.742_781_28,
        0.132_931_92,
        -0.656_204_94,
        0.557_085_99,
        -0.420_950_89,
        -0.715_860_01,
        -0.371_390_7,
        -0.897_290_05,
        0.238_619_95,
    ];
}
