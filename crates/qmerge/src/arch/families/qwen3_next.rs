//! Qwen 3 Next and Qwen 3.5: a gated delta rule in most layers, and gated attention with a rope on a part of each head in the others.

use super::decoder::Decoder;
use super::spec::{Delta, DeltaInputs, Mixer, Norm, QkNorm, Spec};
use super::{Arch, Fields, Result, Rope, RopeDefaults, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["qwen3_next"], spec: Some(next), ..qwen_moe::ARCH };

pub(super) const DENSE: Arch = Arch { model_types: &["qwen3_5", "qwen3_5_text"], spec: Some(dense), ..qwen_moe::ARCH };

pub(super) const MIXTURE: Arch =
    Arch { model_types: &["qwen3_5_moe", "qwen3_5_moe_text"], spec: Some(mixture), ..qwen_moe::ARCH };

const BY_HEAD: DeltaInputs = DeltaInputs::ByHead { names: ["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"] };
const APART: DeltaInputs = DeltaInputs::Apart {
    names: ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"],
};

fn next(fields: &Fields<'_>) -> Result<Spec> {
    let mut routed = qwen_moe::qwen(fields)?;
    routed.router.normalize = qwen_moe::normalize(fields, true)?;
    routed.shared = Some(qwen_moe::gated(fields)?);
    let spec = read(fields, None)?.with_experts(routed, qwen_moe::layers(fields)?);
    mixed(fields, spec, BY_HEAD)
}

fn dense(fields: &Fields<'_>) -> Result<Spec> {
    mixed(fields, read(fields, None)?.into(), APART)
}

fn mixture(fields: &Fields<'_>) -> Result<Spec> {
    let mut routed = qwen_moe::qwen(fields)?;
    routed.router.normalize = Some(0.0);
    routed.shared = Some(qwen_moe::gated(fields)?);
    // No layer has the width that other families give.
    let spec = read(fields, Some(routed.width))?.with_experts(routed, |_| true);
    mixed(fields, spec, APART)
}

/// All but the delta rule.
fn read(fields: &Fields<'_>, width: Option<usize>) -> Result<Decoder> {
    let head_dim = fields.positive_if("head_dim")?.unwrap_or(256);
    let rope = Rope::read_with(fields, head_dim, None, RopeDefaults { share: 0.25, ..RopeDefaults::default() })?;
    let width = width.map_or_else(|| fields.count("intermediate_size"), Ok)?;
    let mut qwen = llama::read_turned(fields, head_dim, rope, width)?;
    for attention in &mut qwen.attention {
        (attention.qk_norm, attention.gated) = (Some(QkNorm::per_head(llama::QK_NORM)), true);
    }
    qwen.spec.norm = Norm::RmsPlusOne;
    Ok(qwen)
}

/// Puts the delta rule into the layers that have it.
fn mixed(fields: &Fields<'_>, mut spec: Spec, inputs: DeltaInputs) -> Result<Spec> {
    let delta = Delta {
        key_heads: fields.count("linear_num_key_heads")?,
        value_heads: fields.count("linear_num_value_heads")?,
        key: fields.count("linear_key_head_dim")?,
        value: fields.count("linear_value_head_dim")?,
        kernel: fields.count("linear_conv_kernel_dim")?,
        inputs,
        convolution: "linear_attn.conv1d",
        fading: ["linear_attn.A_log", "linear_attn.dt_bias"],
        names: ["linear_attn.norm", "linear_attn.out_proj"],
    };
    let every = fields.positive_if("full_attention_interval")?.unwrap_or(4);
    let types = fields.by_layer("layer_types", spec.layers.len())?;
    for (number, layer) in spec.layers.iter_mut().enumerate() {
        let is_linear = match types.and_then(|types| types.get(number)) {
            Some(value) => match value.as_str() {
                Some("linear_attention") => true,
                Some("full_attention") => false,
                _ => return Err(fields.unsupported("layer_types", value)),
            },
            None => (number + 1) % every != 0,
        };
        if is_linear {
            layer.mixer = Mixer::Delta(delta);
        }
    }
    // The convolution's activation; the gate's is the same whatever the field says.
    match fields.get("hidden_act") {
        Some(value) if value != "silu" => Err(fields.unsupported("hidden_act", value)),
        _ => Ok(spec),
    }
}
