//! Qwen MoE, DeepSeek and kin: one matrix per expert under `mlp.experts.N`.

use super::{Arch, Experts, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &[
        "qwen2_moe",
        "qwen3_next",
        "qwen3_omni_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "ernie4_5_moe",
        "dots1",
        "olmoe",
        "flex_olmo",
        "hunyuan_v1_moe",
        "afmoe",
        "longcat_flash",
        "solar_open",
        "exaone_moe",
        "cohere2_moe",
    ],
    experts: Some(EXPERTS),
    ..generic::ARCH
};

pub(super) const EXPERTS: Experts = Experts { modules: &["mlp.experts"], ..generic::EXPERTS };
