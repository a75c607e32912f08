//! Adapters of mlx-lm: `adapters.safetensors`, and what was trained in `adapter_config.json`.
//!
//! A is stored as (inputs, rank) and B as (rank, outputs), of a stack of experts as (experts, rank, inputs) and (experts, outputs, rank), and `scale` is the factor
//! itself. An embedding's A is (tokens, rank). Source: mlx-lm 0.32, `tuner/{lora,dora,utils}.py`, `fuse.py`.

use serde_json::{Map, Value};

use super::{Dialect, Foreign, Stated, Translation, no_matrix};
use crate::adapters::config::Fields;
use crate::adapters::keys::{Key, Role};
use crate::error::{Result, malformed, unsupported};
use crate::open::arranged::Arrangement;

#[derive(Debug)]
pub(super) struct Mlx;

impl Dialect for Mlx {
    fn writer(&self) -> &'static str {
        "MLX"
    }

    fn files(&self) -> &'static [&'static str] {
        &["adapters.safetensors"]
    }

    fn is_folder(&self) -> bool {
        true
    }

    fn claims(&self, file: &Foreign<'_>) -> bool {
        let trained = |name: &str| [".lora_a", ".lora_b"].iter().any(|end| name.ends_with(end));
        let is_configured = |config: &Map<String, Value>| {
            !config.contains_key("peft_type")
                && (config.contains_key("fine_tune_type") || config.contains_key("lora_parameters"))
        };
        // A GGUF file's names end so too, and go on from a tensor's.
        let is_weight = |name: &str| [".weight.lora_a", ".weight.lora_b"].iter().any(|end| name.ends_with(end));
        file.config.is_some_and(is_configured) || file.mostly(|name| trained(name) && !is_weight(name))
    }

    fn read(&self, file: &Foreign<'_>) -> Result<Translation> {
        let config = file.config.ok_or_else(|| {
            malformed("no adapter_config.json beside the weights: the scale is unknown")
                .with_hint("copy adapter_config.json from where the adapter was trained")
        })?;
        let fields = Fields(config);
        let kind = fields.text("fine_tune_type")?.unwrap_or_else(|| "lora".into());
        let mut found = Translation::default();
        if let Some(base) = fields.text("model")? {
            found.config.insert("base_model_name_or_path".into(), base.into());
        }
        match kind.as_str() {
            "full" => read_whole(file, &mut found),
            "lora" | "dora" => read_factors(file, config, kind == "dora", &mut found)?,
            other => {
                return Err(unsupported(format!(
                    "`fine_tune_type` is \"{other}\", and this version reads lora, dora and full"
                )));
            }
        }
        Ok(found)
    }
}

/// Parameters that take the place of the base's.
fn read_whole(file: &Foreign<'_>, found: &mut Translation) {
    found.config.insert("peft_type".into(), "FULL".into());
    for entry in &file.tensors.entries {
        let (module, parameter) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
        let role = Role::Parameter(parameter.to_owned());
        found.keys.insert(entry.name.clone(), Key { whole: true, ..Key::of(module, role) });
    }
}

fn read_factors(file: &Foreign<'_>, config: &Map<String, Value>, dora: bool, found: &mut Translation) -> Result<()> {
    let scale = scale(config)?;
    found.config.insert("peft_type".into(), "LORA".into());
    found.config.insert("use_dora".into(), dora.into());
    let mut stacked = Vec::new();
    for entry in &file.tensors.entries {
        let (module, end) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
        let embedding = is_embedding(module);
        if embedding && dora {
            return Err(unsupported("a DoRA of an embedding, whose magnitudes are tokens' in MLX and features' in PEFT, is not read by this version")
                .in_tensor(&entry.name));
        }
        let marker = match end {
            "lora_a" if embedding => "lora_embedding_A",
            "lora_b" if embedding => "lora_embedding_B",
            "lora_a" => "lora_A",
            "lora_b" => "lora_B",
            "m" if dora => "lora_magnitude_vector",
            _ => continue,
        };
        let rank = match (end, &entry.shape[..]) {
            ("m", _) => None,
            ("lora_a", &[inputs, rank]) => {
                found.arrangements.push((entry.name.clone(), Arrangement::turned(inputs, rank)));
                Some(rank)
            }
            (_, &[rank, outputs]) => {
                found.arrangements.push((entry.name.clone(), Arrangement::turned(rank, outputs)));
                Some(rank)
            }
            ("lora_a", &[experts, rank, inputs]) => {
                stacked.push(module.to_owned());
                let rows = experts.checked_mul(rank).ok_or_else(|| no_matrix(&entry.name, &entry.shape))?;
                found.arrangements.push((entry.name.clone(), Arrangement::reshaped(&[rows, inputs])));
                Some(rank)
            }
            (_, &[experts, outputs, rank]) => {
                let cols = experts.checked_mul(rank).ok_or_else(|| no_matrix(&entry.name, &entry.shape))?;
                let split = vec![experts, outputs, rank];
                let turned =
                    Arrangement { split, axes: vec![1, 2, 0], shape: vec![outputs, cols], ..Arrangement::default() };
                found.arrangements.push((entry.name.clone(), turned));
                Some(rank)
            }
            _ => return Err(no_matrix(&entry.name, &entry.shape)),
        };
        if let Some(rank) = rank {
            found.state(module, Stated { rank, scale, heads: None }, &entry.name)?;
        }
        found.keys.insert(entry.name.clone(), Key::of(module, Role::Own(marker, false)));
    }
    // A stack is a parameter that is targeted by name, in PEFT's words.
    let parameters: Vec<Value> = stacked.iter().map(|module| format!("{module}.weight").into()).collect();
    found.config.insert("target_parameters".into(), parameters.into());
    found.tell_scaling("r", "lora_alpha");
    Ok(())
}

/// The factor on the product. Early versions multiplied `scale` by `alpha / rank`, and a file does not say which version wrote it.
fn scale(config: &Map<String, Value>) -> Result<f64> {
    let parameters = config.get("lora_parameters").and_then(Value::as_object).ok_or_else(|| {
        malformed("no `lora_parameters`: the scale is unknown")
            .with_hint("copy adapter_config.json from where the adapter was trained")
    })?;
    let fields = Fields(parameters);
    let scale = fields.number("scale")?.ok_or_else(|| malformed("`lora_parameters` has no `scale`"))?;
    let (alpha, rank) = (fields.number("alpha")?, fields.number("rank")?);
    match (alpha, rank) {
        (Some(alpha), Some(rank)) if alpha != rank => {
            let early = scale * alpha / rank;
            Err(unsupported(format!(
                "`lora_parameters` has both `scale` and `alpha`: the factor is {scale} in what mlx-lm writes today, and scale · alpha / rank = {early} in what early versions wrote"
            ))
            .with_hint(format!("take `alpha` out of the file, and if an early version trained the adapter, set `scale` to {early}")))
        }
        (Some(_), None) => Err(unsupported("`lora_parameters` has `alpha` and no `rank`: the factor is not known")
            .with_hint("take `alpha` out of the file if `scale` is the factor")),
        _ => Ok(scale),
    }
}

/// True for the names that MLX's models have for embeddings. A wrong guess is an error later, since the shapes do not fit then.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    ["embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "tok_embeddings", "embedding", "embeddings", "embed"]
        .contains(&last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scale_of(parameters: Value) -> Result<f64> {
        scale(json!({ "lora_parameters": parameters }).as_object().unwrap())
    }

    #[test]
    fn the_scale_is_the_factor_and_alpha_makes_it_doubtful() {
        assert_eq!(scale_of(json!({"rank": 8, "scale": 20.0, "dropout": 0.0})).unwrap(), 20.0);
        assert_eq!(scale_of(json!({"rank": 8, "alpha": 8, "scale": 2})).unwrap(), 2.0);
        for (parameters, words) in [
            (
                json!({"rank": 8, "alpha": 16, "scale": 10.0}),
                "is 10 in what mlx-lm writes today, and scale · alpha / rank = 20",
            ),
            (json!({"alpha": 16, "scale": 10.0}), "no `rank`"),
            (json!({"rank": 8}), "no `scale`"),
            (json!({"rank": 8, "scale": "x"}), "expected a number"),
            (json!([]), "no `lora_parameters`"),
        ] {
            let error = scale_of(parameters).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
