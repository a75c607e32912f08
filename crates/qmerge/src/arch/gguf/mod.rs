//! How a model lies in a GGUF file: names, the order of rows, and what a converter adds to values.
//!
//! llama.cpp has an architecture for what transformers has a family for, and its converter changes some weights of some of them: rows of queries and keys
//! are paired by neighbours in place of halves, a norm's weight has one added. What it does belongs to the architecture, whatever the file was made from; an
//! architecture that is not listed is refused by name. Each is a row in a file of its kin ([`layout`] lists them). Source: llama.cpp, `conversion/*.py` and gguf-py's
//! `tensor_mapping.py`.

mod arcee;
mod bounds;
mod cohere;
mod deepseek;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod falcon;
mod file;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod hunyuan;
mod hyperparameters;
pub(crate) mod importance;
mod join;
mod layout;
mod lfm2;
mod llama;
mod llama4;
mod minimax_m2;
mod mistral3;
pub(crate) mod mixture;
mod mlx;
mod nemotron;
mod olmo;
mod olmo2;
mod olmoe;
mod phi2;
mod phi3;
mod phimoe;
mod qwen;
mod qwen_delta;
mod qwen_vl;
mod rows;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
pub(crate) mod towers;
mod view;
mod wants;
mod weave;

pub(crate) use file::{File, Joined, Unknown};
pub(crate) use hyperparameters::Said;
pub(crate) use layout::Layout;
pub(crate) use rows::{Heads, RowOrder, To};
pub(crate) use view::{NamedModule, View};
#[cfg(test)]
pub(crate) use weave::{Dims, Order, Split};
pub(crate) use weave::{Piece, Weave};

use crate::open::gguf::{FACTORS, LONG_FACTORS, SHORT_FACTORS};

/// Name in GGUF and path in the model, without `.weight` or `.bias`.
type Names = &'static [(&'static str, &'static str)];

/// Outside the layers.
const OUTSIDE: Names = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), (HEAD, "lm_head")];
/// The head's name.
const HEAD: &str = "output";

/// In a layer, `blk.N.` here and `model.layers.N.` in the model.
const INSIDE: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What chooses experts.
const ROUTER: &str = "ffn_gate_inp";
/// Stacks of experts: gate, up and down.
const STACKS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

/// Ends of names of tensors that a model's code makes anew.
const MADE: &[&str] =
    &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias"];

/// True of a tensor of a GGUF file that is a part of the rope, of which `config.json` has lists.
pub(crate) fn is_rope(name: &str) -> bool {
    [FACTORS, SHORT_FACTORS, LONG_FACTORS].contains(&name)
}

/// True of a tensor that no file holds, since it is made from the configuration.
pub(crate) fn is_made(name: &str) -> bool {
    MADE.iter().any(|end| name.ends_with(end))
}

/// True of a tensor of what predicts further tokens behind a model's own layers, which transformers does not run.
pub(crate) fn predicts_further(name: &str, layers: usize) -> bool {
    let name = &*towers::alone(name);
    let of_layer = ["model.layers.", "blk."].iter().find_map(|layers| name.strip_prefix(layers));
    let number = of_layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    // ERNIE's are `model.mtp_block.0` and what lies beside it.
    number.is_some_and(|number| number >= layers)
        || ["mtp.", "model.mtp.", "model.mtp_"].iter().any(|beginning| name.starts_with(beginning))
}
