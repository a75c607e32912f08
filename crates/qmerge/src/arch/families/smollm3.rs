//! SmolLM 3: Llama with layers that have no rope (and may have a window).

use serde_json::Value;

use super::spec::Spec;
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["smollm3"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut smollm = llama::read(fields)?;
    let layers = smollm.attention.len();
    // 1 for a layer with a rope, in spite of the field's name.
    let listed = fields.by_layer("no_rope_layers", layers)?;
    let every = fields.positive_if("no_rope_layer_interval")?.unwrap_or(4);
    let truth = |value: &Value| value.as_u64().map_or(*value == Value::Bool(true), |n| n != 0);
    let ropes: Vec<bool> = match listed {
        Some(listed) => listed.iter().map(truth).collect(),
        None => (1..=layers).map(|n| n % every != 0).collect(),
    };
    let window = if fields.flag("use_sliding_window", false)? { fields.positive_if("sliding_window")? } else { None };
    let sliding = fields.sliding(layers)?.unwrap_or_else(|| ropes.iter().map(|has_rope| !has_rope).collect());
    smollm.keep_ropes(ropes);
    smollm.slide(window, sliding);
    Ok(smollm.into())
}
