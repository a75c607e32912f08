//! GPT-2: learned positions, layer norms with biases, matrices stored (in, out).

use qmerge::error::Result;
use serde_json::Value;

use super::Family;
use crate::fields::Fields;
use crate::spec::{Activation, Attention, FeedForward, Layer, Names, Norm, Norms, QkNorm, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["gpt2"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let (hidden, heads) = (fields.count("n_embd")?, fields.count("n_head")?);
    let head_dim = fields.share("n_embd", "n_head")?;
    let layers = fields.layers("n_layer")?;
    if fields.flag("scale_attn_by_inverse_layer_idx", false)? {
        return Err(fields.unsupported("scale_attn_by_inverse_layer_idx", &Value::Bool(true)));
    }
    let scale = if fields.flag("scale_attn_weights", true)? { (1.0 / (head_dim as f64).sqrt()) as f32 } else { 1.0 };
    Ok(Spec {
        hidden,
        intermediate: fields.positive_if("n_inner")?.unwrap_or(4 * hidden),
        heads,
        kv_heads: heads,
        head_dim,
        vocab: fields.count("vocab_size")?,
        max_positions: fields.count("n_positions")?,
        layers: vec![Layer::default(); layers],
        ropes: Vec::new(),
        eps: fields.eps("layer_norm_epsilon", 1e-5)?,
        norm: Norm::Layer,
        norms: Norms {
            attention_in: Some("ln_1"),
            attention_out: None,
            feed_forward_in: Some("ln_2"),
            feed_forward_out: None,
        },
        qk_norm: QkNorm::None,
        attention_scale: scale,
        attention_cap: None,
        logit_cap: None,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        activation: Activation::read(fields, "activation_function")?,
        attention: Attention::Fused { names: ["attn.c_attn", "attn.c_proj"] },
        feed_forward: FeedForward::Plain { names: ["mlp.c_fc", "mlp.c_proj"] },
        experts: None,
        names: Names { embed: "wte", positions: Some("wpe"), layers: "h", norm: "ln_f" },
        transposed: true,
    })
}
