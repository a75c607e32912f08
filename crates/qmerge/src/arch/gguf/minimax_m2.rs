//! MiniMax M2: experts chosen by a sigmoid with a correction, norms over all queries and over all keys, and a rope on a part of each head.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::Join;
use super::layout::{Defaults, Head, Layout};
use super::llama::{DENSE, MIXTRAL, PLAIN};
use super::wants::OWN_HEAD;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const MINIMAX_M2: Layout = Layout {
    architecture: "minimax-m2",
    model_types: &["minimax_m2"],
    class: "MiniMaxM2ForCausalLM",
    inside: &[(ROUTER, "block_sparse_moe.gate")],
    experts: MIXTRAL.experts,
    joins: &[Join::renamed("block_sparse_moe.e_score_correction_bias", &[("exp_probs_b.bias", false)])],
    without: DENSE,
    biased: &["attn_q", "attn_k", "attn_v", "exp_probs_b"],
    needs: &[OWN_HEAD, &["blk.*.exp_probs_b.bias"]],
    ways: Ways { pre: Some("minimax-m2"), ..PLAIN.ways },
    say,
    defaults: Defaults { head: Head::Of(128), theta: 5_000_000.0, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    // transformers has no other, whether `scoring_func` is there or not.
    said.count("expert_gating_func", 2);
    said.count("expert_feed_forward_length", model.width);
    let turned = match model.fields.positive_if("rotary_dim")? {
        Some(turned) => turned,
        None => model.turned_of_head()?,
    };
    said.count("rope.dimension_count", turned);
    Ok(())
}
