//! compressed-tensors, as llm-compressor writes it and vLLM and transformers read it.
//!
//! Which tensors a module has decides how its weight is stored; the configuration says what they leave open (bits, groups, blocks). Values are `(q − z) · s`,
//! rounded once to the type of the scales. Arithmetic: compressed-tensors 0.20.

mod floats;
mod ints;

pub(super) use floats::{FP8, MXFP4, MXFP8, NVFP4};
pub(super) use ints::{INT, INT4, INT8};

use serde_json::{Map, Value, json};

use super::Module;
use crate::dtype::Dtype;
use crate::error::{Result, malformed, mismatch};
use crate::open::{Checkpoint, Entry, ModelConfig};

/// Scales of activations and other numbers beside a weight, which stay what they are.
const KEPT: &[&str] = &["input_scale", "input_zero_point", "input_global_scale", "output_scale"];

/// `quantization_config`, if it is compressed-tensors'.
fn config(checkpoint: &Checkpoint) -> Option<&Map<String, Value>> {
    let about = checkpoint.config.as_ref()?;
    let about = about.quantization().or_else(|| about.find("compression_config")?.as_object())?;
    let method = about.get("quant_method").and_then(Value::as_str)?;
    matches!(method, "compressed-tensors" | "compressed_tensors" | "sparseml").then_some(about)
}

/// What the configuration says of the weights of each of its groups.
fn schemes(checkpoint: &Checkpoint) -> impl Iterator<Item = &Map<String, Value>> {
    let groups = config(checkpoint).and_then(|about| about.get("config_groups")?.as_object());
    groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights")?.as_object())
}

/// Columns of a group, for scales of `groups` per row: of those that the configuration names, else as many as there are.
fn group_size(checkpoint: &Checkpoint, scales: &Entry, cols: usize, groups: usize) -> Result<usize> {
    if groups <= 1 {
        return Ok(cols.max(1));
    }
    for scheme in schemes(checkpoint) {
        let Some(size) = scheme.get("group_size").and_then(Value::as_i64) else { continue };
        if size == 0 {
            let file = checkpoint.config.as_ref().map(|config| config.path.as_path());
            return Err(malformed("`group_size` is 0: a group has no columns")
                .in_file(file.unwrap_or(&checkpoint.path))
                .with_hint("take the size that the model was quantized with, or null for one scale per row"));
        }
        if size > 0 && cols.div_ceil(size as usize) == groups {
            return Ok(size as usize);
        }
    }
    if cols.is_multiple_of(groups) && config(checkpoint).is_none_or(|_| schemes(checkpoint).next().is_none()) {
        return Ok(cols / groups);
    }
    Err(super::scaled::misfit(scales, &format!("a scale for each group of the configuration's size in {cols} columns")))
}

/// Rows, columns and matrices of a weight of that shape.
fn matrix(shape: &[usize], lead: &Entry) -> Result<(usize, usize, usize)> {
    match *shape {
        [rows, cols] => Ok((1, rows, cols)),
        [matrices, rows, cols] => Ok((matrices, rows, cols)),
        _ => Err(super::scaled::misfit(lead, "a matrix, or a stack of them")),
    }
}

/// The type that values are rounded to: that of their scales where it is a plain one.
fn values(scales: &Entry) -> Dtype {
    if scales.dtype.is_plain_float() { scales.dtype } else { Dtype::BF16 }
}

/// True if the module may hold a weight of this family: its configuration is ours, or there is none.
fn may_be(module: &Module<'_>) -> bool {
    config(module.checkpoint).is_some() || super::method(module.checkpoint).is_none()
}

/// Says in `config.json` that linear layers are stored in a layout of that name, with such weights, and what stays plain.
fn describe(
    config: &mut ModelConfig,
    id: &str,
    (layout, weights): (&str, &Value),
    skipped: Option<&[String]>,
) -> Result<()> {
    let head = ["lm_head".to_owned()];
    if let Some(groups) = config.quantization().and_then(|own| own.get("config_groups")?.as_object()) {
        let differs = |own: &Value| {
            let said = |of: Option<&Value>, key: &str, default: Value| match of.and_then(|of| of.get(key)) {
                None | Some(Value::Null) => default,
                Some(value) => value.clone(),
            };
            let same = |key: &str, default: Value| {
                said(own.get("weights"), key, default.clone()) == said(Some(weights), key, default)
            };
            let kind = same("num_bits", json!(8)) && same("type", json!("int"));
            let (group, symmetric) = (same("group_size", Value::Null), same("symmetric", json!(true)));
            let is_float = weights.get("type") == Some(&json!("float"));
            let activations = own.get("input_activations").is_some_and(|activations| !activations.is_null());
            kind && (group || !is_float) && !(group && symmetric && !activations)
        };
        if groups.values().any(differs) {
            return Err(mismatch(format!("the base is stored as {id} already, and not as this would be"))
                .in_file(&config.path)
                .with_hint("leave out --to: what has the format keeps it"));
        }
    }
    // An expression where the list's entry is one, as this family spells it.
    let ignored = |entry: &String| if entry.starts_with('^') { format!("re:{entry}") } else { entry.clone() };
    config.remove_everywhere("quantization_config");
    let quantization = json!({
        "config_groups": {"group_0": {
            "input_activations": null,
            "output_activations": null,
            "targets": ["Linear"],
            "weights": weights,
        }},
        "format": layout,
        "global_compression_ratio": null,
        "ignore": skipped.unwrap_or(&head).iter().map(ignored).collect::<Vec<_>>(),
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    });
    config.json.insert("quantization_config".into(), quantization);
    Ok(())
}
