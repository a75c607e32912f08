//! One file per family, and one line in [`ARCHS`].

mod bert_generation;
mod cohere;
mod cohere2;
mod conv1d;
mod decoder;
mod ernie4_5;
mod exaone4;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod generic;
mod glm;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granite_moe;
mod hunyuan;
mod lfm2;
mod llama;
mod llama4;
mod minimax;
mod ministral3;
mod mistral;
mod mixtral;
mod nemotron;
mod olmo;
mod olmo2;
mod olmo3;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod qwen_moe;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5gemma;
mod trocr;
mod vision;
mod whisper;

use super::spec;
use super::{Arch, Experts, Fields, Rope, RopeDefaults, Tie};
use crate::error::Result;

/// Of a model whose family is not listed.
pub(super) static GENERIC: Arch = generic::ARCH;

/// Every family that has something of its own.
pub static ARCHS: &[Arch] = &[
    bert_generation::ARCH,
    cohere::ARCH,
    cohere2::ARCH,
    conv1d::ARCH,
    ernie4_5::ARCH,
    exaone4::ARCH,
    falcon::ARCH,
    gemma::ARCH,
    gemma2::ARCH,
    gemma3::ARCH,
    gemma4::ARCH,
    glm::ARCH,
    glm4::ARCH,
    gpt2::ARCH,
    gpt_neox::ARCH,
    gpt_oss::ARCH,
    granite::ARCH,
    granite_moe::ARCH,
    hunyuan::ARCH,
    lfm2::ARCH,
    llama::ARCH,
    llama4::ARCH,
    minimax::ARCH,
    ministral3::ARCH,
    mistral::ARCH,
    mixtral::ARCH,
    nemotron::ARCH,
    olmo::ARCH,
    olmo2::ARCH,
    olmo3::ARCH,
    phi::ARCH,
    phi3::ARCH,
    qwen2::ARCH,
    qwen3::ARCH,
    qwen3_moe::ARCH,
    qwen_moe::ARCH,
    seed_oss::ARCH,
    smollm3::ARCH,
    stablelm::ARCH,
    starcoder2::ARCH,
    t5gemma::ARCH,
    trocr::ARCH,
    vision::ARCH,
    whisper::ARCH,
];
