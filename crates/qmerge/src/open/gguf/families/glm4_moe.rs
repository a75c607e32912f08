//! GLM 4.5 to 4.7.

use serde_json::{Map, Value as Json, json};

use super::experts::{MIXTURE, ROUTED, routed};
use super::{Family, Keys, without_further};

pub(super) const GLM4_MOE: Family =
    Family { architecture: "glm4moe", model_type: "glm4_moe", reads: ROUTED, more, ..MIXTURE };

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    without_further(keys, config);
    routed(keys, config);
    config.insert("use_qk_norm".into(), json!(keys.has("blk.0.attn_q_norm.weight")));
}
