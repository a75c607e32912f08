//! Mixtral: Mistral with eight experts of which two serve a token.

use qmerge::error::Result;

use super::{Family, mistral};
use crate::fields::Fields;
use crate::spec::{Experts, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["mixtral"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = mistral::spec(fields)?;
    spec.layers.iter_mut().for_each(|layer| layer.experts = true);
    spec.experts = Some(Experts {
        count: fields.count("num_local_experts")?,
        per_token: fields.count("num_experts_per_tok")?,
        intermediate: spec.intermediate,
        normalize: true,
        modules: &["block_sparse_moe", "mlp"],
        names: ["w1", "w3", "w2"],
    });
    Ok(spec)
}
