//! Granite: Llama with four factors. Its experts are stacks, gate above up, with one that serves all tokens where it has a width.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::{Join, halves, whole};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, DENSE, LLAMA};
use super::weave::Dims;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const GRANITE: Layout = Layout {
    architecture: "granite",
    model_types: &["granite"],
    class: "GraniteForCausalLM",
    ways: Ways { pre: Some("refact"), ..LLAMA.ways },
    say,
    defaults: Defaults { head: Head::Never, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};

pub(super) const GRANITE_MOE: Layout = Layout {
    architecture: "granitemoe",
    model_types: &["granitemoe"],
    class: "GraniteMoeForCausalLM",
    inside: &[(ROUTER, "block_sparse_moe.router.layer")],
    joins: &[GATE_AND_UP, DOWN],
    without: DENSE,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output"],
    ..GRANITE
};

pub(super) const GRANITE_MOE_SHARED: Layout = Layout {
    model_types: &["granitemoeshared"],
    class: "GraniteMoeSharedForCausalLM",
    inside: &[(ROUTER, "block_sparse_moe.router.layer"), ("ffn_down_shexp", "shared_mlp.output_linear")],
    joins: &[GATE_AND_UP, DOWN, SHARED],
    only_with: Some("ffn_gate_shexp"),
    say: say_shared,
    ..GRANITE_MOE
};

const GATE_AND_UP: Join = Join::split(
    "block_sparse_moe.input_linear.weight",
    &[("ffn_gate_exps.{}.weight", false), ("ffn_up_exps.{}.weight", false)],
    Dims::Stack,
    halves,
);
const DOWN: Join =
    Join::split("block_sparse_moe.output_linear.weight", &[("ffn_down_exps.{}.weight", false)], Dims::Stack, whole);
const SHARED: Join = Join::split(
    "shared_mlp.input_linear.weight",
    &[("ffn_gate_shexp.weight", false), ("ffn_up_shexp.weight", false)],
    Dims::Rows,
    halves,
);

/// Factors, as a file and as `config.json` calls them.
const FACTORS: [(&str, &str); 4] = [
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
];

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::say(said, model)?;
    factors(said, model)
}

fn say_shared(said: &mut Said, model: &Model<'_>) -> Result<()> {
    say(said, model)?;
    said.count("expert_shared_feed_forward_length", model.fields.count("shared_intermediate_size")?);
    Ok(())
}

/// Those that are not zero.
pub(super) fn factors(said: &mut Said, model: &Model<'_>) -> Result<()> {
    for (key, field) in FACTORS {
        let factor = model.fields.number(field, 1.0)?;
        if factor != 0.0 {
            said.float(key, factor);
        }
    }
    Ok(())
}
