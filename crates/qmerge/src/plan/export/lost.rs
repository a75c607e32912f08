//! What a GGUF file cannot say of a model: what comes out of its keys is held against what went in.

use crate::arch;
use crate::arch::Rope;
use crate::arch::spec::{Attention, FeedForward, Mixer, Spec};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::open::gguf::{Metadata, config};
use crate::open::{Entry, ModelConfig};

use super::Constant;

/// A warning on what is lost, if anything is: llama.cpp runs the model without it.
pub(super) fn warning(
    before: &ModelConfig,
    metadata: &Metadata,
    constants: &[Constant],
    weights: &[(String, Vec<usize>)],
) -> Option<String> {
    // A model that cannot be run is not known well enough.
    let before = arch::spec_of(before).ok()?;
    let entry = |name: &str, shape: &[usize]| Entry {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        file: 0,
        start: 0,
        bytes: 4 * shape.iter().product::<usize>() as u64,
    };
    let mut entries: Vec<Entry> = weights.iter().map(|(name, shape)| entry(name, shape)).collect();
    entries.extend(constants.iter().map(|constant| entry(&constant.name, &[constant.values.len()])));
    let read = |entry: &Entry| -> Result<Vec<u8>> {
        let own = constants.iter().find(|constant| constant.name == entry.name);
        own.map(Constant::bytes).ok_or_else(|| Error::new(Kind::Bug, "no constant of the file"))
    };
    let after = config(metadata, &entries, std::path::Path::new(""), &read).ok()?;
    let after = match arch::spec_of(&after) {
        Ok(after) => after,
        Err(error) => return Some(format!("qmerge will not run the file: {}", error.message())),
    };
    let lost = differences(&before, &after);
    (!lost.is_empty()).then(|| {
        format!(
            "a GGUF file has no key for all that config.json says, and llama.cpp may run the model with other values: {}",
            lost.join(", ")
        )
    })
}

/// What differs, in words.
fn differences(before: &Spec, after: &Spec) -> Vec<&'static str> {
    fn attention(spec: &Spec) -> impl Iterator<Item = &Attention> {
        spec.layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => Some(attention),
            _ => None,
        })
    }
    let any = |differs: fn(&Attention, &Attention) -> bool| {
        attention(before).zip(attention(after)).any(|(one, other)| differs(one, other))
    };
    let experts = |spec: &Spec| -> Vec<String> {
        let routers = spec.layers.iter().map(|layer| match &layer.feed_forward {
            FeedForward::Routed(routed) => format!("{:?}", routed.router),
            FeedForward::Dense(_) => String::new(),
        });
        routers.collect()
    };
    // Factors on scores pass through f32, so that widths alone are held against each other.
    let latent = |spec: &Spec| -> Vec<_> {
        let widths = spec.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Latent(latent) => Some((latent.heads, latent.rank, latent.straight, latent.turned, latent.value)),
            _ => None,
        });
        widths.collect()
    };
    let feed_forwards = |spec: &Spec| -> Vec<_> {
        let widths = spec.layers.iter().map(|layer| match &layer.feed_forward {
            FeedForward::Dense(dense) => (dense.width, dense.activation),
            FeedForward::Routed(routed) => (routed.width, routed.activation),
        });
        widths.collect()
    };
    let close = |one: f32, other: f32| (one - other).abs() <= 1e-5 * one.abs();
    let same_caps = |one: Option<f32>, other: Option<f32>| match (one, other) {
        (Some(one), Some(other)) => close(one, other),
        (one, other) => one == other,
    };
    let scales = |spec: &Spec| [spec.embed_scale, spec.residual_scale, spec.logit_scale];
    let same_scales = scales(before).into_iter().zip(scales(after)).all(|(one, other)| close(one, other));
    let arrangement = |spec: &Spec| -> Vec<_> { spec.layers.iter().map(|layer| layer.order).collect() };
    let found = [
        ("the window of attention", any(|one, other| one.window != other.window)),
        ("the scale of queries", any(|one, other| (one.scale - other.scale).abs() > 1e-5 * one.scale.abs())),
        ("the width of a head", any(|one, other| one.head_dim != other.head_dim)),
        ("the rope of each layer", any(|one, other| one.rope != other.rope)),
        ("norms of queries and keys", any(|one, other| one.qk_norm != other.qk_norm)),
        ("latent attention", latent(before) != latent(after)),
        ("the width and the activation of a feed-forward", feed_forwards(before) != feed_forwards(after)),
        ("how far ropes turn", !same_ropes(before, after)),
        ("factors on embeddings, layers and logits", !same_scales),
        ("how the blocks of a layer stand to each other", arrangement(before) != arrangement(after)),
        ("how experts are chosen", experts(before) != experts(after)),
        ("the cap of logits", !same_caps(before.logit_cap, after.logit_cap)),
        ("the epsilon of norms", !close(before.eps, after.eps)),
    ];
    found.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

/// True if ropes turn by the same angles, at the lengths that models are asked for first.
fn same_ropes(before: &Spec, after: &Spec) -> bool {
    let close = |one: &f32, other: &f32| (one - other).abs() <= 1e-5 * one.abs();
    let same = |one: &Rope, other: &Rope| {
        let [own, others] = [one, other].map(|rope| rope.frequencies(SHORT));
        own.len() == others.len()
            && own.iter().zip(&others).all(|(one, other)| close(one, other))
            && close(&one.factor(), &other.factor())
            && one.interleaved == other.interleaved
    };
    before.ropes.len() == after.ropes.len()
        && before.ropes.iter().zip(&after.ropes).all(|(one, other)| same(one, other))
}

/// Tokens of a text that needs no stretched rope.
const SHORT: usize = 512;
