//! Models that see or hear, of which the language model is of another family.

use super::{Arch, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &[
        "glm4v_moe",
        "idefics3",
        "internvl",
        "lfm2_vl",
        "lighton_ocr",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "mistral3",
        "qwen2_audio",
        "smolvlm",
        "voxtral",
    ],
    is_composed: true,
    ..generic::ARCH
};
