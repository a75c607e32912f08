use super::*;
use crate::linalg::{dot, gram_schmidt, transposed};
use crate::round::{InputMoments, Metric};

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * (i + seed) * 7919 + i) % 1013) as f32 / 506.0 - 1.0).collect()
}

/// left · right, of a turned `left`.
fn product(left: &[f32], right: &[f32], inner: usize) -> Vec<f64> {
    let (rows, cols) = (left.len() / inner, right.len() / inner);
    let one = |at: usize, i: usize| f64::from(left[i * rows + at / cols]) * f64::from(right[i * cols + at % cols]);
    (0..rows * cols).map(|at| (0..inner).map(|i| one(at, i)).sum()).collect()
}

fn off(cut: &Factors, want: &[f64]) -> f64 {
    let cols = cut.right.len() / cut.rank;
    let value = |at: usize, k: usize| {
        f64::from(cut.left[at / cols * cut.rank + k]) * f64::from(cut.right[k * cols + at % cols])
    };
    let errors = want.iter().enumerate().map(|(at, want)| (0..cut.rank).map(|k| value(at, k)).sum::<f64>() - want);
    errors.map(|error| error * error).sum::<f64>() / want.iter().map(|x| x * x).sum::<f64>()
}

#[test]
fn products_are_given_back_and_cut_as_the_whole_matrix_is() {
    for (rows, cols, inner) in [(9, 7, 3), (5, 40, 8), (40, 5, 8), (200, 170, 140)] {
        let (left, right) = (values(inner * rows, 1), values(inner * cols, 50));
        let want = product(&left, &right, inner);
        let spectrum = Spectrum::new(left, right, inner, None);
        let all = crate::linalg::svd(&want, rows, cols).values;
        assert_eq!(spectrum.values.len(), inner.min(rows).min(cols));
        for (got, want) in spectrum.values.iter().zip(&all) {
            assert!((got - want).abs() < 1e-7 * all[0], "{got} {want}");
        }
        assert!(off(&spectrum.cut(inner), &want) < 1e-12);
        let kept = spectrum.kept(2).unwrap();
        assert!((off(&spectrum.cut(2), &want) - (1.0 - kept)).abs() < 1e-9);
    }
}

#[test]
fn what_depends_on_the_rest_is_found_however_the_factors_are_scaled() {
    let (left, right) = (values(4 * 30, 3), values(4 * 20, 9));
    assert!(!is_dependent(&left, &right, 4));
    // The same twice, once with its factors of very different sizes.
    let scaled = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<_>>();
    let twice = ([left.clone(), scaled(&left, 1e12)].concat(), [right.clone(), scaled(&right, 1e-12)].concat());
    assert!(is_dependent(&twice.0, &twice.1, 8));
    let spectrum = Spectrum::new(twice.0.clone(), twice.1.clone(), 8, None);
    assert_eq!(spectrum.values.len(), 4);
    assert!(off(&spectrum.cut(4), &product(&twice.0, &twice.1, 8)) < 1e-12);
    // Minus itself, and zero.
    let none =
        Spectrum::new([left.clone(), scaled(&left, -1.0)].concat(), [right.clone(), right.clone()].concat(), 8, None);
    assert!(none.values.is_empty(), "{:?}", none.values);
    let zero = Spectrum::new(vec![0.0; 120], right, 4, None);
    assert!(zero.values.is_empty() && zero.kept(1).is_none() && zero.cut(2).left == [0.0; 60]);
}

#[test]
fn as_many_directions_are_taken_as_hold_the_share() {
    for (rows, cols) in [(600, 530), (60, 53), (53, 60)] {
        let inner = 12;
        let (left, mut right) = (values(inner * rows, 1), values(inner * cols, 50));
        let fall = |k: usize| (0..k).fold(1.0_f32, |x, _| x * 0.6);
        right.chunks_exact_mut(cols).enumerate().for_each(|(k, row)| row.iter_mut().for_each(|x| *x *= fall(k)));
        let dense: Vec<f32> = product(&left, &right, inner).iter().map(|x| *x as f32).collect();
        let exact = Spectrum::new(left, right, inner, None);
        for share in [0.3, 0.9, 0.99, 1.0] {
            let found = best(&dense, cols, Wanted::Share(share), 0, None);
            let rank = found.factors.rank;
            assert!(found.kept >= share - 1e-9 && rank <= 40, "{share}: {rank} {}", found.kept);
            assert!(share == 1.0 || rank == 1 || exact.kept(rank - 1).unwrap() < share, "{share}: {rank}");
        }
    }
}

/// A dense matrix whose singular values fall by halves, cut both ways.
#[test]
fn large_matrices_are_cut_nearly_as_well_as_small_ones() {
    let (rows, cols, inner) = (600, 530, 12);
    let (left, mut right) = (values(inner * rows, 1), values(inner * cols, 50));
    right
        .chunks_exact_mut(cols)
        .enumerate()
        .for_each(|(k, row)| row.iter_mut().for_each(|x| *x *= (0..k).fold(1.0, |x, _| x * 0.6)));
    let want = product(&left, &right, inner);
    let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
    let exact = Spectrum::new(left, right, inner, None);
    for rank in [1, 5, 12, 30] {
        let Best { factors: cut, energy, kept } = best(&dense, cols, Wanted::Rank(rank), 3, None);
        assert!((energy / exact.energy() - 1.0).abs() < 1e-6);
        assert!(kept > exact.kept(rank).unwrap() - 1e-4, "{rank}: {kept}");
        assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-5);
        assert_eq!(cut, best(&dense, cols, Wanted::Rank(rank), 3, None).factors);
    }
    for (rows, cols) in [(40, 30), (30, 40)] {
        let (left, right) = (values(5 * rows, 2), values(5 * cols, 7));
        let want = product(&left, &right, 5);
        let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
        let Best { factors: cut, kept, .. } = best(&dense, cols, Wanted::Rank(2), 0, None);
        assert!((kept - Spectrum::new(left, right, 5, None).kept(2).unwrap()).abs() < 1e-6);
        assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-6);
    }
    for (rows, cols) in [(600, 700), (4, 5)] {
        let Factors { left, right, .. } = best(&vec![0.0; rows * cols], cols, Wanted::Rank(2), 0, None).factors;
        assert!(left == vec![0.0; 2 * rows] && right == vec![0.0; 2 * cols]);
    }
}

/// H, and R with R Rᵀ = H once it is damped, as a metric damps it.
fn metric(n: usize) -> (Metric, Vec<f64>) {
    let x = values(2 * n * n, 11);
    let moment = |at: usize| (0..2 * n).map(|t| x[t * n + at / n] * x[t * n + at % n]).sum::<f32>() / (2 * n) as f32;
    let values: Vec<f32> = (0..n * n).map(moment).collect();
    let mut damped: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
    let mean = (0..n).map(|i| damped[i * n + i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| damped[i * n + i] += 0.003 * mean);
    let mut root = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let rest = damped[i * n + j] - dot(&root[i * n..i * n + j], &root[j * n..j * n + j]);
            root[i * n + j] = if i == j { rest.sqrt() } else { rest / root[j * n + j] };
        }
    }
    (Metric::new(InputMoments { features: n, tokens: 2 * n, values }).unwrap(), root)
}

/// D R, whose plain norm is D's in the metric.
fn weighed(d: &[f64], root: &[f64], n: usize) -> Vec<f64> {
    let one = |at: usize| (0..n).map(|k| d[at / n * n + k] * root[k * n + at % n]).sum();
    (0..d.len()).map(one).collect()
}

#[test]
fn in_the_metric_of_inputs_as_much_is_kept_as_a_rank_can_hold() {
    // Small and whole, high and wide; a large one, of which a subspace is searched.
    for (rows, cols, inner) in [(30, 40, 12), (70, 40, 12), (530, 520, 24)] {
        let (metric, root) = metric(cols);
        let (left, right) = (values(inner * rows, 1), values(inner * cols, 50));
        let want = product(&left, &right, inner);
        let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
        // With left = Q T the singular values are those of T · right · R.
        let (basis, t) = gram_schmidt(&transposed(&left, rows), rows, inner);
        let one = |at: usize| -> f64 {
            (0..inner).map(|i| t[at / cols * inner + i] * f64::from(right[i * cols + at % cols])).sum()
        };
        let small: Vec<f64> = (0..basis.len() * cols).map(one).collect();
        let singular = crate::linalg::svd(&weighed(&small, &root, cols), basis.len(), cols).values;
        let all = dot(&singular, &singular);
        let spectrum = Spectrum::new(left, right, inner, Some(&metric));
        assert!((spectrum.energy() / all - 1.0).abs() < 1e-5);
        for rank in [1, 4, 9] {
            let most = dot(&singular[..rank], &singular[..rank]) / all;
            let left_of = |cut: &Factors| {
                let value = |at: usize, k: usize| {
                    f64::from(cut.left[at / cols * rank + k]) * f64::from(cut.right[k * cols + at % cols])
                };
                let rest: Vec<f64> =
                    (0..want.len()).map(|at| want[at] - (0..rank).map(|k| value(at, k)).sum::<f64>()).collect();
                let rest = weighed(&rest, &root, cols);
                dot(&rest, &rest) / all
            };
            assert!((spectrum.kept(rank).unwrap() - most).abs() < 1e-5, "{rows} {rank}");
            assert!((left_of(&spectrum.cut(rank)) - (1.0 - most)).abs() < 1e-5, "{rows} {rank}");
            let found = best(&dense, cols, Wanted::Rank(rank), 3, Some(&metric));
            assert!((found.energy / all - 1.0).abs() < 1e-5);
            assert!((found.kept - most).abs() < 1e-3, "{rows} {rank}: {} {most}", found.kept);
            assert!((left_of(&found.factors) - (1.0 - found.kept)).abs() < 1e-5, "{rows} {rank}");
            // In the plain norm less of it is kept.
            let plain = best(&dense, cols, Wanted::Rank(rank), 3, None);
            assert!(left_of(&plain.factors) > 1.0 - most + 1e-4, "{rows} {rank}");
        }
        let energy = best(&dense, cols, Wanted::Share(0.9), 3, Some(&metric));
        let rank = energy.factors.rank;
        assert!(dot(&singular[..rank], &singular[..rank]) >= 0.9 * all * (1.0 - 1e-6));
    }
}
