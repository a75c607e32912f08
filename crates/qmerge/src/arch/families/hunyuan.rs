//! HunYuan: Llama with norms of queries and keys behind the rope, whose base may be scaled by an `alpha`; with experts as wide as what serves all tokens, or without.

use serde_json::Value;

use super::decoder::Decoder;
use super::spec::{QkNorm, Routed, Router, Shared, Spec};
use super::{Arch, Experts, Fields, Result, RopeDefaults, generic, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["hunyuan_v1_dense"], spec: Some(spec), ..generic::ARCH };

const QK_NORM: QkNorm =
    QkNorm { after_rope: true, ..QkNorm::per_head(["self_attn.query_layernorm", "self_attn.key_layernorm"]) };

pub(super) const MOE: Arch =
    Arch { model_types: &["hunyuan_v1_moe"], experts: Some(EXPERTS), spec: Some(mixture), ..generic::ARCH };

const EXPERTS: Experts = qwen_moe::EXPERTS;

const SHARED: [&str; 3] = ["mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj", "mlp.shared_mlp.down_proj"];

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(read(fields)?.into())
}

fn mixture(fields: &Fields<'_>) -> Result<Spec> {
    let hunyuan = read(fields)?;
    let width = fields.count("intermediate_size")?;
    let routed = qwen_moe::of(fields, fields.count_of(&qwen_moe::COUNT)?, width, per_token(fields)?)?;
    let router = Router { name: "gate.wg", normalize: Some(0.0), ..routed.router };
    let shared = Some(Shared { dense: qwen_moe::dense(fields, width, SHARED)?, gate: None });
    Ok(hunyuan.with_experts(Routed { router, shared, ..routed }, |_| true))
}

/// How many experts serve a token: a number, or a list with one for each layer, which is the same for all.
fn per_token(fields: &Fields<'_>) -> Result<usize> {
    const KEY: &str = "moe_topk";
    let Some(Value::Array(list)) = fields.get(KEY) else {
        return fields.count_of(&[KEY, qwen_moe::PER_TOKEN]);
    };
    let first = list.first().filter(|first| list.iter().all(|own| own == *first));
    let count = first.and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
    count.ok_or_else(|| fields.unsupported(KEY, &Value::Array(list.clone())))
}

fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut hunyuan = llama::read_with(fields, RopeDefaults { has_alpha: true, ..RopeDefaults::default() })?;
    hunyuan.norm_queries_and_keys(QK_NORM);
    hunyuan.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    Ok(hunyuan)
}
