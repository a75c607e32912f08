//! Phi MoE: layer norms, biases, and Mixtral's experts; a rope as that of Phi 3.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::{DENSE, MIXTRAL};
use super::phi3::{self, PHI3};
use super::wants::{HEADS_FILL, NORM_BIASES, OWN_HEAD};
use crate::error::Result;

pub(super) const PHIMOE: Layout = Layout {
    architecture: "phimoe",
    model_types: &["phimoe"],
    class: "PhimoeForCausalLM",
    inside: &[(ROUTER, "block_sparse_moe.gate")],
    experts: MIXTRAL.experts,
    without: DENSE,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output"],
    needs: &[OWN_HEAD, &["output.bias"], NORM_BIASES, &["blk.*.attn_output.bias"]],
    wired: &[HEADS_FILL],
    say,
    defaults: Defaults { theta: 1_000_000.0, ..PHI3.defaults },
    ..PHI3
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    phi3::say(said, model)?;
    said.count("expert_used_count", fields.count("num_experts_per_tok")?);
    said.count("expert_count", fields.count("num_local_experts")?);
    Ok(())
}
