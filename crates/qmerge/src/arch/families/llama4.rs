//! Llama 4: experts stacked as (experts, in, out), gate before up.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["llama4", "llama4_text"],
    experts: Some(Experts {
        modules: &["feed_forward.experts"],
        in_out: true,
        split_when_quantized: true,
        ..generic::EXPERTS
    }),
    ..generic::ARCH
};
