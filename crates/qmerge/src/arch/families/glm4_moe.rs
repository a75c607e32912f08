//! GLM 4 MoE: a rope on half of each head, norms of queries and keys where wanted, and DeepSeek's experts.

use super::spec::{QkNorm, Spec};
use super::{Arch, Fields, Result, RopeDefaults, deepseek, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["glm4_moe", "glm4v_moe_text"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut glm = llama::read_with(fields, RopeDefaults { share: 0.5, ..RopeDefaults::default() })?;
    if fields.flag("use_qk_norm", false)? {
        glm.attention.iter_mut().for_each(|attention| attention.qk_norm = Some(QkNorm::per_head(llama::QK_NORM)));
    }
    let first = fields.count_if("first_k_dense_replace")?.unwrap_or(1);
    Ok(glm.with_experts(deepseek::v3(fields, 1.0, (1, 1))?, |layer| layer >= first))
}
