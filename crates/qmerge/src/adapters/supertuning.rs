//! Super-Tuning: single values are added, at places that stand in the file, and beside them (Supra) a LoRA.
//!
//! Places are chosen by the size of the base's values. Where they were not saved they cannot be found again: values of equal size, of which 16 bits have many,
//! come in no order that torch promises. Source: PEFT 0.21, `tuners/supertuning`.

use std::sync::Arc;

use super::factored::Factored;
use super::shira::SparsePlan;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, malformed, unsupported};

/// Super-Tuning.
pub(super) struct SuperTuning;

const VALUES: &str = "supertuning_values";
const PLACES: &str = "supertuning_indices";
const A: &str = "supertuning_lora_A";
const B: &str = "supertuning_lora_B";

impl PeftMethod for SuperTuning {
    fn peft_type(&self) -> &'static str {
        "SUPERTUNING"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[VALUES, PLACES, A, B], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "sparsity",
            "select_top",
            "r",
            "lora_alpha",
            "lora_dropout",
            "save_precomputed_indices",
        ])?;
        let fields = config.fields();
        let sparsity = fields.number("sparsity")?.unwrap_or(0.99);
        if !(0.0..1.0).contains(&sparsity) {
            return Err(malformed(format!("`sparsity` is {sparsity}, expected a number from 0 on and below 1")));
        }
        let rank = fields.count("r", 1, 0)?;
        let alpha = fields.number("lora_alpha")?.unwrap_or(2.0 * rank as f64);
        Ok(Box::new(Places { sparsity, lora: (rank > 0).then_some((rank, alpha)) }))
    }
}

#[derive(Debug)]
struct Places {
    sparsity: f64,
    /// Rank and alpha of the LoRA.
    lora: Option<(usize, f64)>,
}

impl Layers for Places {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("Super-Tuning")?;
        let round = module.sixteen_bits();
        let number = ((outputs * inputs) as f64 * (1.0 - self.sparsity)) as usize;
        let values = module.sized(VALUES, &[number])?.to_owned();
        if module.tensors().get(PLACES).is_none() {
            let problem = format!(
                "`{}` has no tensor `{PLACES}`: the file is incomplete, or was written with `save_precomputed_indices` false, and where values of the base are of one size their order is not known",
                module.path()
            );
            return Err(unsupported(problem)
                .in_tensor(&values)
                .with_hint("let PEFT merge it on the machine that trained it"));
        }
        let places = module.sized(PLACES, &[number])?.to_owned();
        let tensors = vec![values.clone(), places.clone()];
        let weight = module.weight();
        let change = SparsePlan { values, places, number, is_flat: true, outputs, inputs, weight, round };
        let mut planned = vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }];
        if let Some((rank, alpha)) = self.lora {
            let a = module.sized(A, &[rank, inputs])?.to_owned();
            let b = module.sized(B, &[outputs, rank])?.to_owned();
            let tensors = vec![a.clone(), b.clone()];
            let make = move |loader: &Loader<'_>| Ok((loader.floats(&b)?, loader.floats(&a)?));
            let scale = alpha / rank as f64 * weight;
            let change = Arc::new(Factored { rank, outputs, inputs, scale, round, beside: 0, of_base: false, make });
            planned.push(Planned { on: On::Matrix, outputs, inputs, change, tensors });
        }
        Ok(planned)
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[VALUES, B]
    }
}
