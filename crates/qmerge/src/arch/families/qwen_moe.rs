//! Qwen MoE, DeepSeek and kin: one matrix per expert under `mlp.experts.N`.

use std::collections::HashSet;

use serde_json::Value;

use super::spec::{Activation, Dense, Matrices, Routed, Router, Scores, Shared};
use super::{Arch, Experts, Fields, Result, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &[
        "qwen3_omni_moe",
        "deepseek_v32",
        "glm_moe_dsa",
        "dots1",
        "flex_olmo",
        "afmoe",
        "longcat_flash",
        "solar_open",
        "exaone_moe",
        "cohere2_moe",
    ],
    experts: Some(EXPERTS),
    ..generic::ARCH
};

pub(super) const EXPERTS: Experts = Experts { modules: &["mlp.experts"], ..generic::EXPERTS };

/// Names of how many experts there are, how wide they are, and how many serve a token.
pub(super) const COUNT: [&str; 2] = ["num_experts", "num_local_experts"];
pub(super) const WIDTH: &str = "moe_intermediate_size";
pub(super) const PER_TOKEN: &str = "num_experts_per_tok";

/// Experts of some width, of which the most likely serve a token.
pub(super) fn read(fields: &Fields<'_>, count: usize, width: usize, per_token: &str) -> Result<Routed> {
    of(fields, count, width, fields.count(per_token)?)
}

/// The same, of which so many serve a token.
pub(super) fn of(fields: &Fields<'_>, count: usize, width: usize, per_token: usize) -> Result<Routed> {
    Ok(Routed {
        router: Router {
            count,
            per_token,
            name: "gate",
            scores: Scores::Softmax,
            correction: None,
            groups: None,
            normalize: None,
            scale: 1.0,
        },
        width,
        activation: Activation::read(fields, "hidden_act")?,
        clamp: None,
        layout: EXPERTS,
        share_inputs: false,
        shared: None,
        beside: None,
    })
}

/// Qwen's own.
pub(super) fn qwen(fields: &Fields<'_>) -> Result<Routed> {
    read(fields, fields.count_of(&COUNT)?, fields.count(WIDTH)?, PER_TOKEN)
}

/// Divides shares by their sum where `norm_topk_prob` says so.
pub(super) fn normalize(fields: &Fields<'_>, default: bool) -> Result<Option<f32>> {
    Ok(fields.flag("norm_topk_prob", default)?.then_some(0.0))
}

/// Qwen's expert for all tokens, with a gate.
pub(super) fn gated(fields: &Fields<'_>) -> Result<Shared> {
    let names = ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"];
    let width = fields.count("shared_expert_intermediate_size")?;
    Ok(Shared { dense: dense(fields, width, names)?, gate: Some("mlp.shared_expert_gate") })
}

/// DeepSeek's, as wide as some of the experts; `None` where there are none.
pub(super) fn plain(fields: &Fields<'_>, width: usize, count: usize) -> Result<Option<Shared>> {
    let names = ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"];
    if count == 0 {
        return Ok(None);
    }
    Ok(Some(Shared { dense: dense(fields, width * count, names)?, gate: None }))
}

/// A gated feed-forward.
pub(super) fn dense(fields: &Fields<'_>, width: usize, names: [&'static str; 3]) -> Result<Dense> {
    Ok(Dense {
        width,
        activation: Activation::read(fields, "hidden_act")?,
        matrices: Matrices::Gated { names },
        above: None,
    })
}

/// True for the layers that have experts: every so many, but for those that are listed.
pub(super) fn layers(fields: &Fields<'_>) -> Result<impl Fn(usize) -> bool> {
    let dense = fields.list("mlp_only_layers")?.unwrap_or_default();
    let dense: HashSet<u64> = dense.iter().filter_map(Value::as_u64).collect();
    let every = fields.positive_if("decoder_sparse_step")?.unwrap_or(1);
    Ok(move |layer: usize| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(every))
}
