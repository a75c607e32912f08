//! StableLM: Llama with layer norms and a rope over a part of each head.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::{HEADS_FILL, ONE_NORM_BIASES, OWN_HEAD};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const STABLELM: Layout = Layout {
    architecture: "stablelm",
    model_types: &["stablelm"],
    class: "StableLmForCausalLM",
    // Norms of queries and keys are a tensor in the file and one for each head in the model.
    without: &["attn_q_norm", "attn_k_norm"],
    bias_field: None,
    needs: &[OWN_HEAD, ONE_NORM_BIASES],
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("stablelm2"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps_field: "layer_norm_eps", eps: 1e-5, share: 0.25, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("block_count", model.layers);
    said.count("feed_forward_length", model.width);
    said.count("rope.dimension_count", (model.share()? * (model.hidden / model.heads.max(1)) as f64) as usize);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", model.kv_heads);
    said.flag("use_parallel_residual", model.fields.flag("use_parallel_residual", false)?);
    said.float(LAYER_EPS, model.eps);
    said.file_type(model);
    Ok(())
}
