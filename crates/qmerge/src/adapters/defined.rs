//! The order in which a model's code defines its modules, which is that of torch's `named_modules`: methods that give a module a number count so.
//!
//! Files do not say it: tensors are sorted by name there. It is known for families of which transformers' code was asked (`testdata/gen/module_order.py`).

use std::cmp::Ordering;

/// Types of models whose modules come in the order of [`COMPONENTS`].
#[rustfmt::skip]
const FAMILIES: &[&str] = &[
    "cohere", "cohere2", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "granite", "hunyuan_v1_dense", "llama",
    "ministral3", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
];

/// Components of paths that stand beside each other, in the order of their definition.
const COMPONENTS: &[&[&str]] = &[
    &["model", "transformer", "gpt_neox", "lm_head", "embed_out"],
    &["embed_tokens", "word_embeddings", "wte", "wpe", "embed_in", "layers", "h"],
    &["self_attn", "self_attention", "attn", "attention", "mlp"],
    &["q_proj", "k_proj", "v_proj", "o_proj"],
    &["q_proj", "k_proj", "v_proj", "dense"],
    &["o_proj", "qkv_proj"],
    &["query_key_value", "dense"],
    &["c_attn", "c_proj"],
    &["gate_proj", "up_proj", "down_proj"],
    &["gate_up_proj", "down_proj"],
    &["c_fc", "c_proj"],
    &["fc1", "fc2"],
    &["dense_h_to_4h", "dense_4h_to_h"],
];

/// True if the module `path` is defined before `other`; none where that is not known.
pub(super) fn is_before(model_type: &str, path: &str, other: &str) -> Option<bool> {
    if path == other {
        return Some(false);
    }
    if !FAMILIES.contains(&model_type) {
        return None;
    }
    Some(order(path, other)? == Ordering::Less)
}

/// Which of two paths comes first.
fn order(a: &str, b: &str) -> Option<Ordering> {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let (x, y) = match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => continue,
            (Some(x), Some(y)) => (x, y),
            // A module comes before what it consists of.
            (x, y) => return Some(x.is_some().cmp(&y.is_some())),
        };
        if let (Ok(x), Ok(y)) = (x.parse::<u64>(), y.parse::<u64>()) {
            return Some(x.cmp(&y));
        }
        let place = |of: &str, group: &[&str]| group.iter().position(|component| *component == of);
        return COMPONENTS.iter().find_map(|group| Some(place(x, group)?.cmp(&place(y, group)?)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `testdata/module_order.json`, which transformers wrote.
    #[test]
    fn the_order_is_that_of_the_models_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/module_order.json");
        let text = std::fs::read_to_string(path).unwrap();
        let orders: std::collections::HashMap<String, Vec<String>> = serde_json::from_str(&text).unwrap();
        for family in FAMILIES {
            let order = &orders[*family];
            assert!(order.len() >= 6, "{family}");
            for (i, one) in order.iter().enumerate() {
                for (j, other) in order.iter().enumerate() {
                    assert_eq!(is_before(family, one, other), Some(i < j), "{family}: {one}, {other}");
                }
            }
        }
        assert_eq!(is_before("llama", "model.layers.10.mlp.up_proj", "model.layers.9.mlp.up_proj"), Some(false));
        assert_eq!(is_before("llama", "model.layers.0.mlp.w1", "model.layers.0.mlp.up_proj"), None);
        assert_eq!(is_before("qwen2_moe", "model.layers.0", "model.layers.1"), None);
    }
}
