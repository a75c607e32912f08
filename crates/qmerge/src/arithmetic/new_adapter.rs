//! A LoRA that is made from nothing but factors and tensors taken whole.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::linalg::Factors;
use crate::open::Checkpoint;
use crate::write::{NewTensor, overflow};

/// An adapter under construction.
#[derive(Default)]
pub(super) struct NewAdapter<'a> {
    pub(super) rank: usize,
    pub(super) tensors: Vec<NewTensor<'a>>,
    pub(super) modules: BTreeSet<String>,
    /// Ranks of modules that are not `rank`.
    pub(super) ranks: BTreeMap<String, usize>,
    pub(super) whole: BTreeSet<String>,
    pub(super) has_bias: bool,
    pub(super) is_turned: bool,
    /// PEFT is to tie the head to the copy of the embedding.
    pub(super) is_tied: bool,
}

impl NewAdapter<'_> {
    pub(super) fn take(&mut self, module: String, factors: Factors, dtype: Dtype) -> Result<()> {
        let Factors { rank, left, right } = factors;
        for (factor, shape, values) in
            [("A", vec![rank, right.len() / rank], right), ("B", vec![left.len() / rank, rank], left)]
        {
            let name = format!("base_model.model.{module}.lora_{factor}.weight");
            let tensor = NewTensor::of_values(name.clone(), dtype, shape, values);
            self.tensors.push(tensor.ok_or_else(|| overflow(&name, dtype))?);
        }
        if rank != self.rank {
            self.ranks.insert(module.clone(), rank);
        }
        self.modules.insert(module);
        Ok(())
    }

    pub(super) fn config(&self, base: &Checkpoint) -> Value {
        // Anchored at both ends: PEFT matches the end of a path.
        let patterns: BTreeMap<String, usize> =
            self.ranks.iter().map(|(module, rank)| (format!("^{}", module.replace('.', r"\.")), *rank)).collect();
        let architectures = base.config.as_ref().and_then(|config| config.json.get("architectures"));
        let is_causal = architectures
            .and_then(|classes| classes.get(0)?.as_str())
            .is_some_and(|class| class.ends_with("ForCausalLM"));
        json!({
            "peft_type": "LORA",
            "task_type": if is_causal { Some("CAUSAL_LM") } else { None },
            "base_model_name_or_path": null,
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "lora_dropout": 0.0,
            "bias": if self.has_bias { "lora_only" } else { "none" },
            "fan_in_fan_out": self.is_turned,
            "inference_mode": true,
            "init_lora_weights": true,
            "ensure_weight_tying": self.is_tied,
            "use_dora": false,
            "use_rslora": false,
            "modules_to_save": if self.whole.is_empty() { None } else { Some(&self.whole) },
            "target_modules": self.modules,
        })
    }
}

/// Errors if a value is not finite.
pub(super) fn finite(values: &[f32]) -> Result<()> {
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFinite, "it holds NaN or infinity, or differs by more than f32 can hold")),
    }
}
