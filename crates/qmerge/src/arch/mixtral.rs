//! Mixtral and kin: one matrix per expert, named w1 (gate), w3 (up), w2 (down).

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["mixtral", "minimax", "minimax_m2", "phimoe"],
    experts: Some(Experts {
        modules: &["mlp.experts", "block_sparse_moe.experts"],
        each: ["w1", "w3", "w2"],
        ..generic::EXPERTS
    }),
    ..generic::ARCH
};
