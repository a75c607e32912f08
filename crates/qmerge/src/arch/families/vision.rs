//! Models that see, of which the language model is of another family.

use super::{Arch, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &[
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "mistral3",
        "smolvlm",
    ],
    is_composed: true,
    ..generic::ARCH
};
