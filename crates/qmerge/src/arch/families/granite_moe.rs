//! Granite MoE: Granite with experts stacked as (experts, out, in) under their own names, and one that serves all tokens where it has a width.

use super::spec::{Attention, Dense, Matrices, Mixer, Shared, Spec};
use super::{Arch, Experts, Fields, Result, generic, granite, mixtral};

pub(super) const ARCH: Arch = Arch { model_types: &["granitemoe", "granitemoeshared"], spec: Some(spec), ..HYBRID };

/// Granite 4. State-space layers are not run.
pub(super) const HYBRID: Arch =
    Arch { model_types: &["granitemoehybrid"], experts: Some(EXPERTS), spec: Some(hybrid), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["block_sparse_moe.experts", "block_sparse_moe"],
    stacked: ["input_linear.weight", "output_linear.weight"],
    router: "router",
    ..generic::EXPERTS
};

const SHARED: Matrices = Matrices::FusedGated { names: ["shared_mlp.input_linear", "shared_mlp.output_linear"] };

/// Attention in all layers, with experts or with what serves all tokens alone.
fn hybrid(fields: &Fields<'_>) -> Result<Spec> {
    let layers = fields.layers("num_hidden_layers")?;
    let types = fields.by_layer("layer_types", layers)?.ok_or_else(|| fields.missing("layer_types"))?;
    if let Some(other) = types.iter().find(|kind| **kind != "attention" && **kind != "full_attention") {
        return Err(fields.unsupported("layer_types", other));
    }
    if fields.count_if("num_local_experts")? != Some(0) {
        let mut spec = spec(fields)?;
        turn(
            fields,
            spec.layers.iter_mut().filter_map(|layer| match &mut layer.mixer {
                Mixer::Attention(attention) => Some(attention),
                _ => None,
            }),
        );
        return Ok(spec);
    }
    let mut granite = granite::read_sized(fields, fields.count("shared_intermediate_size")?)?;
    granite.feed_forward.matrices = SHARED;
    turn(fields, &mut granite.attention);
    Ok(granite.into())
}

/// Takes the ropes away where positions are known by the state-space layers alone.
fn turn<'a>(fields: &Fields<'_>, attention: impl IntoIterator<Item = &'a mut Attention>) {
    if fields.get("position_embedding_type").is_none_or(|kind| kind != "rope") {
        attention.into_iter().for_each(|attention| attention.rope = None);
    }
}

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let granite = granite::read(fields)?;
    let mut routed = mixtral::read(fields)?;
    (routed.layout, routed.router.name) = (EXPERTS, "router.layer");
    let matrices = SHARED;
    let width = fields.count_if("shared_intermediate_size")?.filter(|width| *width > 0);
    let shared = |width| Dense { width, matrices, ..granite.feed_forward };
    routed.shared = width.map(|width| Shared { dense: shared(width), gate: None });
    Ok(granite.with_experts(routed, |_| true))
}
