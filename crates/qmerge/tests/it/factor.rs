//! Low-rank approximations against numpy's, and what must hold of any.

use proptest::prelude::*;
use qmerge::round::{Cut, Factors, InputMoments, Metric, cut, sketch};
use serde_json::Value;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn narrow(value: &Value) -> Vec<f32> {
    floats(value).into_iter().map(|x| x as f32).collect()
}

/// left · right in f64.
fn dense(factors: &Factors) -> Vec<f64> {
    let (inner, cols) = (factors.rank, factors.right.len() / factors.rank);
    let rows = factors.left.len() / inner;
    (0..rows * cols)
        .map(|at| {
            let (r, c) = (at / cols, at % cols);
            (0..inner).map(|k| f64::from(factors.left[r * inner + k]) * f64::from(factors.right[k * cols + c])).sum()
        })
        .collect()
}

/// ‖x‖²_H, H as the moments say, damped; the plain norm without moments.
fn energy(x: &[f64], cols: usize, moments: Option<&InputMoments>) -> f64 {
    let Some(moments) = moments else { return x.iter().map(|x| x * x).sum() };
    let diagonal: f64 = (0..cols).map(|i| f64::from(moments.values[i * cols + i])).sum::<f64>() / cols as f64;
    let h = |i: usize, j: usize| f64::from(moments.values[i * cols + j]) + if i == j { 0.003 * diagonal } else { 0.0 };
    x.chunks(cols)
        .map(|row| (0..cols).map(|i| (0..cols).map(|j| row[i] * h(i, j) * row[j]).sum::<f64>()).sum::<f64>())
        .sum()
}

fn close(a: f64, b: f64, of: f64) -> bool {
    (a - b).abs() <= 2e-5 * of
}

fn agrees(cut: &Cut, want: &Value, tolerance: f64) {
    let (energy, best) = (want["energy"].as_f64().unwrap(), floats(&want["best"]));
    let kept = want["kept"].as_f64().unwrap();
    assert!((cut.kept - kept).abs() <= tolerance * energy, "{} {kept}", cut.kept);
    let largest = best.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (have, want) in dense(&cut.factors).iter().zip(&best) {
        assert!((have - want).abs() <= 30.0 * tolerance * largest, "{have} {want}");
    }
}

#[test]
fn numpy_finds_the_same() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/factors/cases.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 4);
    for case in &cases {
        let size = |name: &str| case[name].as_u64().unwrap() as usize;
        let factors = Factors { rank: size("inner"), left: narrow(&case["left"]), right: narrow(&case["right"]) };
        let (rank, scale, inputs) = (size("rank"), case["scale"].as_f64().unwrap(), size("inputs"));
        let moments = InputMoments { features: inputs, tokens: 40, values: narrow(&case["moments"]) };
        let metric = Metric::new(moments).unwrap();
        let whole: Vec<f32> = dense(&factors).iter().map(|x| (scale * x) as f32).collect();
        for (name, metric) in [("plain", None), ("by_inputs", Some(&metric))] {
            let found = cut(&factors, scale, rank, metric);
            agrees(&found, &case[name], 1e-5);
            assert!(close(found.energy.unwrap(), case[name]["energy"].as_f64().unwrap(), found.energy.unwrap()));
            // So small a matrix is sketched whole.
            agrees(&sketch(&whole, inputs, rank, metric, 7), &case[name], 1e-5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_and_what_is_left_make_the_whole(
        (rows, inner, cols, rank) in (1..24_usize, 1..7_usize, 1..24_usize, 1..9_usize),
        (known, seed) in (any::<bool>(), 0..1000_u64),
    ) {
        let mut left = numbers(rows * inner, seed);
        // A column that says nothing new, as an untrained direction does.
        if inner > 2 {
            left.chunks_mut(inner).for_each(|row| row[2] = -row[0]);
        }
        let factors = Factors { rank: inner, left, right: numbers(inner * cols, seed + 1) };
        let x = numbers(3 * cols * cols, seed + 2);
        let values = (0..cols * cols)
            .map(|at| x.chunks(cols).map(|x| x[at / cols] * x[at % cols]).sum::<f32>() / (3 * cols) as f32)
            .collect();
        let moments = known.then_some(InputMoments { features: cols, tokens: 3 * cols, values });
        let metric = moments.clone().map(|moments| Metric::new(moments).unwrap());
        let whole: Vec<f64> = dense(&factors).iter().map(|x| 0.5 * x).collect();
        let all = energy(&whole, cols, moments.as_ref());
        let found = cut(&factors, 0.5, rank, metric.as_ref());
        prop_assert_eq!(found.factors.left.len(), rows * rank);
        prop_assert_eq!(found.factors.right.len(), rank * cols);
        let own = dense(&found.factors);
        let left: Vec<f64> = whole.iter().zip(&own).map(|(whole, own)| whole - own).collect();
        prop_assert!(close(found.energy.unwrap(), all, all), "{:?} {all}", found.energy);
        prop_assert!(close(found.kept, energy(&own, cols, moments.as_ref()), all));
        prop_assert!(close(all - found.kept, energy(&left, cols, moments.as_ref()), all));
        // More directions keep more, all of them everything.
        let more = cut(&factors, 0.5, rank + 1, metric.as_ref());
        prop_assert!(more.kept >= found.kept);
        if rank >= inner {
            prop_assert!(close(found.kept, all, all));
        }
        // The dense way finds the same where there is no more than it follows.
        let narrow: Vec<f32> = whole.iter().map(|&x| x as f32).collect();
        let sketched = sketch(&narrow, cols, rank, metric.as_ref(), seed);
        prop_assert!(close(sketched.kept, found.kept, all), "{} {}", sketched.kept, found.kept);
    }
}

/// A slowly falling spectrum, the sketch's worst case: what it keeps is nearly the best.
#[test]
fn a_sketch_of_noise_is_nearly_the_best() {
    let (rows, cols, rank) = (120, 90, 6);
    let noise = numbers(rows * cols, 3);
    let x = numbers(200 * cols, 5);
    let scales: Vec<f32> = (0..cols).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let values = (0..cols * cols)
        .map(|at| {
            let (i, j) = (at / cols, at % cols);
            x.chunks(cols).map(|x| x[i] * x[j]).sum::<f32>() / 200.0 * scales[i] * scales[j]
        })
        .collect();
    let moments = InputMoments { features: cols, tokens: 200, values };
    let metric = Metric::new(moments.clone()).unwrap();
    let identity: Vec<f32> = (0..cols * cols).map(|at| f32::from(u8::from(at / cols == at % cols))).collect();
    let whole = Factors { rank: cols, left: noise.clone(), right: identity };
    for (metric, least) in [(None, 0.97), (Some(&metric), 0.995)] {
        let (best, found) = (cut(&whole, 1.0, rank, metric), sketch(&noise, cols, rank, metric, 11));
        assert!(found.kept <= best.kept * (1.0 + 1e-6));
        assert!(found.kept >= least * best.kept, "{} of {}", found.kept, best.kept);
        let left: Vec<f64> =
            noise.iter().zip(dense(&found.factors)).map(|(noise, own)| f64::from(*noise) - own).collect();
        let moments = metric.map(|_| &moments);
        let (all, left) = (best.energy.unwrap(), energy(&left, cols, moments));
        assert!(close(all - found.kept, left, all), "{all} {} {left}", found.kept);
        assert!(found == sketch(&noise, cols, rank, metric, 11));
    }
}
