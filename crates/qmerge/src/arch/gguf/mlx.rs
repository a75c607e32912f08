//! Experts as mlx_lm writes them: a stack for each projection, whatever the family calls it, of matrices (outputs, inputs). Of the families that have these names in their layout, mlx_lm leaves all else as it is
//! published; of others (DeepSeek, Qwen 3.5) it changes more, and no file is made. Source: mlx_lm, `models/*.py`, `sanitize`.

use super::join::{Join, whole};
use super::weave::Dims;

/// Beside `mlp.experts`.
pub(super) const IN_MLP: [Join; 3] = [
    stack("mlp.switch_mlp.gate_proj.weight", &[("ffn_gate_exps.{}.weight", false)]),
    stack("mlp.switch_mlp.up_proj.weight", &[("ffn_up_exps.{}.weight", false)]),
    stack("mlp.switch_mlp.down_proj.weight", &[("ffn_down_exps.{}.weight", false)]),
];

/// Beside `block_sparse_moe.experts`.
pub(super) const IN_SPARSE_MOE: [Join; 3] = [
    stack("block_sparse_moe.switch_mlp.gate_proj.weight", &[("ffn_gate_exps.{}.weight", false)]),
    stack("block_sparse_moe.switch_mlp.up_proj.weight", &[("ffn_up_exps.{}.weight", false)]),
    stack("block_sparse_moe.switch_mlp.down_proj.weight", &[("ffn_down_exps.{}.weight", false)]),
];

const fn stack(name: &'static str, tensors: &'static [(&'static str, bool)]) -> Join {
    Join::split(name, tensors, Dims::Stack, whole).only_made()
}
