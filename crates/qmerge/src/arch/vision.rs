//! Vision-language models built around a language model: their prefixes changed with transformers 4.52 and 5.

use super::{Arch, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &[
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "vipllava",
        "aya_vision",
        "got_ocr2",
        "gemma3",
        "internvl",
        "mistral3",
        "paligemma",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "mllama",
        "idefics3",
        "smolvlm",
    ],
    ..generic::ARCH
};
