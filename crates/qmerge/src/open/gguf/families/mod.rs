//! Families that GGUF files are of, a row each: what their keys say in other words than most, and what is known without a key.
//!
//! `arch/gguf` has for each the layout of its tensors, which depends on how keys are read and not the other way round.

mod deepseek;
mod ernie4_5_moe;
mod experts;
mod factors;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm4_moe;
mod gpt_oss;
mod hunyuan;
mod layer_norms;
mod lfm2;
mod llama4;
mod mistral3;
mod phimoe;
mod qwen_delta;
mod window;

use serde_json::{Map, Value as Json, json};

use super::config::Keys;

/// What GGUF and transformers call a family, and what is to be said of it that others need not.
pub(super) struct Family {
    pub(super) architecture: &'static str,
    /// It has experts, which others of the architecture have not.
    pub(super) has_experts: bool,
    /// A key that others of the architecture have not.
    pub(super) only_with: Option<&'static str>,
    /// The number that it has under a key of which others of the architecture have another.
    pub(super) only_where: Option<(&'static str, u64)>,
    pub(super) model_type: &'static str,
    /// A factor on attention comes with those of its rope, and goes with them.
    pub(super) scales_attention: bool,
    /// Keys behind the architecture's name that most have not.
    pub(super) reads: &'static [&'static str],
    /// Adds what is its own, and changes what others call otherwise.
    pub(super) more: fn(&Keys<'_>, &mut Map<String, Json>),
}

/// Says of itself what all do.
const PLAIN: Family = Family {
    architecture: "llama",
    has_experts: false,
    only_with: None,
    only_where: None,
    model_type: "llama",
    scales_attention: false,
    reads: &[],
    more: |_, _| {},
};

/// Every family; of an architecture's, those that are known by a key of their own first.
const FAMILIES: &[Family] = &[
    PLAIN,
    Family { architecture: "qwen2", model_type: "qwen2", ..PLAIN },
    Family { architecture: "qwen3", model_type: "qwen3", ..PLAIN },
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma4::GEMMA4,
    gemma4::GEMMA4_MOE,
    gemma3n::GEMMA3N,
    llama4::LLAMA4,
    ernie4_5_moe::ERNIE4_5_MOE,
    phimoe::PHIMOE,
    experts::MIXTRAL,
    experts::QWEN2_MOE,
    experts::QWEN3_MOE,
    Family { architecture: "phi3", model_type: "phi3", scales_attention: true, ..PLAIN },
    mistral3::MINISTRAL3,
    // Mistral models that are stored as Ministral 3 are Llama otherwise.
    Family { architecture: "mistral3", ..PLAIN },
    Family { architecture: "smollm3", model_type: "smollm3", ..PLAIN },
    Family { architecture: "chatglm", model_type: "glm", more: all_turn, ..PLAIN },
    Family { architecture: "glm4", model_type: "glm4", more: all_turn, ..PLAIN },
    Family { architecture: "arcee", model_type: "arcee", ..PLAIN },
    factors::GRANITE_HYBRID,
    factors::GRANITE,
    window::OLMO3,
    Family { architecture: "olmo2", model_type: "olmo2", ..PLAIN },
    factors::COHERE,
    factors::COHERE2,
    window::EXAONE4,
    Family { architecture: "seed_oss", model_type: "seed_oss", more: seed_oss, ..PLAIN },
    layer_norms::STARCODER2,
    layer_norms::STABLELM,
    layer_norms::PHI2,
    layer_norms::GPT_NEOX,
    layer_norms::FALCON,
    layer_norms::GPT2,
    layer_norms::GPT_BIGCODE,
    layer_norms::OLMO,
    Family { architecture: "ernie4_5", model_type: "ernie4_5", ..PLAIN },
    Family { architecture: "hunyuan-dense", model_type: "hunyuan_v1_dense", ..PLAIN },
    hunyuan::HUNYUAN_MOE,
    layer_norms::NEMOTRON,
    lfm2::LFM2,
    lfm2::LFM2_MOE,
    gpt_oss::GPT_OSS,
    deepseek::DEEPSEEK3,
    deepseek::DEEPSEEK2,
    glm4_moe::GLM4_MOE,
    experts::OLMOE,
    factors::GRANITE_MOE_SHARED,
    factors::GRANITE_MOE,
    experts::MINIMAX_M2,
    qwen_delta::QWEN3_NEXT,
    qwen_delta::QWEN35,
    qwen_delta::QWEN35_MOE,
    // For text these are Qwen 2 and 3: each token has one position, whichever features it turns, and nothing is seen that layers could be given.
    Family { architecture: "qwen2vl", model_type: "qwen2", reads: &[SECTIONS], ..PLAIN },
    Family { architecture: "qwen3vl", model_type: "qwen3", reads: OF_QWEN3_VL, ..PLAIN },
    experts::QWEN3_VL_MOE,
];

/// How many features turn by each of several positions.
const SECTIONS: &str = "rope.dimension_sections";
const OF_QWEN3_VL: &[&str] = &[SECTIONS, "n_deepstack_layers"];

/// Says what families take a part of for granted: all features of a head turn.
fn all_turn(_: &Keys<'_>, config: &mut Map<String, Json>) {
    config.entry("partial_rotary_factor").or_insert(json!(1.0));
}

/// Biases of queries, keys and values are the default.
fn seed_oss(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("attention_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
}

/// Gives a field the family's own name.
fn renamed(config: &mut Map<String, Json>, from: &str, to: &str) {
    if let Some(value) = config.shift_remove(from) {
        config.insert(to.to_owned(), value);
    }
}

/// That of a file; `None` for one that is not known.
pub(super) fn of(keys: &Keys<'_>) -> Option<&'static Family> {
    let has_experts = keys.has_experts();
    FAMILIES.iter().find(|family| {
        family.architecture == keys.architecture
            && family.has_experts == has_experts
            && family.only_with.is_none_or(|key| keys.get(key).is_some())
            && family.only_where.is_none_or(|(key, number)| keys.count(key) == Some(number))
    })
}

/// Architecture and type of each, and whether it has experts.
#[cfg(test)]
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    FAMILIES.iter().map(|family| (family.architecture, family.model_type, family.has_experts))
}

/// The number of layers without those that predict further tokens, which a file counts among them.
const FURTHER: &str = "nextn_predict_layers";

fn without_further(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let all = config.get("num_hidden_layers").and_then(Json::as_u64);
    if let Some(own) = all.zip(keys.count(FURTHER)).and_then(|(all, further)| all.checked_sub(further)) {
        config.insert("num_hidden_layers".into(), own.into());
    }
}
