//! GLM 4 of the first release: gate and up are one weight, and neighbours in half of each head are turned.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::wants::HEADS_FILL;
use crate::error::Result;
use crate::open::gguf::Ways;

const END: &str = "<|endoftext|>";

pub(super) const GLM: Layout = Layout {
    architecture: "chatglm",
    model_types: &["glm"],
    class: "GlmForCausalLM",
    inside: &[("ffn_up", "mlp.gate_up_proj")],
    without: &["ffn_gate", "attn_q_norm", "attn_k_norm"],
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("glm4"), named: &[("eos", END), ("eot", "<|user|>"), ("unknown", END)], ..PLAIN.ways },
    say,
    defaults: Defaults { head: Head::Never, eps: 1.5625e-7, share: 0.5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", model.width);
    said.count("block_count", model.layers);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.float(model.eps_key, model.eps);
    said.file_type(model);
    said.count("rope.dimension_count", model.turned()?);
    said.begins(false);
    said.float("rope.freq_base", model.rope.theta);
    Ok(())
}
