//! Mixtral: Mistral with eight experts of which two serve a token; one matrix per expert, named w1 (gate), w3 (up), w2 (down).

use super::spec::{FeedForward, Routed, Spec};
use super::{Arch, Experts, Fields, Result, generic, mistral};

pub(super) const ARCH: Arch =
    Arch { model_types: &["mixtral"], experts: Some(EXPERTS), spec: Some(spec), ..generic::ARCH };

const EXPERTS: Experts =
    Experts { modules: &["mlp.experts", "block_sparse_moe.experts"], each: ["w1", "w3", "w2"], ..generic::EXPERTS };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mistral = mistral::read(fields)?;
    let routed = Routed {
        count: fields.count("num_local_experts")?,
        per_token: fields.count("num_experts_per_tok")?,
        width: mistral.feed_forward.width,
        activation: mistral.feed_forward.activation,
        layout: EXPERTS,
        router: "gate",
        normalize: true,
    };
    let mut spec = Spec::from(mistral);
    spec.layers.iter_mut().for_each(|layer| layer.feed_forward = FeedForward::Routed(routed));
    Ok(spec)
}
