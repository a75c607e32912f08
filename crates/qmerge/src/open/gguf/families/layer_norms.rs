//! Families with layer norms: what they call the epsilon, biases, and the share of a head that turns.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, PLAIN, all_turn, renamed};
use crate::open::gguf::Value;

const PARALLEL: &str = "use_parallel_residual";

pub(super) const STARCODER2: Family =
    Family { architecture: "starcoder2", model_type: "starcoder2", more: starcoder2, ..PLAIN };
pub(super) const STABLELM: Family =
    Family { architecture: "stablelm", model_type: "stablelm", reads: &[PARALLEL], more: stablelm, ..PLAIN };
pub(super) const PHI2: Family = Family { architecture: "phi2", model_type: "phi", more: all_turn, ..PLAIN };
pub(super) const GPT_NEOX: Family =
    Family { architecture: "gptneox", model_type: "gpt_neox", reads: &[PARALLEL], more: gpt_neox, ..PLAIN };
pub(super) const NEMOTRON: Family =
    Family { architecture: "nemotron", model_type: "nemotron", more: nemotron, ..PLAIN };
pub(super) const FALCON: Family =
    Family { architecture: "falcon", model_type: "falcon", reads: &["tensor_data_layout"], more: falcon, ..PLAIN };
pub(super) const GPT2: Family = Family { architecture: "gpt2", model_type: "gpt2", more: gpt2, ..PLAIN };
pub(super) const GPT_BIGCODE: Family =
    Family { architecture: "starcoder", model_type: "gpt_bigcode", more: gpt_bigcode, ..PLAIN };
pub(super) const OLMO: Family =
    Family { architecture: "olmo", model_type: "olmo", reads: &[CLIP], more: olmo, ..PLAIN };

const CLIP: &str = "attention.clamp_kqv";

fn starcoder2(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    renamed(config, "layer_norm_eps", "norm_epsilon");
    config.insert("use_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
}

fn parallel(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let is_parallel = !matches!(keys.get(PARALLEL), Some(Value::Bool(false)));
    config.insert(PARALLEL.into(), json!(is_parallel));
}

fn stablelm(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    all_turn(keys, config);
    // llama.cpp goes by the norm, and not by the key, which files have as true of models that say nothing.
    config.insert(PARALLEL.into(), json!(!keys.has("blk.0.ffn_norm.weight")));
    config.insert("qk_layernorm".into(), json!(keys.has("blk.0.attn_q_norm.weight")));
    config.insert("use_qkv_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
}

fn gpt_neox(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    parallel(keys, config);
    all_turn(keys, config);
    renamed(config, "partial_rotary_factor", "rotary_pct");
    config.insert("attention_bias".into(), json!(keys.has("blk.0.attn_qkv.bias")));
}

fn nemotron(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    all_turn(keys, config);
    config.shift_remove("rms_norm_eps");
    renamed(config, "layer_norm_eps", "norm_eps");
}

fn falcon(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    renamed(config, "layer_norm_eps", "layer_norm_epsilon");
    renamed(config, "intermediate_size", "ffn_hidden_size");
    renamed(config, "num_key_value_heads", "num_kv_heads");
    let has_norms = keys.has("blk.0.attn_norm_2.weight");
    let is_grouped = has_norms || keys.count("attention.head_count_kv").is_some_and(|keys| keys > 1);
    config.insert("new_decoder_architecture".into(), json!(is_grouped));
    config.insert("multi_query".into(), json!(true));
    config.insert("parallel_attn".into(), json!(true));
    config.insert("alibi".into(), json!(false));
    config.insert("bias".into(), json!(false));
    if is_grouped {
        config.insert("num_ln_in_parallel_attn".into(), json!(if has_norms { 2 } else { 1 }));
    }
}

fn gpt2(_: &Keys<'_>, config: &mut Map<String, Json>) {
    for (from, to) in [
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("intermediate_size", "n_inner"),
        ("layer_norm_eps", "layer_norm_epsilon"),
    ] {
        renamed(config, from, to);
    }
}

/// One key serves all queries.
fn gpt_bigcode(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    gpt2(keys, config);
    config.shift_remove("num_key_value_heads");
    config.insert("multi_query".into(), json!(true));
}

fn olmo(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.shift_remove("layer_norm_eps");
    keys.number(CLIP).map(|limit| config.insert("clip_qkv".into(), limit));
}
