//! Llama 4: experts in stacks, gate above up, in every layer or every so many; what llama.cpp has for all models of it.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::{Join, halves, whole};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, PLAIN};
use super::weave::Dims;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const LLAMA4: Layout = Layout {
    architecture: "llama4",
    model_types: &["llama4_text"],
    class: "Llama4ForCausalLM",
    inside: &[
        ("ffn_gate", "feed_forward.gate_proj"),
        ("ffn_up", "feed_forward.up_proj"),
        ("ffn_down", "feed_forward.down_proj"),
        (ROUTER, "feed_forward.router"),
        ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
        ("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
        ("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
    ],
    joins: &[
        Join::split(
            "feed_forward.experts.gate_up_proj",
            &[("ffn_gate_exps.{}.weight", false), ("ffn_up_exps.{}.weight", false)],
            Dims::Stack,
            halves,
        ),
        Join::split("feed_forward.experts.down_proj", &[("ffn_down_exps.{}.weight", false)], Dims::Stack, whole),
    ],
    ways: Ways { pre: Some("llama4"), ..PLAIN.ways },
    say,
    defaults: Defaults { head: Head::Of(128), eps: 1e-5, theta: 500_000.0, ..PLAIN.defaults },
    ..PLAIN
};

/// Of four layers the last has no rope and sees all positions.
const EVERY: usize = 4;
/// Experts of the model that has no norms of queries and keys.
const OF_MAVERICK: usize = 128;

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    refuse(model)?;
    llama::say(said, model)?;
    said.count("feed_forward_length", fields.count("intermediate_size_mlp")?);
    let step = fields.positive_if("interleave_moe_layer_step")?.unwrap_or(1);
    said.count("interleave_moe_layer_step", step);
    said.count("expert_feed_forward_length", model.width);
    let layers: Vec<usize> = (0..model.layers).filter(|layer| (layer + 1).is_multiple_of(step)).collect();
    match fields.get("moe_layers") {
        Some(listed) if *listed != serde_json::json!(layers) => Err(fields.unsaid("moe_layers", listed)),
        _ => Ok(()),
    }
}

/// Errors for what llama.cpp runs otherwise.
fn refuse(model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let experts = fields.count("num_local_experts")?;
    let numbers = [("attention_chunk_size", 8192.0), ("floor_scale", 8192.0), ("attn_scale", 0.1)];
    for (key, known) in numbers {
        if let Some(value) = fields.get(key).filter(|value| value.as_f64() != Some(known)) {
            return Err(fields.unsaid(key, value));
        }
    }
    for (key, known) in [("attn_temperature_tuning", true), ("use_qk_norm", experts != OF_MAVERICK)] {
        if fields.flag(key, true)? != known {
            return Err(fields.unsaid(key, &(!known).into()));
        }
    }
    let turns = |layer: usize| !(layer + 1).is_multiple_of(EVERY);
    let kinds = fields.by_layer("layer_types", model.layers)?.unwrap_or_default();
    let is_chunked = |(layer, kind): (usize, &serde_json::Value)| (kind == "chunked_attention") == turns(layer);
    if let Some(value) = fields.get("layer_types").filter(|_| !kinds.iter().enumerate().all(is_chunked)) {
        return Err(fields.unsaid("layer_types", value));
    }
    let ropes = fields.by_layer("no_rope_layers", model.layers)?.unwrap_or_default();
    let has_rope = |(layer, own): (usize, &serde_json::Value)| (own == 1 || *own == true) == turns(layer);
    if let Some(value) = fields.get("no_rope_layers").filter(|_| !ropes.iter().enumerate().all(has_rope)) {
        return Err(fields.unsaid("no_rope_layers", value));
    }
    match fields.positive_if("no_rope_layer_interval")? {
        Some(every) if every != EVERY && ropes.is_empty() => {
            Err(fields.unsaid("no_rope_layer_interval", &every.into()))
        }
        _ => Ok(()),
    }
}
