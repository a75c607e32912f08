//! T5Gemma: the head is a module in a module.

use super::{Arch, Tie, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["t5gemma"],
    ties: &[Tie { members: &["model.decoder.embed_tokens", "lm_head.out_proj"] }],
    ..generic::ARCH
};
