//! GPT-2: learned positions, layer norms, biases everywhere; its linear layers are stored with inputs as rows.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::{NORM_BIASES, OUTPUT_BIASES};
use super::{HEAD, Names};
use crate::error::Result;

const OUTSIDE: Names = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    (HEAD, "lm_head"),
];

pub(super) const GPT2: Layout = Layout {
    architecture: "gpt2",
    model_types: &["gpt2"],
    class: "GPT2LMHeadModel",
    outside: OUTSIDE,
    wrapper: Some("transformer."),
    layers: "transformer.h.",
    common: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    bias_field: None,
    biased: &["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
    needs: &[NORM_BIASES, &["blk.*.attn_qkv.bias"], OUTPUT_BIASES],
    say,
    defaults: Defaults { eps_field: "layer_norm_epsilon", eps: 1e-5, is_four_times_as_wide: true, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.count("block_count", model.layers);
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", model.fields.positive_if("n_inner")?.unwrap_or(4 * model.hidden));
    said.count("attention.head_count", model.heads);
    said.float(LAYER_EPS, model.eps);
    said.file_type(model);
    Ok(())
}
