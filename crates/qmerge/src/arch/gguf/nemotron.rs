//! Nemotron: layer norms to whose weights one is added, squared ReLUs without a gate, a rope over a part of each head.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::wants::{HEADS_FILL, NORM_BIASES, OWN_HEAD};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const NEMOTRON: Layout = Layout {
    architecture: "nemotron",
    model_types: &["nemotron"],
    class: "NemotronForCausalLM",
    without: &["ffn_gate", "attn_q_norm", "attn_k_norm"],
    adds_one_to_norms: true,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"],
    needs: &[OWN_HEAD, NORM_BIASES],
    wired: &[HEADS_FILL],
    ways: Ways { fixed: &[("padding", 0), ("unknown", 1)], ..PLAIN.ways },
    say,
    defaults: Defaults { head: Head::Share, eps_field: "norm_eps", eps: 1e-5, share: 0.5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    said.count("vocab_size", model.tokens);
    said.float(LAYER_EPS, model.eps);
    said.count("rope.dimension_count", model.turned()?);
    match model.rope.number("factor") {
        None => said.text("rope.scaling.type", "none"),
        Some(factor) => {
            said.text("rope.scaling.type", "linear");
            said.float("rope.scaling.factor", factor);
        }
    }
    Ok(())
}
