//! Llama, which the others are told from.

use super::decoder::Decoder;
use super::spec::{Activation, Attention, Dense, Matrices, Norm, Norms, Order, Projections, Spec};
use super::{Arch, Fields, Result, Rope, RopeDefaults, generic};

pub(super) const ARCH: Arch = Arch { model_types: &["llama"], spec: Some(spec), ..generic::ARCH };

pub(super) const NORMS: Norms = Norms {
    mixer_in: Some("input_layernorm"),
    mixer_out: None,
    feed_forward_in: Some("post_attention_layernorm"),
    feed_forward_out: None,
};

/// Queries, keys, values, output.
pub(super) const PROJECTIONS: [&str; 4] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];

/// The norms of queries and of keys, in the families that have them.
pub(super) const QK_NORM: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

/// Width of a head: as it is given, or an equal share of the residual stream.
pub(super) fn head_dim(fields: &Fields<'_>) -> Result<usize> {
    fields.positive_if("head_dim")?.map_or_else(|| fields.share("hidden_size", "num_attention_heads"), Ok)
}

/// What Llama's configuration says, for other families to change what is theirs.
pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    read_with(fields, RopeDefaults::default())
}

/// The same, where the rope has defaults of its own.
pub(super) fn read_with(fields: &Fields<'_>, rope: RopeDefaults) -> Result<Decoder> {
    read_sized(fields, rope, fields.count("intermediate_size")?)
}

/// The same, where the width of the feed-forward is said in another way.
pub(super) fn read_sized(fields: &Fields<'_>, rope: RopeDefaults, width: usize) -> Result<Decoder> {
    let head_dim = head_dim(fields)?;
    read_turned(fields, head_dim, Rope::read_with(fields, head_dim, None, rope)?, width)
}

/// The same with heads of another width, and a rope that is read.
pub(super) fn read_turned(fields: &Fields<'_>, head_dim: usize, rope: Rope, width: usize) -> Result<Decoder> {
    let (hidden, heads) = (fields.count("hidden_size")?, fields.count("num_attention_heads")?);
    let layers = fields.layers("num_hidden_layers")?;
    let attention = Attention {
        heads,
        kv_heads: fields.positive_if("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        projections: Projections::Apart { names: PROJECTIONS },
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
    let spec = Spec {
        hidden,
        vocab: fields.count("vocab_size")?,
        max_positions: rope.longest(),
        layers: Vec::new(),
        per_layer: None,
        streams: None,
        ropes: vec![rope],
        norm: Norm::Rms,
        eps: fields.eps("rms_norm_eps", 1e-6)?,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
    };
    let feed_forward = Dense {
        width,
        activation: Activation::read(fields, "hidden_act")?,
        matrices: Matrices::Gated { names: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] },
        above: None,
    };
    let attention = vec![attention; layers];
    Ok(Decoder { spec, attention, feed_forward, norms: NORMS, order: Order::Sequential })
}
