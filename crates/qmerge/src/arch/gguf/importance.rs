//! What llama.cpp calls the weights of a model.
//!
//! A GGUF file names tensors alike in all families (`blk.3.attn_q.weight`), so a name stands for several paths: the base has one of them. Names are those of gguf-py's
//! `tensor_mapping.py`.

/// Paths in front of a layer's number.
const LAYERS: &[&str] = &["model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers"];

/// Names outside the layers, without `.weight`.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("token_embd", &["model.embed_tokens", "transformer.wte", "gpt_neox.embed_in", "transformer.word_embeddings"]),
    ("output", &["lm_head", "embed_out"]),
];

/// Names in a layer.
const INSIDE: &[(&str, &[&str])] = &[
    ("attn_q", &["self_attn.q_proj"]),
    ("attn_k", &["self_attn.k_proj"]),
    ("attn_v", &["self_attn.v_proj"]),
    (
        "attn_qkv",
        &[
            "self_attn.qkv_proj",
            "attn.c_attn",
            "attn.Wqkv",
            "self_attention.query_key_value",
            "attention.query_key_value",
        ],
    ),
    (
        "attn_output",
        &[
            "self_attn.o_proj",
            "self_attn.out_proj",
            "self_attn.dense",
            "attn.c_proj",
            "attn.out_proj",
            "self_attention.dense",
            "attention.dense",
        ],
    ),
    ("attn_q_a", &["self_attn.q_a_proj"]),
    ("attn_q_b", &["self_attn.q_b_proj"]),
    ("attn_kv_a_mqa", &["self_attn.kv_a_proj_with_mqa"]),
    ("attn_kv_b", &["self_attn.kv_b_proj"]),
    ("ffn_gate", &["mlp.gate_proj"]),
    ("ffn_up", &["mlp.up_proj", "mlp.gate_up_proj", "mlp.c_fc", "mlp.fc1", "mlp.dense_h_to_4h", "fc1"]),
    ("ffn_down", &["mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "fc2"]),
    ("ffn_gate_inp", &["mlp.gate", "block_sparse_moe.gate"]),
    ("inp_gate", &["per_layer_input_gate"]),
    ("proj", &["per_layer_projection"]),
    ("ffn_gate_shexp", &["mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj"]),
    ("ffn_up_shexp", &["mlp.shared_expert.up_proj", "mlp.shared_experts.up_proj"]),
    ("ffn_down_shexp", &["mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj"]),
];

/// Names in a layer that stand for a stack of experts, of which `{}` is the number.
const EXPERTS: &[(&str, &[&str])] = &[
    ("ffn_gate_exps", &["mlp.experts.{}.gate_proj", "block_sparse_moe.experts.{}.w1"]),
    ("ffn_up_exps", &["mlp.experts.{}.up_proj", "block_sparse_moe.experts.{}.w3"]),
    ("ffn_down_exps", &["mlp.experts.{}.down_proj", "block_sparse_moe.experts.{}.w2"]),
];

/// The layer that a GGUF name lies in.
pub(crate) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Names that a checkpoint may have for a GGUF tensor, or for one expert of it. Empty for one that is not known.
pub(crate) fn candidates(name: &str, expert: usize) -> Vec<String> {
    let Some(path) = name.strip_suffix(".weight") else { return Vec::new() };
    let of = |table: &[(&str, &'static [&'static str])], part: &str| {
        table.iter().find(|(known, _)| *known == part).map(|(_, paths)| *paths)
    };
    let Some((number, part)) = layer(name).zip(path.splitn(3, '.').nth(2)) else {
        return of(OUTSIDE, path).into_iter().flatten().map(|path| format!("{path}.weight")).collect();
    };
    let expert = expert.to_string();
    let paths = of(INSIDE, part).or_else(|| of(EXPERTS, part)).into_iter().flatten();
    paths
        .flat_map(|path| {
            let path = path.replace("{}", &expert);
            LAYERS.iter().map(move |layers| format!("{layers}.{number}.{path}.weight"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_paths() {
        let has = |name: &str, expert, path: &str| candidates(name, expert).iter().any(|found| found == path);
        assert!(has("blk.12.attn_q.weight", 0, "model.layers.12.self_attn.q_proj.weight"));
        assert!(has("blk.0.attn_qkv.weight", 0, "transformer.h.0.attn.c_attn.weight"));
        assert!(has("blk.3.ffn_down_exps.weight", 7, "model.layers.3.block_sparse_moe.experts.7.w2.weight"));
        assert!(has("output.weight", 0, "lm_head.weight"));
        for unknown in ["blk.0.attn_q.bias", "blk.x.attn_q.weight", "blk.0.weight", "rope_freqs.weight", ""] {
            assert!(candidates(unknown, 0).is_empty(), "{unknown}");
        }
        assert_eq!((layer("blk.12.attn_q.weight"), layer("output.weight")), (Some(12), None));
    }
}
