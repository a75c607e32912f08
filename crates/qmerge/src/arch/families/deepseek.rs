//! DeepSeek 2 and 3: latent attention, experts in groups, and one that serves all tokens.

use super::spec::{Groups, Latent, Mixer, Queries, Routed, Scores, Spec};
use super::{Arch, Fields, Result, Rope, generic, llama, qwen_moe};

pub(super) const V2: Arch = Arch { model_types: &["deepseek_v2"], spec: Some(second), ..qwen_moe::ARCH };

pub(super) const V3: Arch = Arch { model_types: &["deepseek_v3"], spec: Some(third), ..qwen_moe::ARCH };

/// GLM 4.7 Flash.
pub(super) const GLM_LITE: Arch = Arch { model_types: &["glm4_moe_lite"], spec: Some(lite), ..qwen_moe::ARCH };

/// Unlimited OCR, whose language model has experts as DeepSeek has, and which is not run.
pub(super) const OCR: Arch = Arch { model_types: &["unlimited_ocr"], ..generic::ARCH };

const KEYS: [&str; 4] =
    ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj", "self_attn.o_proj"];
const QUERIES: [&str; 3] = ["self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"];

fn second(fields: &Fields<'_>) -> Result<Spec> {
    spec(fields, v2(fields)?, 0, true)
}

fn third(fields: &Fields<'_>) -> Result<Spec> {
    spec(fields, v3(fields, 2.5, (8, 4))?, 3, fields.flag("rope_interleave", true)?)
}

fn lite(fields: &Fields<'_>) -> Result<Spec> {
    let first = fields.leading_dense(fields.layers("num_hidden_layers")?)?;
    let mut glm = from(fields, v3(fields, 1.8, (1, 1))?, first, fields.flag("rope_interleave", true)?)?;
    glm.eps = fields.eps("rms_norm_eps", 1e-5)?;
    Ok(glm)
}

/// With these experts from some layer on, where the configuration does not say from which.
fn spec(fields: &Fields<'_>, routed: Routed, first: usize, interleaved: bool) -> Result<Spec> {
    let first = fields.count_if("first_k_dense_replace")?.unwrap_or(first);
    from(fields, routed, first, interleaved)
}

/// With these experts from that layer on.
fn from(fields: &Fields<'_>, routed: Routed, first: usize, interleaved: bool) -> Result<Spec> {
    let (straight, turned) = (fields.count("qk_nope_head_dim")?, fields.count("qk_rope_head_dim")?);
    let mut rope = Rope::read(fields, turned, None, 10_000.0)?;
    rope.interleaved = interleaved;
    let scale = rope.scores() / ((straight + turned) as f64).sqrt();
    let width = fields.count("intermediate_size")?;
    let deepseek = llama::read_turned(fields, straight + turned, rope, width)?;
    let queries = match fields.positive_if("q_lora_rank")? {
        Some(rank) => Queries::Narrow { rank, names: QUERIES },
        None => Queries::Straight("self_attn.q_proj"),
    };
    let latent = Latent {
        heads: fields.count("num_attention_heads")?,
        straight,
        turned,
        value: fields.count("v_head_dim")?,
        queries,
        rank: fields.count("kv_lora_rank")?,
        names: KEYS,
        eps: 1e-6,
        rope: 0,
        scale: scale as f32,
    };
    let every = fields.positive_if("moe_layer_freq")?.unwrap_or(1);
    let mut spec = deepseek.with_experts(routed, |layer| layer >= first && layer.is_multiple_of(every));
    spec.layers.iter_mut().for_each(|layer| layer.mixer = Mixer::Latent(latent));
    Ok(spec)
}

/// Experts by a softmax, and groups by their best expert.
fn v2(fields: &Fields<'_>) -> Result<Routed> {
    let mut routed = read(fields, 2)?;
    for (key, known) in [("scoring_func", "softmax"), ("norm_topk_prob", "false")] {
        if let Some(value) = fields.get(key)
            && value.as_str().map_or_else(|| value.to_string(), str::to_owned) != known
        {
            return Err(fields.unsupported(key, value));
        }
    }
    routed.router.scale = fields.number("routed_scaling_factor", 1.0)? as f32;
    match fields.get("topk_method") {
        None => {}
        Some(value) if value == "greedy" => {}
        Some(value) if value == "group_limited_greedy" => routed.router.groups = Some(groups(fields, None, 1)?),
        Some(value) => return Err(fields.unsupported("topk_method", value)),
    }
    Ok(routed)
}

/// Experts by a sigmoid with a correction, and groups by their two best. The factor on shares, and how many groups there are and are kept, are those of a
/// configuration that does not say.
pub(super) fn v3(fields: &Fields<'_>, scale: f64, kept: (usize, usize)) -> Result<Routed> {
    let mut routed = read(fields, 1)?;
    for (key, known) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(value) = fields.get(key)
            && value != known
        {
            return Err(fields.unsupported(key, value));
        }
    }
    routed.router.scores = Scores::Sigmoid;
    routed.router.correction = Some("gate.e_score_correction_bias");
    routed.router.normalize = qwen_moe::normalize(fields, true)?;
    routed.router.scale = fields.number("routed_scaling_factor", scale)? as f32;
    let groups = groups(fields, Some(kept), 2)?;
    // All groups are kept where there is one.
    routed.router.groups = Some(groups).filter(|groups| groups.count > 1);
    Ok(routed)
}

fn read(fields: &Fields<'_>, shared: usize) -> Result<Routed> {
    let width = fields.count(qwen_moe::WIDTH)?;
    let count = fields.count_of(&["n_routed_experts", "num_local_experts", "num_experts"])?;
    let routed = qwen_moe::read(fields, count, width, qwen_moe::PER_TOKEN)?;
    let shared = fields.count_if("n_shared_experts")?.unwrap_or(shared);
    Ok(Routed { shared: qwen_moe::plain(fields, width, shared)?, ..routed })
}

fn groups(fields: &Fields<'_>, default: Option<(usize, usize)>, best: usize) -> Result<Groups> {
    let count = |key: &str, default| fields.positive_if(key)?.or(default).map_or_else(|| fields.count(key), Ok);
    let (all, kept) = (default.map(|(all, _)| all), default.map(|(_, kept)| kept));
    Ok(Groups { count: count("n_group", all)?, kept: count("topk_group", kept)?, best })
}
