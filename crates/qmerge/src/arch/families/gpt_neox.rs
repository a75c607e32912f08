//! GPT-NeoX (Pythia): blocks side by side, each behind its own layer norm; queries, keys and values in one matrix, head by head.

use super::spec::{Activation, Matrices, Norm, Order, Projections, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch =
    Arch { model_types: &["gpt_neox"], norm: "final_layer_norm", spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let rope = RopeDefaults {
        theta: fields.above_zero("rotary_emb_base", 10_000.0)?,
        share: fields.fraction("rotary_pct", 0.25)?,
        ..RopeDefaults::default()
    };
    let mut neox = llama::read_with(fields, rope)?;
    neox.spec.norm = Norm::Layer;
    neox.spec.eps = fields.eps("layer_norm_eps", 1e-5)?;
    if fields.flag("use_parallel_residual", true)? {
        neox.order = Order::Parallel;
    }
    for attention in &mut neox.attention {
        attention.projections = Projections::Grouped { names: ["attention.query_key_value", "attention.dense"] };
    }
    neox.feed_forward.activation = Activation::read_or(fields, "hidden_act", Activation::Gelu)?;
    neox.feed_forward.matrices = Matrices::Plain { names: ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"] };
    Ok(neox.into())
}
