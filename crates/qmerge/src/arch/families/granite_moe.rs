//! Granite MoE: Granite with experts stacked as (experts, out, in) under their own names, and one that serves all tokens where it has a width.

use super::spec::{Dense, Matrices, Shared, Spec};
use super::{Arch, Experts, Fields, Result, generic, granite, mixtral};

pub(super) const ARCH: Arch = Arch { model_types: &["granitemoe", "granitemoeshared"], spec: Some(spec), ..HYBRID };

/// With state-space layers, which are not run.
pub(super) const HYBRID: Arch = Arch { model_types: &["granitemoehybrid"], experts: Some(EXPERTS), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["block_sparse_moe.experts", "block_sparse_moe"],
    stacked: ["input_linear.weight", "output_linear.weight"],
    router: "router",
    ..generic::EXPERTS
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let granite = granite::read(fields)?;
    let mut routed = mixtral::read(fields)?;
    (routed.layout, routed.router.name) = (EXPERTS, "router.layer");
    let matrices = Matrices::FusedGated { names: ["shared_mlp.input_linear", "shared_mlp.output_linear"] };
    let width = fields.count_if("shared_intermediate_size")?.filter(|width| *width > 0);
    let shared = |width| Dense { width, matrices, ..granite.feed_forward };
    routed.shared = width.map(|width| Shared { dense: shared(width), gate: None });
    Ok(granite.with_experts(routed, |_| true))
}
