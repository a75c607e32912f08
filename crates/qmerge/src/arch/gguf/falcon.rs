//! Falcon: queries, keys and values are one weight, by groups that share a key; one norm before both blocks, or one before each.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::ONE_NORM_BIASES;
use super::{HEAD, Heads, Names};
use crate::arch::Fields;
use crate::error::Result;

const OUTSIDE: Names =
    &[("token_embd", "transformer.word_embeddings"), ("output_norm", "transformer.ln_f"), (HEAD, "lm_head")];

/// One norm before both blocks.
pub(super) const FALCON: Layout = Layout {
    architecture: "falcon",
    model_types: &["falcon"],
    class: "FalconForCausalLM",
    outside: OUTSIDE,
    layers: "transformer.h.",
    common: &[
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    inside: &[("attn_norm", "input_layernorm")],
    ordered: &[("attn_qkv", Heads::Groups)],
    bias_field: None,
    biased: &[],
    needs: &[ONE_NORM_BIASES],
    say,
    defaults: Defaults {
        eps_field: "layer_norm_epsilon",
        eps: 1e-5,
        positions: Some(2048),
        is_four_times_as_wide: true,
        ..PLAIN.defaults
    },
    ..PLAIN
};

/// A norm before each block.
pub(super) const FALCON_NORMS: Layout = Layout {
    inside: &[("attn_norm", "ln_mlp"), ("attn_norm_2", "ln_attn")],
    fits: has_norms,
    only_with: Some("attn_norm_2"),
    ..FALCON
};

fn has_norms(fields: &Fields<'_>) -> bool {
    let norms = fields.count_if("num_ln_in_parallel_attn").ok().flatten();
    fields.flag("new_decoder_architecture", false).unwrap_or(false) && norms.is_none_or(|norms| norms == 2)
}

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let is_grouped = fields.flag("new_decoder_architecture", false)?;
    // All queries share one key, whatever the number says.
    let kv_heads = if !is_grouped && fields.flag("multi_query", true)? {
        1
    } else {
        fields.positive_if("num_kv_heads")?.unwrap_or(model.heads)
    };
    said.count("context_length", 2048);
    said.text("tensor_data_layout", "jploski");
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", fields.positive_if("ffn_hidden_size")?.unwrap_or(4 * model.hidden));
    said.count("block_count", model.layers);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", kv_heads);
    said.float(LAYER_EPS, model.eps);
    said.file_type(model);
    Ok(())
}
