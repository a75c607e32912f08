//! Nemotron-H: state-space layers, attention and experts in turn, all called `mixer`. An expert is two matrices without a gate.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch =
    Arch { model_types: &["nemotron_h", "nemotron_h_omni"], experts: Some(EXPERTS), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["mixer.experts"],
    each: &["up_proj", "down_proj"],
    stacked: ["up_proj", "down_proj"],
    ..generic::EXPERTS
};
