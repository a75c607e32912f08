//! Gemma 4 (text): Gemma 3 with norms that add nothing, norms of values too, wider heads in the layers without a window, whose keys may be the values,
//! and a factor on each layer. Small models have embeddings for each layer, and last layers that see the keys and values of one before them; another has experts
//! beside the feed-forward.

use super::spec::{
    Activation, Attention, Beside, FeedForward, Mixer, PerLayer, PerLayerEmbeddings, Projections, QkNorm, Routed,
    Router, Shared, Spec,
};
use super::{Arch, Experts, Fields, Result, Rope, gemma2, generic, llama, qwen_moe};
use crate::open::ModelConfig;

pub(super) const ARCH: Arch = Arch { model_types: &["gemma4_text", "gemma4"], spec: Some(spec), ..generic::ARCH };

const EXPERTS: Experts = Experts { modules: &["experts"], ..generic::EXPERTS };

pub(super) const PER_LAYER: [&str; 3] = ["per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"];

/// Norms and factors of the layers that have experts.
const BESIDE: Beside = Beside {
    shared: ["pre_feedforward_layernorm", "post_feedforward_layernorm_1"],
    experts: ["pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"],
    seen: "router.scale",
    shares: "router.per_expert_scale",
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    refuse(fields)?;
    let mut gemma = llama::read(fields)?;
    gemma.norms = gemma2::NORMS;
    gemma.norm_queries_and_keys(QkNorm::per_head(llama::QK_NORM));
    gemma.spec.embed_scale = (gemma.spec.hidden as f32).sqrt();
    gemma.spec.logit_cap = fields.above_zero_if("final_logit_softcapping")?.map(|cap| cap as f32);
    gemma.feed_forward.activation = Activation::read_or(fields, "hidden_activation", Activation::GeluTanh)?;
    let layers = gemma.attention.len();
    let mut sliding = fields.sliding_but_every(layers, 6)?;
    // The last layer sees everything, whatever is said of it.
    if let Some(last) = sliding.last_mut() {
        *last = false;
    }
    let keys_as_values = fields.flag("attention_k_eq_v", false)?;
    let mut ropes: Vec<((bool, usize), Rope)> = Vec::new();
    for (number, (attention, &sliding)) in gemma.attention.iter_mut().zip(&sliding).enumerate() {
        (attention.scale, attention.norms_values) = (1.0, true);
        widen(attention, fields, number, sliding)?;
        if keys_as_values && !sliding {
            let [q, k, _, o] = llama::PROJECTIONS;
            attention.projections = Projections::KeysAsValues { names: [q, k, o] };
        }
        let kind = (sliding, attention.head_dim);
        if !ropes.iter().any(|(known, _)| *known == kind) {
            let (name, theta) = if sliding { ("sliding_attention", 1e4) } else { ("full_attention", 1e6) };
            ropes.push((kind, Rope::read(fields, attention.head_dim, Some(name), theta)?));
        }
        attention.rope = ropes.iter().position(|(known, _)| *known == kind);
    }
    gemma.spec.ropes = ropes.into_iter().map(|(_, rope)| rope).collect();
    share(fields, &mut gemma.attention, &sliding, 0)?;
    gemma.slide(Some(fields.positive_if("sliding_window")?.unwrap_or(512)), sliding);
    let (mut dense, is_wide) = (gemma.feed_forward, fields.flag("use_double_wide_mlp", false)?);
    let routed = fields.flag("enable_moe_block", false)?.then(|| experts(fields, dense.activation)).transpose()?;
    let embeddings = per_layer(fields)?;
    let (width, activation) = (dense.width, dense.activation);
    let mut spec = Spec::from(gemma);
    spec.per_layer = embeddings;
    for layer in &mut spec.layers {
        layer.scalar = Some("layer_scalar");
        layer.per_layer = embeddings.map(|_| PerLayer { names: PER_LAYER, activation });
        let Mixer::Attention(Attention { projections, .. }) = layer.mixer else { continue };
        dense.width = if is_wide && matches!(projections, Projections::Borrowed { .. }) { 2 * width } else { width };
        layer.feed_forward = FeedForward::Dense(dense);
        if let Some(routed) = routed {
            layer.norms.feed_forward_in = None;
            layer.feed_forward = FeedForward::Routed(Routed { shared: Some(Shared { dense, gate: None }), ..routed });
        }
    }
    Ok(spec)
}

/// Has the last layers see the keys and values of the last one of their kind in front of them: so many, or as many as the family has by default.
pub(super) fn share(fields: &Fields<'_>, attention: &mut [Attention], sliding: &[bool], default: usize) -> Result<()> {
    let shared = fields.count_if("num_kv_shared_layers")?.unwrap_or(default);
    let layers = attention.len();
    let first = layers.checked_sub(shared).filter(|first| *first > 0).ok_or_else(|| {
        fields.misfit(format!("`num_kv_shared_layers` is {shared}, which leaves none of {layers} layers"))
    })?;
    let (own, others) = attention.split_at_mut(first);
    for (borrows, is_sliding) in others.iter_mut().zip(sliding.iter().skip(first)) {
        let kinds = own.iter_mut().zip(sliding).rev();
        let lends = kinds.filter(|(_, kind)| *kind == is_sliding).map(|(lends, _)| lends).next();
        let fits = |lends: &&mut Attention| (lends.head_dim, lends.kv_heads) == (borrows.head_dim, borrows.kv_heads);
        let lends = lends.filter(fits).ok_or_else(|| {
            let kind = if *is_sliding { "a window" } else { "no window" };
            fields.misfit(format!(
                "`num_kv_shared_layers` is {shared}, but no layer with {kind} and the same heads lies in front of those"
            ))
        })?;
        let from = usize::from(*is_sliding);
        lends.lends = Some(from);
        let [q, _, _, o] = llama::PROJECTIONS;
        borrows.projections = Projections::Borrowed { names: [q, o], from };
        borrows.norms_values = false;
    }
    Ok(())
}

/// The embeddings of layers, which a model has unless it says that they have no features.
pub(super) fn per_layer(fields: &Fields<'_>) -> Result<Option<PerLayerEmbeddings>> {
    let width = fields.count_if("hidden_size_per_layer_input")?.unwrap_or(256);
    let vocab = fields.positive_if("vocab_size_per_layer_input")?.unwrap_or(262_144);
    let names = ["embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"];
    Ok((width > 0).then_some(PerLayerEmbeddings { width, vocab, names }))
}

fn experts(fields: &Fields<'_>, activation: Activation) -> Result<Routed> {
    let (count, width) = (fields.count("num_experts")?, fields.count(qwen_moe::WIDTH)?);
    let routed = qwen_moe::read(fields, count, width, "top_k_experts")?;
    let router = Router { name: "router.proj", normalize: Some(0.0), ..routed.router };
    Ok(Routed { router, activation, layout: EXPERTS, beside: Some(BESIDE), ..routed })
}

/// Errors for what this family has and nothing here runs.
fn refuse(fields: &Fields<'_>) -> Result<()> {
    // The class has ropes of its own for each kind of layer, which files always say.
    if fields.get("rope_parameters").is_none() {
        return Err(fields.missing("rope_parameters"));
    }
    match fields.get("use_bidirectional_attention") {
        Some(value) if value.as_str() != Some("vision") => {
            Err(fields.unsupported("use_bidirectional_attention", value))
        }
        _ => Ok(()),
    }
}

/// Gives a layer the heads that it has in place of the model's.
fn widen(attention: &mut Attention, fields: &Fields<'_>, number: usize, sliding: bool) -> Result<()> {
    let (head_dim, kv_heads) = match fields.get("per_layer_config") {
        Some(all) => {
            let Some(own) = all.get(number.to_string()) else { return Ok(()) };
            let json = own.as_object().ok_or_else(|| fields.bad("per_layer_config", all, "it must hold objects"))?;
            let own = ModelConfig { json: json.clone(), ..fields.config().clone() };
            let own = Fields::new(&own);
            (own.positive_if("head_dim")?, own.positive_if("num_key_value_heads")?)
        }
        None if sliding => return Ok(()),
        None => {
            let kv_heads = match fields.flag("attention_k_eq_v", false)? {
                true => fields.positive_if("num_global_key_value_heads")?,
                false => None,
            };
            (Some(fields.positive_if("global_head_dim")?.unwrap_or(512)), kv_heads)
        }
    };
    attention.head_dim = head_dim.unwrap_or(attention.head_dim);
    attention.kv_heads = kv_heads.unwrap_or(attention.kv_heads);
    Ok(())
}
