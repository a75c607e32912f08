//! compressed-tensors, as llm-compressor writes it and vLLM and transformers read it.
//!
//! Which tensors a module has decides how its weight is stored; the configuration says what they leave open (bits, groups, blocks). Values are `(q − z) · s`,
//! rounded once to the type of the scales. Arithmetic: compressed-tensors 0.20.

mod floats;
mod ints;

pub(super) use floats::{FP8, MXFP4, MXFP8, NVFP4};
pub(super) use ints::{INT, INT4, INT8};

use serde_json::{Map, Value};

use super::Module;
use crate::dtype::Dtype;
use crate::error::{Result, malformed};
use crate::open::{Checkpoint, Entry};

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
