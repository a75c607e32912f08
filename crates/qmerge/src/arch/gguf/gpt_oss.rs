//! gpt-oss: experts with biases, whose gates and ups alternate in the model and lie apart in a file.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::{Join, alternating, whole};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::wants::OWN_HEAD;
use super::weave::Dims;
use crate::error::Result;

pub(super) const GPT_OSS: Layout = Layout {
    architecture: "gpt-oss",
    model_types: &["gpt_oss"],
    class: "GptOssForCausalLM",
    inside: &[("post_attention_norm", "post_attention_layernorm"), (ROUTER, "mlp.router")],
    without: &["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"],
    joins: &[
        Join::renamed("self_attn.sinks", &[("attn_sinks.weight", false)]),
        Join::split(
            "mlp.experts.gate_up_proj",
            &[("ffn_gate_exps.{}.weight", false), ("ffn_up_exps.{}.weight", false)],
            Dims::Stack,
            alternating,
        ),
        Join::split(
            "mlp.experts.gate_up_proj_bias",
            &[("ffn_gate_exps.bias", false), ("ffn_up_exps.bias", false)],
            Dims::Lists,
            alternating,
        ),
        Join::split("mlp.experts.down_proj", &[("ffn_down_exps.{}.weight", false)], Dims::Stack, whole),
        Join::split("mlp.experts.down_proj_bias", &[("ffn_down_exps.bias", false)], Dims::Lists, whole),
    ],
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", ROUTER, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
    needs: &[
        OWN_HEAD,
        &[
            "blk.*.attn_output.bias",
            "blk.*.ffn_gate_inp.bias",
            "blk.*.ffn_gate_exps.bias",
            "blk.*.ffn_up_exps.bias",
            "blk.*.ffn_down_exps.bias",
        ],
    ],
    say,
    defaults: Defaults { head: Head::Of(64), eps: 1e-5, theta: 150_000.0, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    said.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(128));
    said.count("expert_feed_forward_length", model.width);
    // What llama.cpp has for all models of the architecture.
    let known = [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)];
    for (key, known) in known {
        if let Some(value) = fields.get(key).filter(|value| value.as_f64() != Some(known)) {
            return Err(fields.unsaid(key, value));
        }
    }
    Ok(())
}
