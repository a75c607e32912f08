//! Granite: Llama with four factors. Its experts are stacks, gate above up, with one that serves all tokens where it has a width.

use serde_json::Value;

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::{Join, halves, whole};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, DENSE, LLAMA};
use super::weave::Dims;
use crate::arch::Fields;
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

/// Granite 4 without state-space layers and without experts: the layout of Granite, made of what serves all tokens where others have experts beside it. A file says its
/// width once more, as that of what serves all tokens, which Granite's own do not.
pub(super) const GRANITE_HYBRID: Layout = Layout {
    model_types: &["granitemoehybrid"],
    class: "GraniteMoeHybridForCausalLM",
    inside: &[("ffn_down", "shared_mlp.output_linear")],
    joins: &[GATE_AND_UP_OF_ALL],
    without: DENSE,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output"],
    only_told: Some("expert_shared_feed_forward_length"),
    fits: |fields| attends_everywhere(fields) && fields.get("num_local_experts").and_then(Value::as_u64) == Some(0),
    only_those: Some("all layers have attention and none has experts"),
    ways: Ways { pre: Some("dbrx"), ..LLAMA.ways },
    say: say_hybrid,
    ..GRANITE
};

const GATE_AND_UP_OF_ALL: Join = Join::split(
    "shared_mlp.input_linear.weight",
    &[("ffn_gate.weight", false), ("ffn_up.weight", false)],
    Dims::Rows,
    halves,
);

fn attends_everywhere(fields: &Fields<'_>) -> bool {
    let types = fields.get("layer_types").or_else(|| fields.get("layers_block_type")).and_then(Value::as_array);
    types.is_some_and(|types| types.iter().all(|kind| kind == "attention" || kind == "full_attention"))
}

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

/// With the figures of state-space layers that the family's other models have.
fn say_hybrid(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    // Without one it has no positions, and llama.cpp's has.
    let kind = fields.get("position_embedding_type").unwrap_or(&Value::Null);
    if kind != "rope" {
        return Err(fields.unsaid("position_embedding_type", kind));
    }
    let width = fields.count("shared_intermediate_size")?;
    said.count("block_count", model.layers);
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", width);
    said.count("attention.head_count", model.heads);
    said.counts("attention.head_count_kv", &vec![model.kv_heads; model.layers]);
    said.scaling(&model.rope);
    said.float("rope.freq_base", model.rope.theta);
    said.float(model.eps_key, model.eps);
    said.count("expert_count", 0);
    // It has none, whatever the configuration says of them: llama.cpp ends its program where more serve than there are.
    if fields.count_if("num_experts_per_tok")?.is_some() {
        said.count("expert_used_count", 0);
    }
    said.file_type(model);
    said.count("vocab_size", model.tokens);
    said.count("rope.dimension_count", model.head_dim());
    factors(said, model)?;
    said.count("expert_shared_feed_forward_length", width);
    let count = |key: &str, default: usize| fields.positive_if(key).map(|count| count.unwrap_or(default));
    said.count("ssm.conv_kernel", count("mamba_d_conv", 4)?);
    said.count("ssm.state_size", count("mamba_d_state", 256)?);
    said.count("ssm.group_count", count("mamba_n_groups", 1)?);
    said.count("ssm.inner_size", count("mamba_expand", 2)? * model.hidden);
    said.count("ssm.time_step_rank", count("mamba_n_heads", 128)?);
    said.flag("rope.scaling.finetuned", true);
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
