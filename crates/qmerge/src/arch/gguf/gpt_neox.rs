//! GPT-NeoX (Pythia): queries, keys and values are one weight, head by head; layer norms and biases everywhere.

use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::{NORM_BIASES, OUTPUT_BIASES, OWN_HEAD};
use super::{HEAD, Heads, Names};
use crate::error::Result;
use crate::open::gguf::Ways;

const OUTSIDE: Names =
    &[("token_embd", "gpt_neox.embed_in"), ("output_norm", "gpt_neox.final_layer_norm"), (HEAD, "embed_out")];

pub(super) const GPT_NEOX: Layout = Layout {
    architecture: "gptneox",
    model_types: &["gpt_neox"],
    class: "GPTNeoXForCausalLM",
    outside: OUTSIDE,
    layers: "gpt_neox.layers.",
    common: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "attention.query_key_value"),
        ("attn_output", "attention.dense"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    ordered: &[("attn_qkv", Heads::Groups)],
    bias_field: None,
    biased: &["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
    needs: &[OWN_HEAD, NORM_BIASES, &["blk.*.attn_qkv.bias"], OUTPUT_BIASES],
    ways: Ways { pre: Some("olmo"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps_field: "layer_norm_eps", eps: 1e-5, share: 0.25, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("block_count", model.layers);
    said.count("feed_forward_length", model.width);
    let share = match fields.number_if("rotary_pct")? {
        Some(share) => share,
        None => model.share()?,
    };
    said.count("rope.dimension_count", (share * (model.hidden / model.heads.max(1)) as f64) as usize);
    said.count("attention.head_count", model.heads);
    said.flag("use_parallel_residual", fields.flag("use_parallel_residual", true)?);
    said.float(LAYER_EPS, model.eps);
    Ok(())
}
