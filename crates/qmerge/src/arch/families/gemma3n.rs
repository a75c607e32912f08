//! Gemma 3n (text): Gemma 4's small models on several residual streams, with a way around the mixer, and gates of which in some layers only the largest open.

use serde_json::Value;

use super::spec::{Activation, Altered, FeedForward, Laurel, PerLayer, QkNorm, Spec, Streams};
use super::{Arch, Fields, Result, Rope, RopeDefaults, gemma2, gemma4, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["gemma3n_text", "gemma3n"], spec: Some(spec), ..generic::ARCH };

const ALTERED: Altered = Altered {
    router: ["altup.router_norm", "altup.modality_router"],
    coefficients: ["altup.prediction_coefs", "altup.correction_coefs"],
    scale: Some("altup.correct_output_scale"),
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut gemma = llama::read_sized(fields, RopeDefaults::default(), 1)?;
    let layers = gemma.attention.len();
    gemma.norms = gemma2::NORMS;
    gemma.norm_queries_and_keys(QkNorm::per_head(llama::QK_NORM));
    gemma.spec.embed_scale = (gemma.spec.hidden as f32).sqrt();
    gemma.spec.logit_cap = Some(fields.above_zero("final_logit_softcapping", 30.0)? as f32);
    gemma.feed_forward.activation = Activation::read_or(fields, "hidden_activation", Activation::GeluTanh)?;
    let head_dim = llama::head_dim(fields)?;
    let full = Rope::read(fields, head_dim, Some("full_attention"), 1_000_000.0)?;
    let local = match fields.get("rope_parameters") {
        Some(_) => Rope::read(fields, head_dim, Some("sliding_attention"), 10_000.0)?,
        None => Rope::plain(fields, head_dim, fields.above_zero("rope_local_base_freq", 10_000.0)?)?,
    };
    gemma.spec.ropes = vec![full, local];
    let sliding = fields.sliding_but_every(layers, 5)?;
    for (attention, &sliding) in gemma.attention.iter_mut().zip(&sliding) {
        (attention.scale, attention.norms_values) = (1.0, true);
        attention.rope = Some(usize::from(sliding));
    }
    gemma4::share(fields, &mut gemma.attention, &sliding, 15)?;
    gemma.slide(Some(fields.positive_if("sliding_window")?.unwrap_or(512)), sliding);
    let (dense, widths, open) = (gemma.feed_forward, widths(fields, layers)?, open(fields, layers)?);
    let embeddings = gemma4::per_layer(fields)?;
    let scales = fields.flag("altup_correct_scale", true)?;
    let laurel = Laurel {
        rank: fields.positive_if("laurel_rank")?.unwrap_or(64),
        names: ["laurel.linear_left", "laurel.linear_right", "laurel.post_laurel_norm"],
    };
    let mut spec = Spec::from(gemma);
    spec.per_layer = embeddings;
    spec.streams = Some(streams(fields)?);
    for (layer, (width, above)) in spec.layers.iter_mut().zip(widths.into_iter().zip(open)) {
        let mut own = dense;
        (own.width, own.above) = (width, above);
        layer.feed_forward = FeedForward::Dense(own);
        layer.per_layer = embeddings.map(|_| PerLayer { names: gemma4::PER_LAYER, activation: dense.activation });
        layer.laurel = Some(laurel);
        layer.altered = Some(Altered { scale: ALTERED.scale.filter(|_| scales), ..ALTERED });
    }
    Ok(spec)
}

fn streams(fields: &Fields<'_>) -> Result<Streams> {
    /// No model has more.
    const MOST: usize = 64;
    let count = fields.positive_if("altup_num_inputs")?.unwrap_or(4);
    let active = fields.count_if("altup_active_idx")?.unwrap_or(0);
    if active >= count || count > MOST {
        return Err(fields.misfit(format!("`altup_active_idx` is {active}, of {count} streams (`altup_num_inputs`)")));
    }
    Ok(Streams { count, active, names: ["altup_projections", "altup_unembed_projections"] })
}

/// The width of each layer's feed-forward.
fn widths(fields: &Fields<'_>, layers: usize) -> Result<Vec<usize>> {
    /// No feed-forward is wider.
    const MOST: usize = 1 << 24;
    if !matches!(fields.get("intermediate_size"), Some(Value::Array(_))) {
        return Ok(vec![fields.count("intermediate_size")?; layers]);
    }
    let list = fields.by_layer("intermediate_size", layers)?.unwrap_or_default();
    let one = |value: &Value| {
        let width = value.as_u64().and_then(|width| usize::try_from(width).ok());
        width
            .filter(|width| (1..=MOST).contains(width))
            .ok_or_else(|| fields.bad("intermediate_size", value, "that is no width"))
    };
    list.iter().map(one).collect()
}

/// How far above the mean gates have to be in each layer, in standard deviations.
fn open(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<f32>>> {
    let Some(list) = fields.by_layer("activation_sparsity_pattern", layers)? else {
        let sparse = if layers > 10 { 10 } else { 0 };
        return Ok((0..layers).map(|layer| (layer < sparse).then(|| quantile(0.95))).collect());
    };
    let one = |value: &Value| {
        let share = value.as_f64().filter(|share| (0.0..1.0).contains(share));
        let share = share
            .ok_or_else(|| fields.bad("activation_sparsity_pattern", value, "it must be at least 0 and less than 1"))?;
        Ok((share > 0.0).then(|| quantile(share)))
    };
    list.iter().map(one).collect()
}

/// What a share of a normal distribution is below, in standard deviations, by the steps in f32 that torch takes.
fn quantile(share: f64) -> f32 {
    let wanted = f64::from(2.0 * share as f32 - 1.0);
    // The error function grows.
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if libm::erf(middle) < wanted { low = middle } else { high = middle }
    }
    (0.5 * (low + high)) as f32 * std::f32::consts::SQRT_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (share, x) in [(0.5, 0.0), (0.95, 1.644_853_6), (0.975, 1.959_964), (0.001, -3.090_232_3)] {
            assert!((quantile(share) - x).abs() < 2e-5, "{share}");
        }
    }
}
