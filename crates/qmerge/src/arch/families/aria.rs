//! Aria: experts stacked as (experts, in, out), under names of their own on disk.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch { model_types: &["aria", "aria_text"], experts: Some(EXPERTS), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["mlp.experts"],
    stacked: ["fc1.weight", "fc2.weight"],
    router: "router",
    in_out: true,
    is_transposed: true,
    ..generic::EXPERTS
};
