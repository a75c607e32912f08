//! llama.cpp's own architecture, which most others are told from, and Mixtral, which it has as the same with experts.

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout, Local};
use super::{Heads, INSIDE, OUTSIDE, ROUTER, mlx};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const LLAMA: Layout = Layout {
    architecture: "llama",
    model_types: &["llama", "mistral"],
    class: "LlamaForCausalLM",
    outside: OUTSIDE,
    wrapper: None,
    layers: "model.layers.",
    common: INSIDE,
    inside: &[],
    experts: None,
    stacks_as_named: false,
    joins: &[],
    without: &[],
    ordered: PAIRED,
    adds_one_to_norms: false,
    has_head: true,
    bias_field: Some("attention_bias"),
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    needs: &[],
    wired: &[],
    padded: None,
    fits: |_| true,
    only_those: None,
    only_with: None,
    only_told: None,
    repeats_positions: false,
    ways: Ways {
        no_space_before: false,
        is_llama: true,
        fixed: &[],
        named: &[],
        pre: None,
        says_space_last: false,
        ends_by_eod: false,
        by_flags_alone: false,
        merges_pieces: false,
    },
    say,
    defaults: Defaults {
        head: Head::Share,
        eps_field: "rms_norm_eps",
        eps: 1e-6,
        positions: None,
        is_four_times_as_wide: false,
        widths_by_layer: false,
        groups: None,
        theta: 10_000.0,
        local: Local::Unsaid,
        share: 1.0,
        rope: None,
    },
    is_large: |heads, kv_heads| heads != kv_heads,
};

pub(super) const MIXTRAL: Layout = Layout {
    model_types: &["mixtral"],
    class: "MixtralForCausalLM",
    inside: &[(ROUTER, "block_sparse_moe.gate")],
    experts: Some(("block_sparse_moe.experts", ["w1", "w3", "w2"])),
    joins: &mlx::IN_SPARSE_MOE,
    without: DENSE,
    defaults: Defaults { head: Head::Unsaid, eps: 1e-5, theta: 1_000_000.0, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};

/// Queries and keys of which neighbours are a pair, where the model pairs halves.
pub(super) const PAIRED: &[(&str, Heads)] = &[("attn_q", Heads::Queries), ("attn_k", Heads::Keys)];

/// What all but Llama and Gemma have.
pub(super) const PLAIN: Layout = Layout {
    biased: &["attn_q", "attn_k", "attn_v"],
    ordered: &[],
    ways: Ways { is_llama: false, ..LLAMA.ways },
    say: plain,
    defaults: Defaults { head: Head::Unsaid, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};

/// The feed-forward that all tokens go through, which layers of experts do not have.
pub(super) const DENSE: &[&str] = &["ffn_gate", "ffn_up", "ffn_down"];

pub(super) fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    said.count("vocab_size", model.tokens);
    said.count("rope.dimension_count", model.head_dim());
    said.experts(model)?;
    said.llama3_factors(model)
}

pub(super) fn plain(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    said.experts(model)?;
    said.llama3_factors(model)
}
