//! Adapters of Tinker: PEFT's names and files, but for the head and for routed experts.
//!
//! The head is `model.unembed_tokens`. All experts' factors of a projection stand in one tensor, (experts, rank, inputs) and (experts, outputs, rank), under `w1`
//! (gate), `w3` (up) and `w2` (down), and one that all experts share has a single matrix. Source: tinker-cookbook 0.6, `weights/_merge*.py`.

use std::collections::HashMap;

use serde_json::Value;

use super::{DAMAGED, Dialect, Foreign, Stated, Translation, no_matrix};
use crate::adapters::config::Fields;
use crate::adapters::keys::{self, Key, Role};
use crate::error::{Result, malformed, mismatch};
use crate::open::arranged::Arrangement;

#[derive(Debug)]
pub(super) struct Tinker;

const HEAD: &str = "model.unembed_tokens";

impl Dialect for Tinker {
    fn writer(&self) -> &'static str {
        "Tinker"
    }

    fn is_folder(&self) -> bool {
        true
    }

    fn claims(&self, file: &Foreign<'_>) -> bool {
        file.tensors.entries.iter().any(|entry| {
            let key = keys::parse(&entry.name);
            is_factor(&key.role) && (key.module.ends_with(HEAD) || is_stack(&key.module) && entry.shape.len() == 3)
        })
    }

    fn read(&self, file: &Foreign<'_>) -> Result<Translation> {
        let config = file.config.ok_or_else(|| {
            malformed("no adapter_config.json beside the weights: the scaling is unknown")
                .with_hint("copy adapter_config.json from the archive that the weights were in")
        })?;
        let fields = Fields(config);
        let (rank, alpha) = (fields.number("r")?, fields.number("lora_alpha")?);
        let (Some(rank), Some(alpha)) = (rank.filter(|rank| *rank >= 1.0), alpha) else {
            return Err(malformed("no `r` above 0 and `lora_alpha`: the scaling is unknown"));
        };
        let mut found = Translation::default();
        for key in ["base_model_name_or_path", "task_type"] {
            found.config.extend(config.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        found.config.insert("peft_type".into(), "LORA".into());
        let mut most: HashMap<String, usize> = HashMap::new();
        for entry in &file.tensors.entries {
            let of_module = most.entry(keys::parse(&entry.name).module).or_default();
            *of_module = (*of_module).max(entry.shape.first().copied().unwrap_or(0));
        }
        let experts = |module: &str| most.get(module).copied();
        let mut stacked: Vec<Value> = Vec::new();
        for entry in &file.tensors.entries {
            let name = entry.name.as_str();
            let mut key = keys::parse(name);
            if let Some(before) = key.module.strip_suffix(HEAD) {
                key.module = format!("{before}lm_head");
            }
            if !is_factor(&key.role) {
                found.keys.insert(name.to_owned(), key);
                continue;
            }
            let is_a = key.role == Role::Own("lora_A", false);
            // What a model has no projection for, is empty.
            if is_stack(&key.module) && entry.elements() == 0 {
                let reason = "an empty factor, of a projection that the experts do not have";
                found.keys.insert(name.to_owned(), Key::of(&key.module, Role::PassedOver(reason)));
                continue;
            }
            let own = match (is_stack(&key.module), is_a, &entry.shape[..]) {
                (false, true, &[rank, _]) | (false, false, &[_, rank]) => rank,
                (true, true, &[have, rank, inputs]) => {
                    let all = experts(&key.module).unwrap_or(have);
                    let rows = all.checked_mul(rank).ok_or_else(|| no_matrix(name, &entry.shape))?;
                    let copies = copies(name, have, all)?;
                    let seen = Arrangement {
                        copies,
                        split: vec![have, rank, inputs],
                        axes: vec![0, 1, 2],
                        shape: vec![rows, inputs],
                    };
                    found.arrangements.push((name.to_owned(), seen));
                    stacked.push(format!("{}.weight", key.module).into());
                    rank
                }
                (true, false, &[have, outputs, rank]) => {
                    let all = experts(&key.module).unwrap_or(have);
                    let cols = all.checked_mul(rank).ok_or_else(|| no_matrix(name, &entry.shape))?;
                    let copies = copies(name, have, all)?;
                    let seen = Arrangement {
                        copies,
                        split: vec![have, outputs, rank],
                        axes: vec![1, 2, 0],
                        shape: vec![outputs, cols],
                    };
                    found.arrangements.push((name.to_owned(), seen));
                    rank
                }
                _ => return Err(no_matrix(name, &entry.shape)),
            };
            let stated = Stated { rank: own, scale: alpha / rank, heads: None };
            found.state(&key.module, stated, name)?;
            found.keys.insert(name.to_owned(), key);
        }
        found.config.insert("target_parameters".into(), stacked.into());
        found.tell_scaling("r", "lora_alpha");
        Ok(found)
    }
}

fn is_factor(role: &Role) -> bool {
    matches!(role, Role::Own("lora_A" | "lora_B", false))
}

/// True for a projection of all experts.
fn is_stack(module: &str) -> bool {
    [".experts.w1", ".experts.w2", ".experts.w3"].iter().any(|end| module.ends_with(end))
}

/// How often a factor of `have` matrices counts, where there are `all` experts.
fn copies(name: &str, have: usize, all: usize) -> Result<usize> {
    match have {
        _ if have == all => Ok(1),
        1 => Ok(all),
        _ => {
            Err(mismatch(format!("{have} matrices, but the other factor has {all}")).in_tensor(name).with_hint(DAMAGED))
        }
    }
}
