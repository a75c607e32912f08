//! Llama, which the others are told from.

use qmerge::error::Result;

use super::Family;
use crate::fields::Fields;
use crate::rope::Rope;
use crate::spec::{Activation, Attention, FeedForward, Layer, Names, Norm, Norms, QkNorm, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["llama"], spec };

pub(super) const ATTENTION: Attention =
    Attention::Apart { names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] };

pub(super) const FEED_FORWARD: FeedForward =
    FeedForward::Gated { names: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] };

pub(super) fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let (hidden, heads) = (fields.count("hidden_size")?, fields.count("num_attention_heads")?);
    let head_dim = match fields.positive_if("head_dim")? {
        Some(head_dim) => head_dim,
        None => fields.share("hidden_size", "num_attention_heads")?,
    };
    let layers = fields.layers("num_hidden_layers")?;
    let rope = Rope::read(fields, head_dim, None, 10_000.0)?;
    Ok(Spec {
        hidden,
        intermediate: fields.count("intermediate_size")?,
        heads,
        kv_heads: fields.positive_if("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab: fields.count("vocab_size")?,
        max_positions: rope.longest(),
        layers: vec![Layer { rope: Some(0), ..Layer::default() }; layers],
        ropes: vec![rope],
        eps: fields.eps("rms_norm_eps", 1e-6)?,
        norm: Norm::Rms,
        norms: Norms {
            attention_in: Some("input_layernorm"),
            attention_out: None,
            feed_forward_in: Some("post_attention_layernorm"),
            feed_forward_out: None,
        },
        qk_norm: QkNorm::None,
        attention_scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        attention_cap: None,
        logit_cap: None,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        activation: Activation::read(fields, "hidden_act")?,
        attention: ATTENTION,
        feed_forward: FEED_FORWARD,
        experts: None,
        names: Names { embed: "embed_tokens", positions: None, layers: "layers", norm: "norm" },
        transposed: false,
    })
}
