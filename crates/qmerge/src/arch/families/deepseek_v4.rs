//! DeepSeek V4: experts under `ffn` on disk, with Mixtral's names.

use super::{Arch, Experts, generic, mixtral};

pub(super) const ARCH: Arch = Arch {
    model_types: &["deepseek_v4"],
    experts: Some(Experts { modules: &["mlp.experts", "ffn.experts"], ..mixtral::EXPERTS }),
    ..generic::ARCH
};
