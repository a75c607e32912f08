//! Gemma 3n: several residual streams, a way around the mixer, embeddings for each layer, and last layers that see the keys and values of others. What leads to the streams and back is three
//! matrices in the model and a stack in a file.

use super::gemma::{AROUND, GEMMA3};
use super::gemma4::{self, OF_LAYERS, WITH_LAYERS};
use super::hyperparameters::{Model, Said};
use super::join::Join;
use super::layout::{Defaults, Head, Layout};
use super::wants::Wired;
use super::{HEAD, Names};
use crate::arch::spec::FeedForward;
use crate::arch::spec_of;
use crate::error::Result;

pub(super) const GEMMA3N: Layout = Layout {
    architecture: "gemma3n",
    model_types: &["gemma3n_text"],
    class: "Gemma3nForCausalLM",
    outside: OUTSIDE,
    inside: &[
        AROUND[0],
        AROUND[1],
        AROUND[2],
        OF_LAYERS[0],
        OF_LAYERS[1],
        OF_LAYERS[2],
        ("altup_correct_coef", "altup.correction_coefs"),
        ("altup_predict_coef", "altup.prediction_coefs"),
        ("altup_router", "altup.modality_router"),
        ("altup_router_norm", "altup.router_norm"),
        ("laurel_l", "laurel.linear_left"),
        ("laurel_r", "laurel.linear_right"),
        ("laurel_post_norm", "laurel.post_laurel_norm"),
    ],
    joins: &[Join::renamed("altup.correct_output_scale", &[("altup_correct_scale.weight", false)])],
    adds_one_to_norms: false,
    needs: &[&["blk.*.attn_k.weight", "blk.*.attn_v.weight", "blk.*.altup_correct_scale.weight"]],
    wired: &[
        Wired::key("embedding_length_per_layer_input", 256.0),
        Wired::rows("laurel_l", 64.0),
        Wired::unread("altup.active_idx", 0.0),
        Wired::unread("final_logit_softcapping", 30.0),
        Wired::unread_behind("attention.shared_kv_layers", 20),
    ],
    biased: &[],
    padded: Some("model.embed_tokens_per_layer.weight"),
    say,
    defaults: Defaults { head: Head::Of(256), widths_by_layer: true, ..GEMMA3.defaults },
    ..GEMMA3
};

const OUTSIDE: Names = &[
    WITH_LAYERS[0],
    WITH_LAYERS[1],
    (HEAD, "lm_head"),
    WITH_LAYERS[3],
    WITH_LAYERS[4],
    WITH_LAYERS[5],
    ("altup_proj.0", "model.altup_projections.0"),
    ("altup_proj.1", "model.altup_projections.1"),
    ("altup_proj.2", "model.altup_projections.2"),
    ("altup_unembd_proj.0", "model.altup_unembed_projections.0"),
    ("altup_unembd_proj.1", "model.altup_unembed_projections.1"),
    ("altup_unembd_proj.2", "model.altup_unembed_projections.2"),
];

/// Residual streams of all models that llama.cpp runs.
const STREAMS: usize = 4;

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let spec = spec_of(fields.config())?;
    let attention = gemma4::attention(&spec);
    let dense = || {
        spec.layers.iter().filter_map(|layer| match &layer.feed_forward {
            FeedForward::Dense(dense) => Some(dense),
            FeedForward::Routed(_) => None,
        })
    };
    if let Some(value) = fields.get("altup_correct_scale").filter(|value| **value == false) {
        return Err(fields.unsaid("altup_correct_scale", value));
    }
    said.common(model)?;
    said.counts("feed_forward_length", &dense().map(|own| own.width).collect::<Vec<_>>());
    gemma4::say_window(said, model, &spec)?;
    let streams = spec.streams.as_ref().map_or((STREAMS, 0), |streams| (streams.count, streams.active));
    if let Some(value) = fields.get("altup_num_inputs").filter(|_| streams.0 != STREAMS) {
        return Err(fields.unsaid("altup_num_inputs", value));
    }
    said.count("altup.active_idx", streams.1);
    said.count("altup.num_inputs", streams.0);
    if let Some(own) = spec.per_layer.filter(|own| own.vocab > model.tokens) {
        return Err(fields.unsaid("vocab_size_per_layer_input", &own.vocab.into()));
    }
    said.count("embedding_length_per_layer_input", spec.per_layer.map_or(0, |own| own.width));
    said.count("attention.shared_kv_layers", gemma4::borrowers(&attention));
    said.floats("activation_sparsity_scale", dense().map(|own| own.above.unwrap_or(f32::NEG_INFINITY)).collect());
    said.flags("attention.sliding_window_pattern", attention.iter().map(|own| own.window.is_some()).collect());
    Ok(())
}
