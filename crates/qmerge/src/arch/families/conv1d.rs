//! What shares GPT-2's `Conv1D`.

use super::{Arch, gpt2};

pub(super) const ARCH: Arch =
    Arch { model_types: &["imagegpt", "decision_transformer", "openai-gpt"], spec: None, ..gpt2::ARCH };
