//! GLM 4: gate and up are one weight, a part of each head is turned, and norms stand behind each block too.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, PLAIN};
use crate::error::Result;
use crate::open::gguf::Ways;

const END: &str = "<|endoftext|>";

pub(super) const GLM4: Layout = Layout {
    architecture: "glm4",
    model_types: &["glm4"],
    class: "Glm4ForCausalLM",
    inside: &[
        ("post_attention_norm", "post_self_attn_layernorm"),
        ("post_ffw_norm", "post_mlp_layernorm"),
        ("ffn_up", "mlp.gate_up_proj"),
    ],
    without: &["ffn_gate", "attn_q_norm", "attn_k_norm"],
    ways: Ways {
        pre: Some("glm4"),
        named: &[("eos", END), ("eot", "<|user|>"), ("unknown", END), ("bos", END)],
        ..PLAIN.ways
    },
    say,
    defaults: Defaults { head: Head::Of(128), eps: 1.5625e-7, share: 0.5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::plain(said, model)?;
    said.count("rope.dimension_count", model.turned_of_head()?);
    Ok(())
}
