//! LFM 2: short convolutions in most layers, attention with norms of queries and keys in the others.

use serde_json::Value;

use super::decoder::Decoder;
use super::llama::{self, PROJECTIONS};
use super::spec::{Matrices, Mixer, Norms, Projections, QkNorm, Scores, ShortConv, Spec};
use super::{Arch, Experts, Fields, Result, RopeDefaults, generic, mixtral, qwen_moe};

pub(super) const ARCH: Arch =
    Arch { model_types: &["lfm2"], norm: "embedding_norm", spec: Some(spec), ..generic::ARCH };

const NORMS: Norms = Norms {
    mixer_in: Some("operator_norm"),
    mixer_out: None,
    feed_forward_in: Some("ffn_norm"),
    feed_forward_out: None,
};

/// With experts behind the leading layers.
pub(super) const MOE: Arch = Arch {
    model_types: &["lfm2_moe"],
    norm: "embedding_norm",
    experts: Some(EXPERTS),
    spec: Some(mixture),
    ..generic::ARCH
};

const EXPERTS: Experts = Experts { modules: &["feed_forward.experts"], ..mixtral::EXPERTS };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let spec = read(fields, width(fields)?)?.into();
    with_convolutions(fields, spec)
}

fn mixture(fields: &Fields<'_>) -> Result<Spec> {
    let lfm = read(fields, fields.count("intermediate_size")?)?;
    let width = fields.count(qwen_moe::WIDTH)?;
    let mut routed = qwen_moe::read(fields, fields.count_of(&qwen_moe::COUNT)?, width, qwen_moe::PER_TOKEN)?;
    routed.layout = EXPERTS;
    routed.router.scores = Scores::Sigmoid;
    routed.router.correction = fields.flag("use_expert_bias", true)?.then_some("expert_bias");
    routed.router.normalize = qwen_moe::normalize(fields, true)?;
    routed.router.scale = fields.number("routed_scaling_factor", 1.0)? as f32;
    let first = fields.count_if("num_dense_layers")?.unwrap_or(2);
    with_convolutions(fields, lfm.with_experts(routed, |layer| layer >= first))
}

fn read(fields: &Fields<'_>, width: usize) -> Result<Decoder> {
    let rope = RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::default() };
    let mut lfm = llama::read_sized(fields, rope, width)?;
    lfm.norms = NORMS;
    lfm.norm_queries_and_keys(QkNorm::per_head(["self_attn.q_layernorm", "self_attn.k_layernorm"]));
    lfm.spec.eps = fields.eps("norm_eps", 1e-5)?;
    let [q, k, v, _] = PROJECTIONS;
    for attention in &mut lfm.attention {
        attention.projections = Projections::Apart { names: [q, k, v, "self_attn.out_proj"] };
    }
    lfm.feed_forward.matrices = Matrices::Gated { names: ["feed_forward.w1", "feed_forward.w3", "feed_forward.w2"] };
    Ok(lfm)
}

/// Puts convolutions into the layers that have them.
fn with_convolutions(fields: &Fields<'_>, mut spec: Spec) -> Result<Spec> {
    let conv = ShortConv {
        taps: fields.positive_if("conv_L_cache")?.unwrap_or(3),
        names: ["conv.in_proj", "conv.conv", "conv.out_proj"],
    };
    let convolves = convolves(fields, spec.layers.len())?;
    for (layer, _) in spec.layers.iter_mut().zip(convolves).filter(|(_, convolves)| *convolves) {
        layer.mixer = Mixer::ShortConv(conv);
    }
    Ok(spec)
}

/// True for each layer with a convolution.
fn convolves(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    if let Some(types) = fields.by_layer("layer_types", layers)? {
        let kind = |value: &Value| match value.as_str() {
            Some("conv") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(fields.unsupported("layer_types", value)),
        };
        return types.iter().map(kind).collect();
    }
    let attends = fields.list("full_attn_idxs")?;
    Ok((0..layers).map(|i| attends.is_some_and(|attends| !attends.contains(&i.into()))).collect())
}

/// Features between the matrices of a feed-forward: what is given, or two thirds of it, scaled and rounded up.
fn width(fields: &Fields<'_>) -> Result<usize> {
    let given = fields.positive_if("block_ff_dim")?.map_or_else(|| fields.count("intermediate_size"), Ok)?;
    if !fields.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(given);
    }
    let scaled = (2 * given / 3) as f64 * fields.above_zero("block_ffn_dim_multiplier", 1.0)?;
    let multiple = fields.positive_if("block_multiple_of")?.unwrap_or(256);
    // More than a matrix can have is found to be so when the matrix is.
    Ok((scaled as usize).min(MOST).next_multiple_of(multiple))
}

/// No feed-forward is wider.
const MOST: usize = 1 << 24;
