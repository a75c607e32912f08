//! Gemma 4 (text): Gemma 3 with norms that add nothing, norms of values too, wider heads in the layers without a window, whose keys may be the values,
//! and a factor on each layer. What has embeddings of its own in each layer, shared keys or experts is not run.

use serde_json::Value;

use super::spec::{Activation, Attention, Projections, QkNorm, Spec};
use super::{Arch, Fields, Result, Rope, gemma2, generic, llama};
use crate::open::ModelConfig;

pub(super) const ARCH: Arch = Arch { model_types: &["gemma4_text", "gemma4"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    refuse(fields)?;
    let mut gemma = llama::read(fields)?;
    gemma.norms = gemma2::NORMS;
    gemma.norm_queries_and_keys(QkNorm::per_head(llama::QK_NORM));
    gemma.spec.embed_scale = (gemma.spec.hidden as f32).sqrt();
    gemma.spec.logit_cap = fields.above_zero_if("final_logit_softcapping")?.map(|cap| cap as f32);
    gemma.feed_forward.activation = Activation::read_or(fields, "hidden_activation", Activation::GeluTanh)?;
    let layers = gemma.attention.len();
    let mut sliding = fields.sliding_but_every(layers, 6)?;
    // The last layer sees everything, whatever is said of it.
    if let Some(last) = sliding.last_mut() {
        *last = false;
    }
    let keys_as_values = fields.flag("attention_k_eq_v", false)?;
    let mut ropes: Vec<((bool, usize), Rope)> = Vec::new();
    for (number, (attention, &sliding)) in gemma.attention.iter_mut().zip(&sliding).enumerate() {
        (attention.scale, attention.norms_values) = (1.0, true);
        widen(attention, fields, number, sliding)?;
        if keys_as_values && !sliding {
            let [q, k, _, o] = llama::PROJECTIONS;
            attention.projections = Projections::KeysAsValues { names: [q, k, o] };
        }
        let kind = (sliding, attention.head_dim);
        if !ropes.iter().any(|(known, _)| *known == kind) {
            let (name, theta) = if sliding { ("sliding_attention", 1e4) } else { ("full_attention", 1e6) };
            ropes.push((kind, Rope::read(fields, attention.head_dim, Some(name), theta)?));
        }
        attention.rope = ropes.iter().position(|(known, _)| *known == kind);
    }
    gemma.spec.ropes = ropes.into_iter().map(|(_, rope)| rope).collect();
    gemma.slide(Some(fields.positive_if("sliding_window")?.unwrap_or(512)), sliding);
    let mut spec = Spec::from(gemma);
    spec.layers.iter_mut().for_each(|layer| layer.scalar = Some("layer_scalar"));
    Ok(spec)
}

/// Errors for what this family has and nothing here runs.
fn refuse(fields: &Fields<'_>) -> Result<()> {
    for key in ["hidden_size_per_layer_input", "num_kv_shared_layers"] {
        if let (Some(1..), Some(value)) = (fields.count_if(key)?, fields.get(key)) {
            return Err(fields.unsupported(key, value));
        }
    }
    if fields.flag("enable_moe_block", false)? {
        return Err(fields.unsupported("enable_moe_block", &Value::Bool(true)));
    }
    match fields.get("use_bidirectional_attention") {
        Some(value) if value.as_str() != Some("vision") => {
            Err(fields.unsupported("use_bidirectional_attention", value))
        }
        _ => Ok(()),
    }
}

/// Gives a layer the heads that it has in place of the model's.
fn widen(attention: &mut Attention, fields: &Fields<'_>, number: usize, sliding: bool) -> Result<()> {
    let (head_dim, kv_heads) = match fields.get("per_layer_config") {
        Some(all) => {
            let Some(own) = all.get(number.to_string()) else { return Ok(()) };
            let json = own.as_object().ok_or_else(|| fields.bad("per_layer_config", all, "it must hold objects"))?;
            let own = ModelConfig { json: json.clone(), ..fields.config().clone() };
            let own = Fields::new(&own);
            (own.positive_if("head_dim")?, own.positive_if("num_key_value_heads")?)
        }
        None if sliding => return Ok(()),
        None => {
            let kv_heads = match fields.flag("attention_k_eq_v", false)? {
                true => fields.positive_if("num_global_key_value_heads")?,
                false => None,
            };
            (Some(fields.positive_if("global_head_dim")?.unwrap_or(512)), kv_heads)
        }
    };
    attention.head_dim = head_dim.unwrap_or(attention.head_dim);
    attention.kv_heads = kv_heads.unwrap_or(attention.kv_heads);
    Ok(())
}
