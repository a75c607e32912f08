//! HunYuan (dense): norms over each head, and a rope whose base may have a factor.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const HUNYUAN: Layout = Layout {
    architecture: "hunyuan-dense",
    model_types: &["hunyuan_v1_dense"],
    class: "HunYuanDenseV1ForCausalLM",
    inside: &[("attn_q_norm", "self_attn.query_layernorm"), ("attn_k_norm", "self_attn.key_layernorm")],
    ways: Ways { pre: Some("hunyuan-dense"), ends_by_eod: true, ..PLAIN.ways },
    say,
    defaults: Defaults { eps: 1e-5, rope: Some("dynamic"), ..PLAIN.defaults },
    ..PLAIN
};

/// The positions of all models with such a factor.
const LONG: usize = 256 * 1024;

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    if model.rope.kind() == Some("dynamic") {
        let alpha = model.rope.number("alpha").unwrap_or(50.0);
        let dims = model.head_dim() as f64;
        said.float("rope.freq_base", model.rope.theta * libm::pow(alpha, dims / (dims - 2.0)));
        said.text("rope.scaling.type", "none");
        said.float("rope.scaling.factor", 1.0);
        said.count("rope.scaling.original_context_length", LONG);
        said.count("context_length", LONG);
    }
    Ok(())
}
