//! MiniMax M2: experts chosen by a sigmoid with a correction, norms over all queries and keys together, and a rope on a part of each head.

use super::spec::{Over, QkNorm, Scores, Spec};
use super::{Arch, Fields, Result, Rope, RopeDefaults, generic, llama, mixtral};

pub(super) const ARCH: Arch = Arch { model_types: &["minimax_m2"], spec: Some(spec), ..mixtral::ARCH };

/// MiniMax M3, which is not run: the same experts, under names of their own on disk where the model sees.
pub(super) const M3: Arch =
    Arch { model_types: &["minimax_m3_vl", "minimax_m3_vl_text"], experts: Some(mixtral::EXPERTS), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let head_dim = fields.positive_if("head_dim")?.unwrap_or(128);
    // Published models give the features that turn; transformers 5 writes their share.
    let share = fields.positive_if("rotary_dim")?.map_or(1.0, |dims| dims as f64 / head_dim as f64);
    let rope = RopeDefaults { theta: 5_000_000.0, share, ..RopeDefaults::default() };
    let rope = Rope::read_with(fields, head_dim, None, rope)?;
    let width = fields.count("intermediate_size")?;
    let mut minimax = llama::read_turned(fields, head_dim, rope, width)?;
    minimax.attention.iter_mut().for_each(|attention| {
        attention.qk_norm = Some(QkNorm { over: Over::Whole, ..QkNorm::per_head(llama::QK_NORM) })
    });
    let mut routed = mixtral::read(fields)?;
    routed.router.scores = Scores::Sigmoid;
    routed.router.correction = Some("e_score_correction_bias");
    Ok(minimax.with_experts(routed, |_| true))
}
