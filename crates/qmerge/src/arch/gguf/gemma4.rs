//! Gemma 4: heads that are wider in the layers without a window, whose keys may be the values; embeddings for each layer; last layers that see the keys and values of others; experts beside the
//! feed-forward of all tokens.

use super::gemma::AROUND;
use super::hyperparameters::{Constant, Model, Said};
use super::join::{Join, whole};
use super::layout::{Defaults, Head, Layout, Local};
use super::llama::PLAIN;
use super::weave::Dims;
use super::{HEAD, ROUTER};
use crate::arch::spec::{Attention, FeedForward, Layer, Mixer, Projections, Spec};
use crate::arch::{Fields, spec_of};
use crate::error::Result;
use crate::open::gguf::{FACTORS, Ways};

pub(super) const GEMMA4: Layout = Layout {
    architecture: "gemma4",
    model_types: &["gemma4_text"],
    class: "Gemma4ForCausalLM",
    outside: &WITH_LAYERS,
    inside: &[AROUND[0], AROUND[1], AROUND[2], OF_LAYERS[0], OF_LAYERS[1], OF_LAYERS[2]],
    joins: &[SCALAR],
    biased: &[],
    fits: |fields| !has_experts(fields),
    ways: Ways { merges_pieces: true, ..PLAIN.ways },
    say,
    defaults: Defaults {
        head: Head::Of(256),
        theta: 1_000_000.0,
        local: Local::Own(10_000.0),
        rope: Some("proportional"),
        ..PLAIN.defaults
    },
    ..PLAIN
};

pub(super) const GEMMA4_MOE: Layout = Layout {
    inside: &[
        AROUND[0],
        AROUND[1],
        AROUND[2],
        OF_LAYERS[0],
        OF_LAYERS[1],
        OF_LAYERS[2],
        (ROUTER, "router.proj"),
        ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
        ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
        ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
    ],
    joins: &[
        SCALAR,
        Join::renamed("router.scale", &[("ffn_gate_inp.scale", false)]),
        Join::renamed("router.per_expert_scale", &[("ffn_down_exps.scale", false)]),
        Join::split("experts.gate_up_proj", &[("ffn_gate_up_exps.{}.weight", false)], Dims::Stack, whole),
        Join::split("experts.down_proj", &[("ffn_down_exps.{}.weight", false)], Dims::Stack, whole),
    ],
    fits: has_experts,
    ..GEMMA4
};

/// Outside the layers, with what embeddings of layers have there.
pub(super) const WITH_LAYERS: [(&str, &str); 6] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    (HEAD, "lm_head"),
    ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("per_layer_proj_norm", "model.per_layer_projection_norm"),
];
/// The same in a layer.
pub(super) const OF_LAYERS: [(&str, &str); 3] = [
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
];
const SCALAR: Join = Join::renamed("layer_scalar", &[("layer_output_scale.weight", false)]);

fn has_experts(fields: &Fields<'_>) -> bool {
    fields.get("enable_moe_block").is_some_and(|value| *value == true)
}

/// What no pair of features turns by: a wavelength times this is longer than any text.
const STILL: f32 = 1e30;

/// What attends, by layer.
pub(super) fn attention(spec: &Spec) -> Vec<&Attention> {
    let layers = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(attention),
        _ => None,
    });
    layers.collect()
}

/// How many layers see keys and values of others.
pub(super) fn borrowers(attention: &[&Attention]) -> usize {
    attention.iter().filter(|own| matches!(own.projections, Projections::Borrowed { .. })).count()
}

/// Errors if the layers' embeddings know other tokens than the model: a file has one number for both tables.
pub(super) fn said_once(fields: &Fields<'_>, spec: &Spec, tokens: usize) -> Result<()> {
    match spec.per_layer.filter(|own| own.vocab != tokens) {
        Some(own) => Err(fields.unsaid("vocab_size_per_layer_input", &own.vocab.into())),
        None => Ok(()),
    }
}

/// The cap of logits, and the window.
pub(super) fn say_window(said: &mut Said, model: &Model<'_>, spec: &Spec) -> Result<()> {
    if let Some(cap) = spec.logit_cap {
        said.float("final_logit_softcapping", f64::from(cap));
    }
    said.count("attention.sliding_window", model.fields.positive_if("sliding_window")?.unwrap_or(512));
    Ok(())
}

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    // Which layers are how is what a model is run by.
    let spec = spec_of(fields.config())?;
    let attention = attention(&spec);
    let of = |is_sliding: bool| attention.iter().rev().find(|own| own.window.is_some() == is_sliding);
    let wide = of(false).map_or(model.head_dim(), |own| own.head_dim);
    let narrow = of(true).map_or(model.head_dim(), |own| own.head_dim);
    said.common(model)?;
    say_window(said, model, &spec)?;
    said_once(fields, &spec, model.tokens)?;
    said.count("attention.shared_kv_layers", borrowers(&attention));
    said.count("embedding_length_per_layer_input", spec.per_layer.map_or(0, |own| own.width));
    said.flags("attention.sliding_window_pattern", attention.iter().map(|own| own.window.is_some()).collect());
    for (end, features) in [("", wide), ("_swa", narrow)] {
        said.count(&format!("attention.key_length{end}"), features);
        said.count(&format!("attention.value_length{end}"), features);
    }
    said.experts(model)?;
    if let Some(value) = fields.get("use_double_wide_mlp").filter(|value| **value == true) {
        let width = |layer: &Layer| match &layer.feed_forward {
            FeedForward::Dense(dense) => Ok(dense.width),
            // No model has both, and files of experts are read with one width.
            FeedForward::Routed(_) => Err(fields.unsaid("use_double_wide_mlp", value)),
        };
        said.counts("feed_forward_length", &spec.layers.iter().map(width).collect::<Result<Vec<_>>>()?);
    }
    let heads: Vec<usize> = attention.iter().map(|own| own.kv_heads).collect();
    if heads.iter().any(|own| *own != model.kv_heads) {
        said.counts("attention.head_count_kv", &heads);
    }
    said.count("rope.dimension_count", wide);
    said.count("rope.dimension_count_swa", narrow);
    let pairs = wide / 2;
    let turned = match (model.rope.kind(), model.rope.number("partial_rotary_factor")) {
        (Some("proportional"), share) => ((share.unwrap_or(1.0) * wide as f64 / 2.0) as usize).min(pairs),
        (_, Some(share)) if share != 1.0 => return Err(fields.unsaid("partial_rotary_factor", &share.into())),
        _ => pairs,
    };
    if let Some(factor) =
        model.rope.full.and_then(|rope| rope.get("factor")).filter(|factor| factor.as_f64() != Some(1.0))
    {
        return Err(fields.unsaid("factor", factor));
    }
    let values = (0..pairs).map(|pair| if pair < turned { 1.0 } else { STILL }).collect();
    said.constants.push(Constant { name: FACTORS, values });
    Ok(())
}
