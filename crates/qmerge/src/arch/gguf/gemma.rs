//! Gemma 1 to 3.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout, Local};
use super::llama::PLAIN;
use crate::error::Result;
use crate::open::gguf::Ways;

const WAYS: Ways = Ways { no_space_before: true, ..PLAIN.ways };

/// The norms of Gemma 2 and 3: before and after each block.
pub(super) const AROUND: [(&str, &str); 3] = [
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

pub(super) const GEMMA: Layout = Layout {
    architecture: "gemma",
    model_types: &["gemma"],
    class: "GemmaForCausalLM",
    adds_one_to_norms: true,
    has_head: false,
    ways: Ways { fixed: &[("eot", 107)], ..WAYS },
    say: gemma,
    defaults: Defaults { head: Head::Of(256), ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const GEMMA2: Layout = Layout {
    architecture: "gemma2",
    model_types: &["gemma2"],
    class: "Gemma2ForCausalLM",
    inside: &AROUND,
    ways: WAYS,
    say: gemma2,
    ..GEMMA
};

pub(super) const GEMMA3: Layout = Layout {
    architecture: "gemma3",
    model_types: &["gemma3_text"],
    class: "Gemma3ForCausalLM",
    inside: &AROUND,
    has_head: true,
    ways: WAYS,
    say: gemma3,
    defaults: Defaults { theta: 1_000_000.0, local: Local::Own(10_000.0), ..GEMMA.defaults },
    ..GEMMA
};

fn gemma(said: &mut Said, model: &Model<'_>) -> Result<()> {
    without_rope(said, model);
    rope(said, model);
    Ok(())
}

fn gemma2(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    without_rope(said, model);
    said.float("attn_logit_softcapping", fields.number("attn_logit_softcapping", 50.0)?);
    said.float("final_logit_softcapping", fields.number("final_logit_softcapping", 30.0)?);
    said.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(4096));
    rope(said, model);
    Ok(())
}

fn gemma3(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    if let Some(value) = fields.get("attn_logit_softcapping") {
        return Err(fields.unsaid("attn_logit_softcapping", value));
    }
    if let Some(cap) = fields.number_if("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        said.float("final_logit_softcapping", cap);
    }
    said.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(4096));
    said.llama3_factors(model)
}

/// What Gemma 1 and 2 have in common.
fn without_rope(said: &mut Said, model: &Model<'_>) {
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("block_count", model.layers);
    said.count("feed_forward_length", model.width);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.float("attention.layer_norm_rms_epsilon", model.eps);
    for key in ["attention.key_length", "attention.value_length"] {
        said.count(key, model.head_dim());
    }
    said.file_type(model);
}

/// The rope of Gemma 1 and 2, which has no key where it is the default's.
fn rope(said: &mut Said, model: &Model<'_>) {
    if model.rope.theta != 10_000.0 {
        said.float("rope.freq_base", model.rope.theta);
    }
}
