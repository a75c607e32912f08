//! Phi 3 and 4, whose queries, keys and values are one weight, as gate and up are.

use serde_json::Value;

use super::hyperparameters::{Constant, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use crate::error::Result;
use crate::open::gguf::{LONG_FACTORS, SHORT_FACTORS, Ways};

pub(super) const PHI3: Layout = Layout {
    architecture: "phi3",
    model_types: &["phi3"],
    class: "Phi3ForCausalLM",
    inside: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    without: &["attn_q", "attn_k", "attn_v", "ffn_gate"],
    repeats_positions: true,
    ways: Ways { by_flags_alone: true, ..PLAIN.ways },
    say,
    defaults: Defaults { eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};

pub(super) fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let dims = model.turned()?;
    let original = match model.rope.number("original_max_position_embeddings") {
        Some(original) => original as usize,
        None => fields.positive_if("original_max_position_embeddings")?.unwrap_or(4096),
    };
    said.count("context_length", model.positions);
    said.count("rope.scaling.original_context_length", original);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", model.width);
    said.count("block_count", model.layers);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.float("attention.layer_norm_rms_epsilon", model.eps);
    said.count("rope.dimension_count", dims);
    said.float("rope.freq_base", model.rope.theta);
    said.file_type(model);
    said.count("attention.sliding_window", fields.count_if("sliding_window")?.unwrap_or(0));
    let list = |key: &str| model.rope.full.and_then(|rope| rope.get(key)).filter(|list| !list.is_null());
    let Some(long) = list("long_factor") else { return Ok(()) };
    let stretch = model.positions as f64 / (original.max(1)) as f64;
    let scales = (model.rope.number("short_mscale"), model.rope.number("long_mscale"));
    let factor = match model.rope.kind() {
        _ if let Some(factor) = model.rope.number("attention_factor") => factor,
        // Phi MoE's own.
        _ if let (Some(short), Some(long)) = scales
            && short == long =>
        {
            short
        }
        _ if scales != (None, None) => {
            return Err(fields.unsaid("long_mscale", &scales.1.map_or(Value::Null, Value::from)));
        }
        _ if stretch <= 1.0 => 1.0,
        Some("yarn") => 0.1 * libm::log(stretch) + 1.0,
        _ => (1.0 + libm::log(stretch) / libm::log(original as f64)).sqrt(),
    };
    said.float_first("rope.scaling.attn_factor", factor);
    let factors = |key: &str, value: &Value| -> Result<Vec<f32>> {
        let all = value.as_array().filter(|all| all.len() * 2 == dims);
        let all = all.and_then(|all| all.iter().map(|x| x.as_f64().map(|x| x as f32)).collect());
        all.ok_or_else(|| fields.bad(key, value, &format!("it must be a list of {} numbers", dims / 2)))
    };
    let short = list("short_factor").ok_or_else(|| fields.missing("short_factor"))?;
    said.constants = vec![
        Constant { name: LONG_FACTORS, values: factors("long_factor", long)? },
        Constant { name: SHORT_FACTORS, values: factors("short_factor", short)? },
    ];
    Ok(())
}
