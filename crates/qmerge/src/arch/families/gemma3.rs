//! Gemma 3 (text): Gemma 2 with norms of queries and keys, no caps by default, and another rope in the layers with a window.

use super::spec::{QkNorm, Spec};
use super::{Arch, Fields, Result, Rope, gemma2, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["gemma3_text", "gemma3"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut gemma = gemma2::read(fields)?;
    let layers = gemma.attention.len();
    let head_dim = gemma.attention.first().map_or(0, |attention| attention.head_dim);
    let full = Rope::read(fields, head_dim, Some("full_attention"), 1_000_000.0)?;
    let local = match fields.get("rope_parameters") {
        Some(_) => Rope::read(fields, head_dim, Some("sliding_attention"), 10_000.0)?,
        None => Rope::plain(fields, head_dim, fields.above_zero("rope_local_base_freq", 10_000.0)?)?,
    };
    gemma.spec.ropes = vec![full, local];
    let window = fields.positive_if("sliding_window")?;
    let pattern = fields.positive_if("sliding_window_pattern")?.unwrap_or(6);
    let sliding = fields.sliding_but_every(layers, pattern)?;
    for (attention, &sliding) in gemma.attention.iter_mut().zip(&sliding) {
        attention.qk_norm = Some(QkNorm::per_head(llama::QK_NORM));
        attention.rope = Some(usize::from(sliding));
    }
    gemma.slide(window, sliding);
    Ok(gemma.into())
}
