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
    let listed = fields.list("no_rope_layers");
    let every = fields.count_if("no_rope_layer_interval")?.filter(|&n| n > 0).unwrap_or(4);
    let window = if fields.flag("use_sliding_window", false) { fields.count_if("sliding_window")? } else { None };
    let sliding = fields.sliding(layers);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let has_rope = match listed.len() == layers {
            true => listed[i].as_u64().map_or(listed[i] == Value::Bool(true), |n| n != 0),
            false => (i + 1) % every != 0,
        };
        layer.rope = has_rope.then_some(0);
        if sliding.as_ref().map_or(!has_rope, |sliding| sliding[i]) {
            layer.window = window;
        }
    }
    Ok(spec)
}
