//! Command R and Command A: one norm before both blocks, scaled logits, and the embedding for a head.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::wants::HEADS_FILL;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const COHERE: Layout = Layout {
    architecture: "command-r",
    model_types: &["cohere"],
    class: "CohereForCausalLM",
    without: &["ffn_norm"],
    has_head: false,
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("command-r"), ..PLAIN.ways },
    say: cohere,
    defaults: Defaults {
        eps_field: "layer_norm_eps",
        eps: 1e-5,
        positions: Some(8192),
        theta: 500_000.0,
        ..PLAIN.defaults
    },
    ..PLAIN
};

pub(super) const COHERE2: Layout = Layout {
    architecture: "cohere2",
    model_types: &["cohere2"],
    class: "Cohere2ForCausalLM",
    without: &["ffn_norm", "attn_q_norm", "attn_k_norm"],
    say: cohere2,
    defaults: Defaults { head: Head::Share, theta: 10_000.0, ..COHERE.defaults },
    ..COHERE
};

fn cohere(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    // Command R was trained on longer texts than its field for positions says.
    if let Some(positions) = model.fields.positive_if("model_max_length")? {
        said.count("context_length", positions);
    }
    said.float("logit_scale", model.fields.number("logit_scale", 0.0625)?);
    said.text("rope.scaling.type", "none");
    Ok(())
}

fn cohere2(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    said.float("logit_scale", fields.number("logit_scale", 0.0625)?);
    said.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(4096));
    said.count("vocab_size", model.tokens);
    let share = fields.fraction("rotary_pct", 1.0)?;
    said.count("rope.dimension_count", (share * (model.hidden / model.heads.max(1)) as f64) as usize);
    said.text("rope.scaling.type", "none");
    Ok(())
}
