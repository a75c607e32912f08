//! gpt-oss: experts stacked as (experts, in, out), gate and up in alternating columns.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["gpt_oss"],
    experts: Some(Experts {
        modules: &["mlp.experts"],
        in_out: true,
        is_transposed: true,
        interleaved: true,
        ..generic::EXPERTS
    }),
    ..generic::ARCH
};
