//! GPT-2: linear layers are `Conv1D`, stored (in, out).

use super::{Arch, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["gpt2", "imagegpt", "decision_transformer", "openai-gpt"],
    transposed: &["c_attn", "c_proj", "c_fc", "q_attn"],
    experts: None,
    ..generic::ARCH
};
