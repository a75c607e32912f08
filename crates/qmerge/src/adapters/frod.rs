//! FRoD: the base is written as U·diag(λ)·Vᵀ, all layers of one kind sharing V, and λ and some values beside the diagonal are trained.
//!
//! W' = U·(diag(λ) + S)·Vᵀ, U being the columns of W·V⁻ᵀ at unit length. V and the places of S stand in the file. Where they were not saved they cannot be found
//! again: V's columns have no signs of their own, and S was trained for some. U goes with the V of the file: PEFT makes it before it reads that one, of a V that it finds for
//! the base in the base's type, and the two differ where the file's is coarser. Source: PEFT 0.21, `tuners/frod`.

use std::sync::Arc;

use super::module::OTHER;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned, Shared, of_base};
use crate::dtype::Dtype;
use crate::edit::{ALL, Change, Map, Reach, Tile};
use crate::error::{Result, malformed, mismatch, unsupported};
use crate::linalg::{Lu, dot};
use crate::simd::floats::round_to;

/// FRoD.
pub(super) struct Frod;

const LAMBDA: &str = "frod_lambda_l";
const VALUES: &str = "frod_lambda_s_values";

/// What a column of no length has at most, as in PEFT.
const NONE: f64 = 1e-12;

impl PeftMethod for Frod {
    fn peft_type(&self) -> &'static str {
        "FROD"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[LAMBDA, VALUES], shared: &["frod_V", "frod_s_indices", "frod_s_size"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "projection_prng_key",
            "save_projection",
            "frod_dropout",
            "sparse_rate",
            "regularization_alpha",
            "progressbar",
            "runtime_offload_base_weight",
        ])?;
        if !config.fields().flag_or("save_projection", true)? {
            return Err(unsupported("`save_projection` is false: V is not in the file, and made of the base anew its columns may have other signs than those that the adapter was trained with")
                .with_hint("let PEFT merge it on the machine that trained it"));
        }
        Ok(Box::new(Decompositions))
    }
}

/// The tensors say everything.
#[derive(Debug)]
struct Decompositions;

/// What a module shares V with: the last two components of its path, or the last behind a number.
fn category(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        [.., "attention", "output", "dense"] => "attention_output".to_owned(),
        [.., before, last] if before.is_empty() || !before.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{before}_{last}")
        }
        [.., last] => last.to_owned(),
        [] => String::new(),
    }
}

impl Layers for Decompositions {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("FRoD")?;
        let lambda = module.sized(LAMBDA, &[inputs])?.to_owned();
        let category = category(module.path());
        let shared = |name: &str, want: &[usize]| -> Result<Arc<Shared>> {
            let found = module.shared(&format!("{name}.{category}"))?;
            let have = module.shape(found.name())?;
            if have == want {
                return Ok(found);
            }
            Err(mismatch(format!("shape {have:?}, but `{}` wants {want:?}", module.base_name()))
                .in_tensor(found.name())
                .with_hint(OTHER))
        };
        let v = shared("frod_V", &[inputs, inputs])?;
        let values = module.tensor(VALUES)?;
        let &[number] = module.shape(values)? else {
            let problem = format!("shape {:?}, expected a list of values", module.shape(values)?);
            return Err(mismatch(problem).in_tensor(values).with_hint(OTHER));
        };
        let places = shared("frod_s_indices", &[2, number])?;
        let size = shared("frod_s_size", &[2])?;
        let names = [lambda, values.to_owned(), v.name().to_owned(), places.name().to_owned(), size.name().to_owned()];
        let tensors = names.to_vec();
        let change = DecompositionPlan {
            tensors: names,
            v,
            number,
            outputs,
            inputs,
            weight: module.weight(),
            round: module.sixteen_bits(),
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}

#[derive(Debug)]
struct DecompositionPlan {
    /// λ, the values of S, V, their places, and the size of S.
    tensors: [String; 5],
    v: Arc<Shared>,
    number: usize,
    outputs: usize,
    inputs: usize,
    weight: f64,
    /// PEFT computes in the weight's type.
    round: Option<Dtype>,
}

impl ChangePlan for DecompositionPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let [lambda, values, v_name, places_name, size] = &self.tensors;
        let n = self.inputs;
        let rounded = |mut values: Vec<f32>| {
            if let Some(dtype) = self.round {
                round_to(dtype, &mut values);
            }
            values
        };
        let (lambda, values) = (rounded(loader.floats(lambda)?), rounded(loader.floats(values)?));
        let v = rounded(loader.shared(&self.v)?.to_vec());
        let (have, want) = (loader.integers(size)?, [n as u64; 2]);
        if have != want {
            return Err(malformed(format!("a size of {have:?}, but the layer wants {want:?}"))
                .in_tensor(size)
                .with_hint(OTHER));
        }
        let places = loader.integers(places_name)?;
        let (rows, cols) = places.split_at(self.number.min(places.len()));
        let mut beside = Vec::with_capacity(self.number);
        for ((row, col), value) in rows.iter().zip(cols).zip(values) {
            if *row >= n as u64 || *col >= n as u64 {
                let problem = format!("place [{row}, {col}] of {n} × {n}");
                return Err(malformed(problem).in_tensor(places_name).with_hint(OTHER));
            }
            beside.push((*row as usize, *col as usize, value));
        }
        // (V⁻ᵀ)ᵀ, so that a row times it is a product of rows: V · X = I.
        let wide = v.iter().map(|x| f64::from(*x)).collect();
        let identity: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at % (n + 1) == 0))).collect();
        let inverse = Lu::new(wide, n).ok_or_else(|| {
            malformed("its columns are not independent, so the base cannot be written by them").in_tensor(v_name)
        })?;
        let inverse = inverse.solve(&identity, n);
        let mut lengths = vec![0.0_f64; n];
        of_base::each(loader, (self.outputs, n), |_, values| {
            for row in values.chunks_exact(n.max(1)) {
                for (length, inverse) in lengths.iter_mut().zip(inverse.chunks_exact(n.max(1))) {
                    let x = dot(row, inverse);
                    *length += x * x;
                }
            }
        })?;
        lengths.iter_mut().for_each(|length| *length = length.sqrt());
        let (weight, round) = (self.weight as f32, self.round);
        Ok(Change::map(Recomposed { inverse, lengths, lambda, beside, v, weight, round }))
    }

    fn memory(&self) -> u64 {
        // While V is turned over, three matrices more stand beside it in f64.
        36 * (self.inputs * self.inputs) as u64 + 24 * self.number as u64 + of_base::memory(self.inputs)
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: ALL }
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}

#[derive(Debug)]
struct Recomposed {
    /// V⁻¹ (inputs, inputs).
    inverse: Vec<f64>,
    /// Of the columns of W·V⁻ᵀ.
    lengths: Vec<f64>,
    lambda: Vec<f32>,
    /// Row, column and value of S.
    beside: Vec<(usize, usize, f32)>,
    v: Vec<f32>,
    weight: f32,
    round: Option<Dtype>,
}

impl Map for Recomposed {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let n = tile.inputs.len().max(1);
        let round = |values: &mut [f32]| {
            if let Some(dtype) = self.round {
                round_to(dtype, values);
            }
        };
        for (base, values) in base.chunks_exact(n).zip(values.chunks_exact_mut(n)) {
            let columns = self.inverse.chunks_exact(n).zip(&self.lengths);
            let unit = |(column, length): (&[f64], &f64)| {
                if *length > NONE { (dot(base, column) / length) as f32 } else { 0.0 }
            };
            let mut u: Vec<f32> = columns.map(unit).collect();
            round(&mut u);
            let mut sums: Vec<f64> =
                u.iter().zip(&self.lambda).map(|(u, lambda)| f64::from(*u) * f64::from(*lambda)).collect();
            for (row, col, value) in &self.beside {
                if let (Some(u), Some(sum)) = (u.get(*row), sums.get_mut(*col)) {
                    *sum += f64::from(*u) * f64::from(*value);
                }
            }
            let mut scaled: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
            round(&mut scaled);
            let mut new: Vec<f32> = self.v.chunks_exact(n).map(|v| dot(v, &scaled) as f32).collect();
            round(&mut new);
            new.iter_mut().zip(base).for_each(|(new, base)| *new -= base);
            round(&mut new);
            values.iter_mut().zip(new).for_each(|(value, x)| *value += self.weight * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PEFT 0.21's `_category_from_key` says.
    #[test]
    fn layers_of_one_kind_share() {
        for (path, want) in [
            ("model.layers.0.self_attn.q_proj", "self_attn_q_proj"),
            ("encoder.layer.0.attention.output.dense", "attention_output"),
            ("encoder.layer.0.output.dense", "output_dense"),
            ("transformer.h.0", "h_0"),
            ("blocks.3.dense", "dense"),
            ("lm_head", "lm_head"),
        ] {
            assert_eq!(category(path), want);
        }
    }
}
