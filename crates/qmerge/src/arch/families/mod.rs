//! One file per family, and one line in [`ARCHS`].

mod arcee;
mod aria;
mod bert_generation;
mod cohere;
mod cohere2;
mod conv1d;
mod decoder;
mod deepseek;
mod deepseek_v4;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod generic;
mod glm;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granite_moe;
mod hunyuan;
mod kimi_linear;
mod lfm2;
mod llama;
mod llama4;
mod minimax;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mixtral;
mod nemotron;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod qwen3_next;
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
    arcee::ARCH,
    aria::ARCH,
    bert_generation::ARCH,
    cohere2::ARCH,
    cohere::ARCH,
    conv1d::ARCH,
    deepseek::GLM_LITE,
    deepseek::OCR,
    deepseek::V2,
    deepseek::V3,
    deepseek_v4::ARCH,
    ernie4_5::ARCH,
    ernie4_5_moe::ARCH,
    exaone4::ARCH,
    falcon::ARCH,
    gemma2::ARCH,
    gemma3::ARCH,
    gemma3n::ARCH,
    gemma4::ARCH,
    gemma::ARCH,
    glm4::ARCH,
    glm4_moe::ARCH,
    glm::ARCH,
    gpt2::ARCH,
    gpt_bigcode::ARCH,
    gpt_neox::ARCH,
    gpt_oss::ARCH,
    granite::ARCH,
    granite_moe::ARCH,
    granite_moe::HYBRID,
    hunyuan::ARCH,
    hunyuan::MOE,
    kimi_linear::ARCH,
    lfm2::ARCH,
    lfm2::MOE,
    llama4::ARCH,
    llama::ARCH,
    minimax::ARCH,
    minimax_m2::ARCH,
    minimax_m2::M3,
    ministral3::ARCH,
    mistral::ARCH,
    mixtral::ARCH,
    nemotron::ARCH,
    nemotron_h::ARCH,
    olmo2::ARCH,
    olmo3::ARCH,
    olmo::ARCH,
    olmoe::ARCH,
    phi3::ARCH,
    phi::ARCH,
    phimoe::ARCH,
    qwen2::ARCH,
    qwen2_moe::ARCH,
    qwen3::ARCH,
    qwen3_moe::ARCH,
    qwen3_moe::SEES,
    qwen3_next::ARCH,
    qwen3_next::DENSE,
    qwen3_next::MIXTURE,
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
