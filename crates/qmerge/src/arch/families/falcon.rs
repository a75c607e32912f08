//! Falcon: blocks side by side, behind one layer norm or two; queries, keys and values in one matrix, by groups that share a key.

use serde_json::Value;

use super::decoder::Decoder;
use super::spec::{Activation, Attention, Dense, Matrices, Norm, Norms, Order, Projections, Spec};
use super::{Arch, Fields, Result, Rope, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch =
    Arch { model_types: &["falcon"], layers: "h", norm: "ln_f", spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let (hidden, heads) = (fields.count("hidden_size")?, fields.count("num_attention_heads")?);
    let head_dim = fields.share("hidden_size", "num_attention_heads")?;
    let layers = fields.layers("num_hidden_layers")?;
    if fields.flag("alibi", false)? {
        return Err(fields.unsupported("alibi", &Value::Bool(true)));
    }
    let grouped = fields.flag("new_decoder_architecture", false)?;
    let kv_heads = if !grouped && fields.flag("multi_query", true)? {
        1
    } else {
        fields.positive_if("num_kv_heads")?.unwrap_or(heads)
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(
            fields.misfit(format!("`num_kv_heads` is {kv_heads}, and does not divide `num_attention_heads`, {heads}"))
        );
    }
    let (order, norms) = arrangement(fields, grouped)?;
    let rope = RopeDefaults { max_positions: Some(2048), ..RopeDefaults::default() };
    let rope = Rope::read_with(fields, head_dim, None, rope)?;
    let attention = Attention {
        heads,
        kv_heads,
        head_dim,
        projections: Projections::Grouped { names: ["self_attention.query_key_value", "self_attention.dense"] },
        clip: None,
        qk_norm: None,
        rope: Some(0),
        norms_values: false,
        growth: None,
        window: None,
        chunk: None,
        scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        cap: None,
        sinks: None,
        gated: false,
        lends: None,
    };
    let feed_forward = Dense {
        width: fields.positive_if("ffn_hidden_size")?.unwrap_or(4 * hidden),
        activation: Activation::read_or(fields, "activation", Activation::Gelu)?,
        matrices: Matrices::Plain { names: ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"] },
        above: None,
    };
    let spec = Spec {
        hidden,
        vocab: fields.count("vocab_size")?,
        max_positions: rope.longest(),
        layers: Vec::new(),
        per_layer: None,
        streams: None,
        ropes: vec![rope],
        norm: Norm::Layer,
        eps: fields.eps("layer_norm_epsilon", 1e-5)?,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
    };
    Ok(Decoder { spec, attention: vec![attention; layers], feed_forward, norms, order }.into())
}

/// How blocks and norms stand to each other.
fn arrangement(fields: &Fields<'_>, grouped: bool) -> Result<(Order, Norms)> {
    if !fields.flag("parallel_attn", true)? {
        // transformers has no such model.
        return match grouped {
            true => Err(fields.unsupported("parallel_attn", &Value::Bool(false))),
            false => Ok((Order::Sequential, llama::NORMS)),
        };
    }
    let norms = Norms { mixer_in: Some("input_layernorm"), feed_forward_in: None, ..llama::NORMS };
    match fields.count_if("num_ln_in_parallel_attn")?.unwrap_or(if grouped { 2 } else { 1 }) {
        1 => Ok((Order::ParallelOneNorm, norms)),
        2 if grouped => {
            let norms = Norms { mixer_in: Some("ln_attn"), feed_forward_in: Some("ln_mlp"), ..norms };
            Ok((Order::Parallel, norms))
        }
        other => Err(fields.unsupported("num_ln_in_parallel_attn", &other.into())),
    }
}
