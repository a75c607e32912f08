//! gpt-oss: experts with biases, stacked as (experts, in, out), gate and up in alternating columns and clamped; attention with sinks, and a window in every second
//! layer.

use super::spec::{Clamp, Spec};
use super::{Arch, Experts, Fields, Result, Rope, generic, llama, mixtral};

pub(super) const ARCH: Arch =
    Arch { model_types: &["gpt_oss"], experts: Some(EXPERTS), spec: Some(spec), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["mlp.experts"],
    router: "router",
    in_out: true,
    is_transposed: true,
    interleaved: true,
    ..generic::EXPERTS
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let head_dim = fields.positive_if("head_dim")?.unwrap_or(64);
    let (rope, width) = (Rope::read(fields, head_dim, None, 150_000.0)?, fields.count("intermediate_size")?);
    let mut oss = llama::read_turned(fields, head_dim, rope, width)?;
    let (window, layers) = (fields.positive_if("sliding_window")?, oss.attention.len());
    oss.attention.iter_mut().for_each(|attention| attention.sinks = Some("self_attn.sinks"));
    let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 0).collect());
    oss.slide(window, sliding);
    let mut routed = mixtral::read(fields)?;
    (routed.layout, routed.router.name) = (EXPERTS, "router");
    let alpha = fields.number("swiglu_alpha", 1.702)? as f32;
    routed.clamp = Some(Clamp { alpha, limit: fields.above_zero("swiglu_limit", 7.0)? as f32 });
    Ok(oss.with_experts(routed, |_| true))
}
