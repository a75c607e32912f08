//! StableLM: Llama with layer norms and a rope over a part of each head; blocks side by side behind one norm, if wanted.

use super::spec::{Norm, Order, Over, QkNorm, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["stablelm"], spec: Some(spec), ..generic::ARCH };

const QK_NORM: QkNorm = QkNorm {
    over: Over::OwnHeadApart,
    norm: Some(Norm::LayerWithoutBias),
    ..QkNorm::per_head(["self_attn.q_layernorm", "self_attn.k_layernorm"])
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut stable = llama::read_with(fields, RopeDefaults { share: 0.25, ..RopeDefaults::default() })?;
    stable.spec.norm = Norm::Layer;
    stable.spec.eps = fields.eps("layer_norm_eps", 1e-5)?;
    if fields.flag("qk_layernorm", false)? {
        stable.norm_queries_and_keys(QK_NORM);
    }
    if fields.flag("use_parallel_residual", false)? {
        stable.order = Order::ParallelOneNorm;
        stable.norms.feed_forward_in = None;
    }
    Ok(stable.into())
}
