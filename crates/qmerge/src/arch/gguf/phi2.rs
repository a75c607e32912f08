//! Phi 1 and 2: one layer norm before both blocks, biases everywhere, and no gate.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::{HEADS_FILL, ONE_NORM_BIASES, OUTPUT_BIASES, OWN_HEAD};
use super::{HEAD, Names};
use crate::error::Result;
use crate::open::gguf::{Field, Ways};

const OUTSIDE: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), (HEAD, "lm_head")];

pub(super) const PHI2: Layout = Layout {
    architecture: "phi2",
    model_types: &["phi"],
    class: "PhiForCausalLM",
    outside: OUTSIDE,
    inside: &[("attn_output", "self_attn.dense"), ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")],
    without: &["ffn_norm", "ffn_gate", "attn_q_norm", "attn_k_norm"],
    bias_field: None,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"],
    needs: &[OWN_HEAD, &["output.bias"], ONE_NORM_BIASES, OUTPUT_BIASES],
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("phi-2"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps_field: "layer_norm_eps", eps: 1e-5, share: 0.5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", model.width);
    said.count("block_count", model.layers);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.float(LAYER_EPS, model.eps);
    said.count("rope.dimension_count", model.turned()?);
    said.file_type(model);
    said.keys.set("tokenizer.ggml.add_bos_token", Field::Flag(false));
    Ok(())
}
