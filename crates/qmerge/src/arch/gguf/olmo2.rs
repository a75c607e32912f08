//! OLMo 2 and 3: norms behind each block, and over all queries and keys; OLMo 3 has a window in most layers.

use super::Names;
use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout, Local};
use super::llama::{self, PLAIN};
use super::wants::{HEADS_FILL, OWN_HEAD};
use crate::error::Result;
use crate::open::gguf::Ways;

/// Norms behind each block in place of those before it.
pub(super) const BEHIND: Names =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];
/// Norms before each block.
pub(super) const BEFORE: &[&str] = &["attn_norm", "ffn_norm"];

pub(super) const OLMO2: Layout = Layout {
    architecture: "olmo2",
    model_types: &["olmo2"],
    class: "Olmo2ForCausalLM",
    inside: BEHIND,
    without: BEFORE,
    needs: &[OWN_HEAD],
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("dbrx"), ..PLAIN.ways },
    defaults: Defaults { eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const OLMO3: Layout = Layout {
    model_types: &["olmo3"],
    class: "Olmo3ForCausalLM",
    say: olmo3,
    defaults: Defaults { theta: 500_000.0, local: Local::Same, ..OLMO2.defaults },
    ..OLMO2
};

fn olmo3(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::plain(said, model)?;
    said.count("attention.sliding_window", model.fields.positive_if("sliding_window")?.unwrap_or(4096));
    said.flags("attention.sliding_window_pattern", model.sliding(4)?);
    Ok(())
}
