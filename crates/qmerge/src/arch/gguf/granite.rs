//! Granite: Llama with four factors.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, LLAMA};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const GRANITE: Layout = Layout {
    architecture: "granite",
    model_types: &["granite"],
    class: "GraniteForCausalLM",
    ways: Ways { pre: Some("refact"), ..LLAMA.ways },
    say,
    defaults: Defaults { head: Head::Never, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};

/// Factors, as a file and as `config.json` calls them.
const FACTORS: [(&str, &str); 4] = [
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
];

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::say(said, model)?;
    factors(said, model)
}

/// Those that are not zero.
pub(super) fn factors(said: &mut Said, model: &Model<'_>) -> Result<()> {
    for (key, field) in FACTORS {
        let factor = model.fields.number(field, 1.0)?;
        if factor != 0.0 {
            said.float(key, factor);
        }
    }
    Ok(())
}
