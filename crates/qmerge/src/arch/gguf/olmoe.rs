//! OLMoE: experts in every layer, and norms over all queries and over all keys.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::{self, DENSE, PLAIN};
use super::qwen::{EXPERTS, STACKED_BY_ANY};
use super::wants::{HEADS_FILL, OWN_HEAD, Wired};
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const OLMOE: Layout = Layout {
    architecture: "olmoe",
    model_types: &["olmoe"],
    class: "OlmoeForCausalLM",
    inside: &[(ROUTER, "mlp.gate")],
    experts: EXPERTS,
    joins: STACKED_BY_ANY,
    without: DENSE,
    needs: &[OWN_HEAD],
    wired: &[HEADS_FILL, Wired::same("attention.head_count_kv", "attention.head_count")],
    ways: Ways { pre: Some("olmo"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};

/// llama.cpp's graph neither clips projections nor makes shares sum to one.
fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    for field in ["clip_qkv", "norm_topk_prob"] {
        if let Some(value) = model.fields.get(field).filter(|value| value.as_bool() != Some(false)) {
            return Err(model.fields.unsupported(field, value));
        }
    }
    llama::plain(said, model)
}
