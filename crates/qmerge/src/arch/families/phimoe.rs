//! Phi MoE: layer norms with biases, and experts drawn one by one (SparseMixer).

use super::spec::{Norm, Scores, Spec};
use super::{Arch, Experts, Fields, Result, RopeDefaults, llama, mixtral};

pub(super) const ARCH: Arch =
    Arch { model_types: &["phimoe"], experts: Some(EXPERTS), spec: Some(spec), ..mixtral::ARCH };

const EXPERTS: Experts = Experts { router: "router", ..mixtral::EXPERTS };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut phi = llama::read_with(fields, RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::default() })?;
    phi.spec.norm = Norm::Layer;
    phi.slide(fields.positive_if("sliding_window")?, std::iter::repeat(true));
    let mut routed = mixtral::read(fields)?;
    // It draws two, whatever the configuration says.
    if routed.router.per_token != 2
        && let Some(value) = fields.get("num_experts_per_tok")
    {
        return Err(fields.unsupported("num_experts_per_tok", value));
    }
    routed.router.scores = Scores::OneByOne { within: 2.0 * fields.number("router_jitter_noise", 0.01)? as f32 };
    Ok(phi.with_experts(routed, |_| true))
}
