//! TrOCR: a decoder with a head of its own name.

use super::{Arch, Tie, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["trocr"],
    ties: &[Tie { members: &["model.decoder.embed_tokens", "output_projection"] }],
    ..generic::ARCH
};
