//! Llama, which the others are told from.

use super::spec::{Activation, Attention, Dense, FeedForward, Layer, Matrices, Mixer, Norm, Norms, Projections, Spec};
use super::{Arch, Fields, Result, Rope, generic};

pub(super) const ARCH: Arch = Arch { model_types: &["llama"], spec: Some(spec), ..generic::ARCH };

const NORMS: Norms = Norms {
    mixer_in: Some("input_layernorm"),
    mixer_out: None,
    feed_forward_in: Some("post_attention_layernorm"),
    feed_forward_out: None,
};

/// The norms of queries and of keys, in the families that have them.
pub(super) const QK_NORM: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

/// What Llama's configuration says, for other families to change what is theirs.
pub(super) struct Llama {
    /// All but the layers.
    pub(super) spec: Spec,
    /// One for each layer.
    pub(super) attention: Vec<Attention>,
    pub(super) feed_forward: Dense,
    pub(super) norms: Norms,
}

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Llama> {
    let (hidden, heads) = (fields.count("hidden_size")?, fields.count("num_attention_heads")?);
    let head_dim = match fields.positive_if("head_dim")? {
        Some(head_dim) => head_dim,
        None => fields.share("hidden_size", "num_attention_heads")?,
    };
    let layers = fields.layers("num_hidden_layers")?;
    let rope = Rope::read(fields, head_dim, None, 10_000.0)?;
    let width = fields.count("intermediate_size")?;
    let attention = Attention {
        heads,
        kv_heads: fields.positive_if("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        projections: Projections::Apart {
            names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        },
        qk_norm: None,
        rope: Some(0),
        window: None,
        scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        cap: None,
    };
    let spec = Spec {
        hidden,
        vocab: fields.count("vocab_size")?,
        max_positions: rope.longest(),
        layers: Vec::new(),
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
    };
    Ok(Llama { spec, attention: vec![attention; layers], feed_forward, norms: NORMS })
}

impl Llama {
    /// Gives a window to the layers that slide.
    pub(super) fn slide(&mut self, window: Option<usize>, sliding: impl IntoIterator<Item = bool>) {
        for (attention, sliding) in self.attention.iter_mut().zip(sliding) {
            attention.window = window.filter(|_| sliding);
        }
    }
}

impl From<Llama> for Spec {
    fn from(llama: Llama) -> Self {
        let (norms, feed_forward) = (llama.norms, FeedForward::Dense(llama.feed_forward));
        let layer = |attention| Layer { norms, mixer: Mixer::Attention(attention), feed_forward };
        Self { layers: llama.attention.into_iter().map(layer).collect(), ..llama.spec }
    }
}
