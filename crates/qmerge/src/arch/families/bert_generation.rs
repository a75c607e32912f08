//! BERT as a decoder: BERT's names, and a head of its own.

use super::{Arch, Tie, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["bert-generation"],
    ties: &[Tie { members: &["bert.embeddings.word_embeddings", "lm_head.decoder"] }],
    ..generic::ARCH
};
