//! HunYuan (dense): Llama with norms of queries and keys behind the rope, whose base may be scaled by an `alpha`.

use super::spec::{QkNorm, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["hunyuan_v1_dense"], spec: Some(spec), ..generic::ARCH };

const QK_NORM: QkNorm =
    QkNorm { after_rope: true, ..QkNorm::per_head(["self_attn.query_layernorm", "self_attn.key_layernorm"]) };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut hunyuan = llama::read_with(fields, RopeDefaults { has_alpha: true, ..RopeDefaults::default() })?;
    hunyuan.norm_queries_and_keys(QK_NORM);
    hunyuan.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    Ok(hunyuan.into())
}
