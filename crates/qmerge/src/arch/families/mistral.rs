//! Mistral: Llama with a sliding window in every layer, where the configuration sets one.

use super::decoder::Decoder;
use super::spec::Spec;
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["mistral"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut mistral = llama::read(fields)?;
    mistral.slide(fields.positive_if("sliding_window")?, std::iter::repeat(true));
    Ok(mistral)
}
