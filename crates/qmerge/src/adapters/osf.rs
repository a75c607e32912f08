//! OSF: the part of the base with its smallest singular values is replaced by a trained one.
//!
//! W' = W + U·diag(S)·V − U₀·diag(S₀)·V₀, the latter being the base without its largest singular values, of which there are min(outputs, inputs) less the values in S.
//! They are not in the file. Neither the order nor the signs of singular vectors matter to the product: with V₀ orthonormal rows, it is (W·V₀ᵀ)·V₀. Where the
//! last value that stays is the first that goes, nobody knows which part was replaced. Source: PEFT 0.21, `tuners/osf`.

use std::sync::Arc;

use super::factored::{Factored, Pair};
use super::module::OTHER;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned, of_base};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::linalg::{self, transposed};
use crate::simd::floats::round_to;

/// OSF.
pub(super) struct Osf;

const U: &str = "osf_svd_params.U_low";
const S: &str = "osf_svd_params.S_low";
const V: &str = "osf_svd_params.V_low";

/// Part of the largest singular value by which the last one that stays must exceed the first that goes: PEFT finds them in f32.
const GAP: f64 = 1e-7;

impl PeftMethod for Osf {
    fn peft_type(&self) -> &'static str {
        "OSF"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[U, S, V], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        // How many values stay, the tensors say; PEFT reads `target_svd_config` nowhere.
        config.refuse_unknown(&["effective_rank", "rank_pattern", "target_svd_config"])?;
        Ok(Box::new(Small))
    }
}

/// The tensors say everything.
#[derive(Debug)]
struct Small;

impl Layers for Small {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("OSF")?;
        let smaller = outputs.min(inputs);
        let s = module.tensor(S)?.to_owned();
        let &[count] = module.shape(&s)? else {
            let problem = format!("shape {:?}, expected a list of values", module.shape(&s)?);
            return Err(mismatch(problem).in_tensor(&s).with_hint(OTHER));
        };
        if count > smaller {
            let problem = format!("{count} singular values, but `{}` has {smaller}", module.base_name());
            return Err(mismatch(problem).in_tensor(&s).with_hint(OTHER));
        }
        let u = module.sized(U, &[outputs, count])?.to_owned();
        let v = module.sized(V, &[count, inputs])?.to_owned();
        let tensors = vec![s.clone(), u.clone(), v.clone()];
        let (shape, round, name) = ((outputs, inputs), module.sixteen_bits(), module.base_name().to_owned());
        let name_of_s = s.clone();
        let make = move |loader: &Loader<'_>| {
            let (u, s, v) = (loader.floats(&u)?, loader.floats(&s)?, loader.floats(&v)?);
            let (left, right) = smallest(loader, shape, count, round)?.ok_or_else(|| {
                unsupported(format!(
                    "the singular values {} and {} of `{name}` are equal, so it is not known which of their directions was trained",
                    smaller - count,
                    smaller - count + 1
                ))
                .in_tensor(&name_of_s)
            })?;
            let rows = u.chunks_exact(count.max(1)).zip(left.chunks_exact(count.max(1)));
            let left = rows.flat_map(|(u, before)| {
                let now = u.iter().zip(&s).map(|(u, s)| u * s);
                now.chain(before.iter().map(|x| -x)).collect::<Vec<f32>>()
            });
            Ok((left.collect(), [v, right].concat()))
        };
        let change = Factored {
            rank: 2 * count,
            outputs,
            inputs,
            scale: module.weight(),
            round: None,
            beside: 4 * (outputs * inputs) as u64 + 40 * (smaller * smaller) as u64,
            of_base: true,
            make,
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}

/// The part of the base with its `count` smallest singular values, as factors (outputs, count) and (count, inputs); none where it is not one part.
fn smallest(
    loader: &Loader<'_>,
    (outputs, inputs): (usize, usize),
    count: usize,
    round: Option<Dtype>,
) -> Result<Option<Pair>> {
    let mut w: Vec<f32> = Vec::with_capacity(outputs * inputs);
    of_base::each(loader, (outputs, inputs), |_, rows| w.extend_from_slice(rows))?;
    // With no more columns than rows; turned back in the end.
    let tall = inputs <= outputs;
    if !tall {
        w = transposed(&w, inputs);
    }
    let n = inputs.min(outputs);
    let (values, vectors) = linalg::symmetric(gram(&w, n), n);
    let value = |at: usize| values.get(at).map_or(0.0, |x| x.max(0.0).sqrt());
    let stays = n - count;
    let (largest, last, first) = (value(0), value(stays.saturating_sub(1)), value(stays));
    if count > 0 && stays > 0 && first > GAP * largest && last - first <= GAP * largest {
        return Ok(None);
    }
    let directions = vectors.get(stays * n..).unwrap_or(&[]);
    let mut along: Vec<f32> = Vec::with_capacity(w.len() / n.max(1) * count);
    for row in w.chunks_exact(n.max(1)) {
        along.extend(directions.chunks_exact(n.max(1)).map(|direction| linalg::dot(row, direction) as f32));
    }
    let mut directions: Vec<f32> = directions.iter().map(|x| *x as f32).collect();
    if let Some(dtype) = round {
        // PEFT has all three factors, and the first two's product, in the weight's type.
        let squares =
            |j: usize| along.iter().skip(j).step_by(count.max(1)).map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let lengths: Vec<f32> = (0..count).map(|j| squares(j).sqrt() as f32).collect();
        let rounded = |mut values: Vec<f32>| {
            round_to(dtype, &mut values);
            values
        };
        let stored = rounded(lengths.clone());
        let unit = |(at, x): (usize, &f32)| {
            lengths.get(at % count).filter(|length| **length > 0.0).map_or(0.0, |length| x / length)
        };
        let units = rounded(along.iter().enumerate().map(unit).collect());
        directions = rounded(directions);
        let times = |(at, x): (usize, &f32)| stored.get(at % count).map_or(0.0, |length| x * length);
        if tall {
            along = rounded(units.iter().enumerate().map(times).collect());
        } else {
            along = units;
            let times = |(at, x): (usize, &f32)| stored.get(at / n).map_or(0.0, |length| x * length);
            directions = rounded(directions.iter().enumerate().map(times).collect());
        }
    }
    if tall {
        return Ok(Some((along, directions)));
    }
    Ok(Some((transposed(&directions, n), transposed(&along, count))))
}

/// AᵀA (n, n) of A (any, n).
fn gram(a: &[f32], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n * n];
    for row in a.chunks_exact(n.max(1)) {
        for (i, (x, sums)) in row.iter().zip(sums.chunks_exact_mut(n.max(1))).enumerate() {
            let x = f64::from(*x);
            sums.iter_mut().zip(row).skip(i).for_each(|(sum, y)| *sum += x * f64::from(*y));
        }
    }
    for i in 0..n {
        for j in 0..i {
            if let Some(x) = sums.get(j * n + i).copied()
                && let Some(to) = sums.get_mut(i * n + j)
            {
                *to = x;
            }
        }
    }
    sums
}
