//! HunYuan: norms over each head, and a rope whose base may have a factor; with experts as wide as what serves all tokens, or without.

use super::ROUTER;
use super::hyperparameters::{Model, Said, alike};
use super::layout::{Defaults, Layout};
use super::llama::{DENSE, PLAIN};
use super::qwen::EXPERTS;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const HUNYUAN: Layout = Layout {
    architecture: "hunyuan-dense",
    model_types: &["hunyuan_v1_dense"],
    class: "HunYuanDenseV1ForCausalLM",
    inside: &NORMS,
    ways: Ways { pre: Some("hunyuan-dense"), ends_by_eod: true, ..PLAIN.ways },
    say,
    defaults: Defaults { eps: 1e-5, rope: Some("dynamic"), ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const HUNYUAN_MOE: Layout = Layout {
    architecture: "hunyuan-moe",
    model_types: &["hunyuan_v1_moe"],
    class: "HunYuanMoEV1ForCausalLM",
    inside: &[
        NORMS[0],
        NORMS[1],
        (ROUTER, "mlp.gate.wg"),
        ("ffn_gate_shexp", "mlp.shared_mlp.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_mlp.up_proj"),
        ("ffn_down_shexp", "mlp.shared_mlp.down_proj"),
    ],
    experts: EXPERTS,
    without: DENSE,
    ways: Ways { pre: Some("hunyuan"), ..PLAIN.ways },
    say: mixture,
    ..HUNYUAN
};

const NORMS: [(&str, &str); 2] =
    [("attn_q_norm", "self_attn.query_layernorm"), ("attn_k_norm", "self_attn.key_layernorm")];

/// The positions of all models with such a factor.
const LONG: usize = 256 * 1024;

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    rope(said, model);
    Ok(())
}

fn mixture(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    // What serves all tokens is as wide as an expert, whatever is said of either.
    said.count("expert_shared_feed_forward_length", model.width);
    said.count("expert_feed_forward_length", model.width);
    said.last("expert_used_count", alike(fields, "moe_topk")?.map_or_else(|| fields.count("num_experts_per_tok"), Ok)?);
    said.count("expert_shared_count", alike(fields, "num_shared_expert")?.unwrap_or(1));
    if let (Some(width), Some(value)) = (alike(fields, WIDTH)?, fields.get(WIDTH))
        && width != model.width
    {
        return Err(fields.unsaid(WIDTH, value));
    }
    rope(said, model);
    Ok(())
}

const WIDTH: &str = "moe_intermediate_size";

fn rope(said: &mut Said, model: &Model<'_>) {
    if model.rope.kind() == Some("dynamic") {
        let alpha = model.rope.number("alpha").unwrap_or(50.0);
        let dims = model.head_dim() as f64;
        said.float("rope.freq_base", model.rope.theta * libm::pow(alpha, dims / (dims - 2.0)));
        said.text("rope.scaling.type", "none");
        said.float("rope.scaling.factor", 1.0);
        said.count("rope.scaling.original_context_length", LONG);
        said.count("context_length", LONG);
    }
}
