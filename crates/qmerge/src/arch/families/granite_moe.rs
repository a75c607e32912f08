//! Granite MoE: experts stacked as (experts, out, in) under their own names.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["granitemoe", "granitemoeshared", "granitemoehybrid"],
    experts: Some(Experts {
        modules: &["block_sparse_moe.experts", "block_sparse_moe"],
        stacked: ["input_linear.weight", "output_linear.weight"],
        ..generic::EXPERTS
    }),
    ..generic::ARCH
};
