//! SmolLM 3: Llama with layers that have no rope (and may have a window).

use qmerge::error::Result;
use serde_json::Value;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::Spec;

pub(super) const FAMILY: Family = Family { model_types: &["smollm3"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = llama::spec(fields)?;
    let layers = spec.layers.len();
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
    for ((layer, has_rope), sliding) in spec.layers.iter_mut().zip(ropes).zip(sliding) {
        layer.rope = has_rope.then_some(0);
        if sliding {
            layer.window = window;
        }
    }
    Ok(spec)
}
