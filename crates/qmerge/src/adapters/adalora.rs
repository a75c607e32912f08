//! AdaLoRA: `s · B · (A ∘ E)`, of which training prunes directions.
//!
//! s = lora_alpha / (init_r + 1e-5), also where a layer was pruned to fewer ranks. Source: PEFT 0.21, `tuners/adalora/layer.py`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::factored::Factored;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, malformed};

/// AdaLoRA.
pub(super) struct AdaLora;

const A: &str = "lora_A";
const B: &str = "lora_B";
const E: &str = "lora_E";

/// Fields of a LoRA that stand in every AdaLoRA's configuration and that it cannot have set.
const NOT_ITS: &[&str] = &[
    "use_dora",
    "lora_bias",
    "use_rslora",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "arrow_config",
    "kasa_config",
    "use_bdlora",
    "target_parameters",
];

impl PeftMethod for AdaLora {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[A, B, E], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        if let Some(field) = NOT_ITS.iter().find(|field| config.is_set(field)) {
            return Err(malformed(format!("`{field}` is set, which an AdaLoRA does not have")));
        }
        let fields = config.fields();
        let init_r = fields.count("init_r", 1, 12)?;
        let alpha = fields.number("lora_alpha")?.unwrap_or(8.0);
        Ok(Box::new(Budget {
            init_r,
            alpha: if alpha > 0.0 { alpha } else { init_r as f64 },
            kept: kept(config.json.get("rank_pattern"))?,
        }))
    }
}

/// How many directions each layer kept, by the name of its E, where training pruned.
fn kept(pattern: Option<&Value>) -> Result<Option<BTreeMap<String, usize>>> {
    let wrong = || malformed("`rank_pattern` of an AdaLoRA is a list of true and false for each layer's `lora_E`");
    let map = match pattern {
        None | Some(Value::Null) => return Ok(None),
        Some(pattern) => pattern.as_object().ok_or_else(wrong)?,
    };
    let one = |(name, mask): (&String, &Value)| {
        let mask = mask.as_array().ok_or_else(wrong)?.iter().map(|keep| keep.as_bool().ok_or_else(wrong));
        let mask = mask.collect::<Result<Vec<bool>>>()?;
        Ok((name.clone(), mask.into_iter().filter(|keep| *keep).count()))
    };
    map.iter().map(one).collect::<Result<_>>().map(Some)
}

#[derive(Debug)]
struct Budget {
    init_r: usize,
    alpha: f64,
    kept: Option<BTreeMap<String, usize>>,
}

impl Layers for Budget {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("AdaLoRA")?;
        let kept = self.kept.as_ref().and_then(|kept| kept.get(&format!("{}.{E}", module.path())));
        let rank = kept.copied().unwrap_or(self.init_r);
        let a = module.sized(A, &[rank, inputs])?.to_owned();
        let b = module.sized(B, &[outputs, rank])?.to_owned();
        let e = module.sized(E, &[rank, 1])?.to_owned();
        let tensors = vec![a.clone(), b.clone(), e.clone()];
        // As PEFT adds them, in f32.
        let ranks = f64::from(self.init_r as f32 + 1e-5);
        let make = move |loader: &Loader<'_>| {
            let (mut a, e) = (loader.floats(&a)?, loader.floats(&e)?);
            for (row, e) in a.chunks_exact_mut(inputs.max(1)).zip(e) {
                row.iter_mut().for_each(|x| *x *= e);
            }
            Ok((loader.floats(&b)?, a))
        };
        let scale = self.alpha / ranks * module.weight();
        let change = Factored { rank, outputs, inputs, scale, round: None, beside: 0, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[E]
    }
}
