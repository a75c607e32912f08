//! Qwen 2, and the language models of Qwen 2 VL and 2.5 VL: Llama with biases on queries, keys and values (found in the checkpoint), and a window in the upper layers if wanted.

use super::decoder::Decoder;
use super::spec::Spec;
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch {
    model_types: &["qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"],
    spec: Some(spec),
    ..generic::ARCH
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut qwen = llama::read(fields)?;
    if fields.flag("use_sliding_window", false)? {
        let window = fields.positive_if("sliding_window")?;
        let first = fields.count_if("max_window_layers")?.unwrap_or(0);
        let layers = qwen.attention.len();
        let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i >= first).collect());
        qwen.slide(window, sliding);
    }
    Ok(qwen)
}
