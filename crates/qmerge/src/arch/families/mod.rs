//! One file per family, and one line in [`ARCHS`].

mod bert_generation;
mod conv1d;
mod decoder;
mod gemma2;
mod gemma3;
mod generic;
mod gpt2;
mod gpt_oss;
mod granite;
mod granite_moe;
mod llama;
mod llama4;
mod minimax;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod qwen_moe;
mod smollm3;
mod t5gemma;
mod trocr;
mod whisper;

use super::spec;
use super::{Arch, Experts, Fields, Rope, Tie};
use crate::error::Result;

/// Of a model whose family is not listed.
pub(super) static GENERIC: Arch = generic::ARCH;

/// Every family that has something of its own.
pub static ARCHS: &[Arch] = &[
    bert_generation::ARCH,
    conv1d::ARCH,
    gemma2::ARCH,
    gemma3::ARCH,
    gpt2::ARCH,
    gpt_oss::ARCH,
    granite::ARCH,
    granite_moe::ARCH,
    llama::ARCH,
    llama4::ARCH,
    minimax::ARCH,
    mistral::ARCH,
    mixtral::ARCH,
    olmo2::ARCH,
    phi3::ARCH,
    qwen2::ARCH,
    qwen3::ARCH,
    qwen3_moe::ARCH,
    qwen_moe::ARCH,
    smollm3::ARCH,
    t5gemma::ARCH,
    trocr::ARCH,
    whisper::ARCH,
];
