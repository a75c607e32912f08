//! Mixtral: Mistral with eight experts of which two serve a token; one matrix per expert, named w1 (gate), w3 (up), w2 (down).

use super::spec::{Activation, Routed, Router, Scores, Spec};
use super::{Arch, Experts, Fields, Result, generic, mistral};

pub(super) const ARCH: Arch =
    Arch { model_types: &["mixtral"], experts: Some(EXPERTS), spec: Some(spec), ..generic::ARCH };

pub(super) const EXPERTS: Experts =
    Experts { modules: &["mlp.experts", "block_sparse_moe.experts"], each: &["w1", "w3", "w2"], ..generic::EXPERTS };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mistral = mistral::read(fields)?;
    Ok(mistral.with_experts(read(fields)?, |_| true))
}

/// Experts under Mixtral's names, as wide as the configuration's feed-forward.
pub(super) fn read(fields: &Fields<'_>) -> Result<Routed> {
    Ok(Routed {
        router: Router {
            count: fields.count("num_local_experts")?,
            per_token: fields.count("num_experts_per_tok")?,
            name: "gate",
            scores: Scores::Softmax,
            correction: None,
            groups: None,
            normalize: Some(0.0),
            scale: 1.0,
        },
        width: fields.count("intermediate_size")?,
        activation: Activation::read(fields, "hidden_act")?,
        clamp: None,
        layout: EXPERTS,
        share_inputs: false,
        shared: None,
        beside: None,
    })
}
