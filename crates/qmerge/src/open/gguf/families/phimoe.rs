//! Phi MoE: the factor of its rope has names of its own.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys};

pub(super) const PHIMOE: Family =
    Family { architecture: "phimoe", model_type: "phimoe", scales_attention: true, more, ..MIXTURE };

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_local_experts".into(), json!(keys.count("expert_count")));
    config.insert("attention_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
    config.insert("lm_head_bias".into(), json!(keys.has("output.bias")));
    if let Some(Json::Object(scaling)) = config.get_mut("rope_scaling")
        && let Some(factor) = scaling.shift_remove("attention_factor")
    {
        scaling.insert("short_mscale".into(), factor.clone());
        scaling.insert("long_mscale".into(), factor);
    }
}
