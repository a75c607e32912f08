//! Phi 1 and 2: blocks side by side behind one layer norm, a rope over half of each head, biases everywhere.

use super::llama::PROJECTIONS;
use super::spec::{Activation, Matrices, Norm, Order, Projections, QkNorm, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch =
    Arch { model_types: &["phi"], norm: "final_layernorm", spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut phi = llama::read_with(fields, RopeDefaults { share: 0.5, ..RopeDefaults::default() })?;
    phi.spec.norm = Norm::Layer;
    phi.spec.eps = fields.eps("layer_norm_eps", 1e-5)?;
    phi.order = Order::ParallelOneNorm;
    phi.norms.feed_forward_in = None;
    let [q, k, v, _] = PROJECTIONS;
    for attention in &mut phi.attention {
        attention.projections = Projections::Apart { names: [q, k, v, "self_attn.dense"] };
    }
    if fields.flag("qk_layernorm", false)? {
        phi.norm_queries_and_keys(QkNorm::per_head(["self_attn.q_layernorm", "self_attn.k_layernorm"]));
    }
    phi.feed_forward.activation = Activation::read_or(fields, "hidden_act", Activation::GeluTanh)?;
    phi.feed_forward.matrices = Matrices::Plain { names: ["mlp.fc1", "mlp.fc2"] };
    Ok(phi.into())
}
