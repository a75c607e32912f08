//! DeLoRA: a low-rank product whose directions have unit length and one common strength.
//!
//! D = B · diag(λ / (r · ‖B_k‖ · ‖A_k‖)) · A · diag(w), w being the norms of the base's columns as training stored them. Source: PEFT 0.21,
//! `tuners/delora/layer.py`.

use std::sync::Arc;

use super::factored::Factored;
use super::patterns::Patterns;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::Result;

/// DeLoRA.
pub(super) struct DeLora;

impl PeftMethod for DeLora {
    fn peft_type(&self) -> &'static str {
        "DELORA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["delora_A", "delora_B", "delora_lambda", "delora_w_norm"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        // The trained strength is a tensor; the configuration has what it began at.
        config.refuse_unknown(&["r", "delora_lambda", "lambda_pattern", "rank_pattern", "module_dropout"])?;
        let fields = config.fields();
        Ok(Box::new(Ranks { r: fields.count("r", 1, 8)?, pattern: Patterns::new(fields.numbers("rank_pattern")?) }))
    }
}

#[derive(Debug)]
struct Ranks {
    r: usize,
    pattern: Patterns,
}

impl Layers for Ranks {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("DeLoRA")?;
        let rank = self.pattern.rank(module.name(), self.r)?;
        let a = module.sized("delora_A", &[rank, inputs])?.to_owned();
        let b = module.sized("delora_B", &[outputs, rank])?.to_owned();
        let strength = module.sized("delora_lambda", &[1])?.to_owned();
        let norms = module.sized("delora_w_norm", &[inputs])?.to_owned();
        let tensors = vec![a.clone(), b.clone(), strength.clone(), norms.clone()];
        let make = move |loader: &Loader<'_>| {
            let (mut a, mut b) = (loader.floats(&a)?, loader.floats(&b)?);
            let (strength, norms) = (loader.floats(&strength)?, loader.floats(&norms)?);
            // As PEFT: no shorter than 1e-4.
            let length = |squares: f64| squares.sqrt().max(1e-4);
            let square = |x: &f32| f64::from(*x) * f64::from(*x);
            let strength = f64::from(strength.first().copied().unwrap_or(f32::NAN)) / rank as f64;
            let factors: Vec<f32> = a
                .chunks_exact(inputs.max(1))
                .enumerate()
                .map(|(k, row)| {
                    let of_b = b.iter().skip(k).step_by(rank).map(square).sum();
                    (strength / (length(row.iter().map(square).sum()) * length(of_b))) as f32
                })
                .collect();
            for row in b.chunks_exact_mut(rank) {
                row.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor);
            }
            for row in a.chunks_exact_mut(inputs.max(1)) {
                row.iter_mut().zip(&norms).for_each(|(x, norm)| *x *= norm);
            }
            Ok((b, a))
        };
        let round = module.sixteen_bits();
        let change = Factored { rank, outputs, inputs, scale: module.weight(), round, beside: 0, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}
