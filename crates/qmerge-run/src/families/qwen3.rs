//! Qwen 3: Qwen 2 with norms over each head's queries and keys.

use qmerge::error::Result;

use super::{Family, qwen2};
use crate::fields::Fields;
use crate::spec::{QkNorm, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["qwen3"], spec };

pub(super) fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(Spec { qk_norm: QkNorm::PerHead, ..qwen2::spec(fields)? })
}
