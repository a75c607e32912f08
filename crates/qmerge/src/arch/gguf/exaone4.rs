//! EXAONE 4: norms behind each block and over each head; the larger models have a window in most layers.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::olmo2::{BEFORE, BEHIND};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const EXAONE4: Layout = Layout {
    architecture: "exaone4",
    model_types: &["exaone4"],
    class: "Exaone4ForCausalLM",
    inside: BEHIND,
    without: BEFORE,
    ways: Ways { pre: Some("exaone4"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    said.count("vocab_size", model.tokens);
    if let Some(window) = model.fields.positive_if("sliding_window")? {
        said.count("attention.sliding_window", window);
        let every = model.fields.get("sliding_window_pattern").and_then(serde_json::Value::as_u64).unwrap_or(4);
        said.flags("attention.sliding_window_pattern", model.sliding(every.clamp(1, 1 << 14) as usize)?);
    }
    said.llama3_factors(model)
}
