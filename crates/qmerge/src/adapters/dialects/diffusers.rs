//! Adapters of diffusion models as diffusers writes them (`save_lora_weights`): one file, whose names begin with the part of the pipeline.
//!
//! Factors go by the names of PEFT, or by two older sets of names. Rank and alpha stand in the metadata where a version from 0.34 on wrote it; without it the
//! factor is 1, but for a module with an alpha of its own. Source: diffusers 0.42, `loaders/lora_base.py`, `utils/state_dict_utils.py`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::diffusion::{Component, Components, Whereabouts, by_folder};
use super::{Dialect, Foreign, Stated, Translation};
use crate::adapters::config::of_json;
use crate::adapters::keys::{Key, Role};
use crate::adapters::lora::LoraConfig;
use crate::adapters::{Names, read_number};
use crate::error::{Result, malformed, mismatch, unsupported};
use crate::open;

#[derive(Debug)]
pub(super) struct Diffusers;

/// Ends of names, and what PEFT calls the tensor; whether it is a bias. The longer ones first.
const ENDS: &[(&str, &str, bool)] = &[
    (".lora_A.weight", "lora_A", false),
    (".lora_B.weight", "lora_B", false),
    (".lora_B.bias", "lora_B", true),
    (".lora_magnitude_vector.weight", "lora_magnitude_vector", false),
    (".lora_magnitude_vector", "lora_magnitude_vector", false),
    (".lora_linear_layer.down.weight", "lora_A", false),
    (".lora_linear_layer.up.weight", "lora_B", false),
    (".lora.down.weight", "lora_A", false),
    (".lora.up.weight", "lora_B", false),
    ("_lora.down.weight", "lora_A", false),
    ("_lora.up.weight", "lora_B", false),
];

/// Where the metadata has the configurations of the parts, in one object: `unet.r`.
const METADATA: &str = "lora_adapter_metadata";

impl Dialect for Diffusers {
    fn writer(&self) -> &'static str {
        "diffusers"
    }

    fn files(&self) -> &'static [&'static str] {
        &["pytorch_lora_weights.safetensors"]
    }

    fn claims(&self, file: &Foreign<'_>) -> bool {
        let is_peft = file.config.is_some_and(|config| config.contains_key("peft_type"));
        !is_peft && file.mostly(|name| part(name).is_some() && ENDS.iter().any(|(end, ..)| name.ends_with(end)))
    }

    fn read(&self, file: &Foreign<'_>) -> Result<Translation> {
        let mut found = Translation::default();
        let configs = configs(file)?;
        let mut alphas: HashMap<String, f64> = HashMap::new();
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        let mut scaled = 0;
        for entry in &file.tensors.entries {
            let name = entry.name.as_str();
            if let Some(module) = name.strip_suffix(".alpha").filter(|_| entry.elements() == 1 && part(name).is_some())
            {
                let alpha = read_number(file.tensors, entry)?;
                let module = as_peft_calls(module);
                let reason = "it stands in the factor of its module's product";
                found.keys.insert(name.to_owned(), Key::of(&module, Role::PassedOver(reason)));
                alphas.insert(module, alpha);
                continue;
            }
            let end = ENDS.iter().find_map(|(end, marker, bias)| Some((name.strip_suffix(end)?, end, *marker, *bias)));
            let Some((path, end, marker, bias)) = end.filter(|_| part(name).is_some()) else {
                return Err(unsupported("nothing that this version knows in a LoRA of diffusers").in_tensor(name));
            };
            // The oldest names are those of attention processors.
            let module = if end.starts_with('_') { as_peft_calls(path) } else { path.to_owned() };
            if marker == "lora_A" {
                let rank =
                    *entry.shape.first().ok_or_else(|| mismatch("no shape, expected a matrix").in_tensor(name))?;
                ranks.insert(module.clone(), rank);
            }
            scaled += usize::from(marker == "lora_magnitude_vector");
            found.keys.insert(name.to_owned(), Key::of(&module, Role::Own(marker, bias)));
        }
        for (module, rank) in &ranks {
            let (part, path) = module.split_once('.').unwrap_or((module, ""));
            let scale = match (alphas.get(module), configs.get(part)) {
                (Some(alpha), _) => alpha / *rank as f64,
                (None, Some(config)) => {
                    let (said, scale) = config.scaling(path)?;
                    if said != *rank {
                        return Err(mismatch(format!(
                            "the metadata says rank {said} for `{module}`, whose A has rank {rank}"
                        )));
                    }
                    scale
                }
                (None, None) => 1.0,
            };
            found.stated.insert(module.clone(), Stated { rank: *rank, scale, heads: None });
        }
        found.config.insert("peft_type".into(), "LORA".into());
        found.config.insert("use_dora".into(), (scaled > 0 && scaled == ranks.len()).into());
        found.tell_scaling("r", "lora_alpha");
        Ok(found)
    }

    fn places(&self, names: &Names<'_>, modules: &[&str]) -> Result<Vec<Option<Whereabouts>>> {
        let parts = Components::of(names)?;
        let place = |module: &&str| {
            let Some((part, path)) = part(module) else { return Ok(None) };
            parts.dotted(part, path).map_err(|error| error.in_tensor(module))
        };
        modules.iter().map(place).collect()
    }

    fn names_need_base(&self) -> bool {
        true
    }
}

/// The part that a name begins with, and the path in it.
fn part(name: &str) -> Option<(Component, &str)> {
    let (first, rest) = name.split_once('.')?;
    Some((by_folder(first)?, rest))
}

/// The module of an attention processor's factors, by the names of diffusers (`attn1.processor.to_out`) or of a text encoder (`self_attn.to_q`).
fn as_peft_calls(path: &str) -> String {
    let path = path.strip_suffix("_lora").unwrap_or(path);
    let Some((attention, projection)) = path.rsplit_once('.') else { return path.to_owned() };
    if let Some(attention) = attention.strip_suffix(".processor") {
        let projection = if projection == "to_out" { "to_out.0" } else { projection };
        return format!("{attention}.{projection}");
    }
    if attention.ends_with(".self_attn") {
        let projection = match projection {
            "to_q" => "q_proj",
            "to_k" => "k_proj",
            "to_v" => "v_proj",
            "to_out" => "out_proj",
            other => other,
        };
        return format!("{attention}.{projection}");
    }
    path.to_owned()
}

/// The configurations that the metadata holds, by part.
fn configs(file: &Foreign<'_>) -> Result<HashMap<String, LoraConfig>> {
    let metadata = file.tensors.metadata.iter().flatten().find(|(key, _)| key == METADATA);
    let Some((_, text)) = metadata else { return Ok(HashMap::new()) };
    let all: Map<String, Value> = open::json::parse_object(text)
        .map_err(|error| malformed(format!("`{METADATA}` in the file's metadata is not a JSON object: {error}")))?;
    let mut parts: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (key, value) in &all {
        let Some((part, field)) = key.split_once('.') else { continue };
        parts.entry(part).or_default().insert(field.to_owned(), value.clone());
    }
    let path = &file.tensors.path;
    let read = |(part, mut fields): (&str, Map<String, Value>)| -> Result<(String, LoraConfig)> {
        fields.insert("peft_type".into(), "LORA".into());
        let config = LoraConfig::read(&of_json(fields, path)?)?;
        config.refuse(&crate::adapters::ReadOptions::default())?;
        Ok((part.to_owned(), config))
    };
    parts.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_are_those_of_modules() {
        for (old, want) in [
            (
                "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
                "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            ),
            ("unet.x.attn2.processor.to_out", "unet.x.attn2.to_out.0"),
            (
                "text_encoder.text_model.encoder.layers.1.self_attn.to_out",
                "text_encoder.text_model.encoder.layers.1.self_attn.out_proj",
            ),
            ("text_encoder.text_model.encoder.layers.1.mlp.fc1", "text_encoder.text_model.encoder.layers.1.mlp.fc1"),
            ("x", "x"),
        ] {
            assert_eq!(as_peft_calls(old), want);
        }
    }
}
