//! OLMo: norms without weights, of which a file has nothing.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::{LLAMA, PLAIN};
use super::wants::HEADS_FILL;
use super::{HEAD, Names};
use crate::error::Result;
use crate::open::gguf::Ways;

const OUTSIDE: Names = &[("token_embd", "model.embed_tokens"), (HEAD, "lm_head")];

pub(super) const OLMO: Layout = Layout {
    architecture: "olmo",
    model_types: &["olmo"],
    class: "OlmoForCausalLM",
    outside: OUTSIDE,
    without: &["attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"],
    ordered: LLAMA.ordered,
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("olmo"), ..PLAIN.ways },
    say,
    defaults: Defaults { head: Head::Never, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.count("block_count", model.layers);
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", model.width);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.scaling(&model.rope);
    said.float("rope.freq_base", model.rope.theta);
    said.file_type(model);
    // No field says another.
    said.float(LAYER_EPS, 1e-5);
    if let Some(limit) = model.fields.above_zero_if("clip_qkv")? {
        said.float("attention.clamp_kqv", limit);
    }
    Ok(())
}
