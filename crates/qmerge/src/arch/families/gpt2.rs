//! GPT-2: learned positions, layer norms with biases, linear layers that are `Conv1D`, stored (in, out).

use serde_json::Value;

use super::decoder::Decoder;
use super::spec::{Activation, Attention, Dense, Matrices, Norm, Norms, Order, Projections, Spec};
use super::{Arch, Fields, Result, generic};

pub(super) const ARCH: Arch = Arch {
    model_types: &["gpt2"],
    positions: Some("wpe"),
    layers: "h",
    norm: "ln_f",
    transposed: &["c_attn", "c_proj", "c_fc", "q_attn"],
    experts: None,
    spec: Some(spec),
    ..generic::ARCH
};

const NORMS: Norms =
    Norms { mixer_in: Some("ln_1"), mixer_out: None, feed_forward_in: Some("ln_2"), feed_forward_out: None };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(read(fields, fields.count("n_head")?)?.into())
}

/// With so many heads of keys.
pub(super) fn read(fields: &Fields<'_>, kv_heads: usize) -> Result<Decoder> {
    let (hidden, heads) = (fields.count("n_embd")?, fields.count("n_head")?);
    let head_dim = fields.share("n_embd", "n_head")?;
    let layers = fields.layers("n_layer")?;
    if fields.flag("scale_attn_by_inverse_layer_idx", false)? {
        return Err(fields.unsupported("scale_attn_by_inverse_layer_idx", &Value::Bool(true)));
    }
    let scale = if fields.flag("scale_attn_weights", true)? { (1.0 / (head_dim as f64).sqrt()) as f32 } else { 1.0 };
    let feed_forward = Dense {
        width: fields.positive_if("n_inner")?.unwrap_or(4 * hidden),
        activation: Activation::read_or(fields, "activation_function", Activation::GeluTanh)?,
        matrices: Matrices::Plain { names: ["mlp.c_fc", "mlp.c_proj"] },
        above: None,
    };
    let attention = Attention {
        heads,
        kv_heads,
        head_dim,
        projections: Projections::Fused { names: ["attn.c_attn", "attn.c_proj"] },
        clip: None,
        qk_norm: None,
        rope: None,
        norms_values: false,
        growth: None,
        window: None,
        chunk: None,
        scale,
        cap: None,
        sinks: None,
        gated: false,
        lends: None,
    };
    let spec = Spec {
        hidden,
        vocab: fields.count("vocab_size")?,
        max_positions: fields.count("n_positions")?,
        layers: Vec::new(),
        per_layer: None,
        streams: None,
        ropes: Vec::new(),
        norm: Norm::Layer,
        eps: fields.eps("layer_norm_epsilon", 1e-5)?,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
    };
    let attention = vec![attention; layers];
    Ok(Decoder { spec, attention, feed_forward, norms: NORMS, order: Order::Sequential })
}
