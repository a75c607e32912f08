//! Whisper and kin: decoders of speech, whose head is `proj_out`.

use super::{Arch, Tie, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr"],
    ties: &[Tie { members: &["model.decoder.embed_tokens", "proj_out"] }],
    ..generic::ARCH
};
