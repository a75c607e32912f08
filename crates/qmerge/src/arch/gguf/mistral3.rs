//! Ministral 3: Llama with queries that grow with their position; and the Mistral that sees, which llama.cpp has in the same architecture without that.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::{self, LLAMA};
use crate::error::Result;

pub(super) const MINISTRAL3: Layout = Layout {
    architecture: "mistral3",
    model_types: &["ministral3"],
    class: "Ministral3ForCausalLM",
    say,
    defaults: Defaults { head: Head::Of(128), eps: 1e-5, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};

/// Mistral beside a tower.
pub(super) const MISTRAL: Layout =
    Layout { architecture: "mistral3", model_types: &["mistral"], is_large: |_, _| false, ..LLAMA };

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::say(said, model)?;
    for (key, field) in [
        ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
        ("attention.temperature_scale", "llama_4_scaling_beta"),
    ] {
        said.float(key, model.rope.number(field).ok_or_else(|| model.fields.missing(field))?);
    }
    Ok(())
}
