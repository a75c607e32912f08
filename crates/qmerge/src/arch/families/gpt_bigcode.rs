//! StarCoder's first release: GPT-2 with one key for all queries, and linear layers as others have them.

use super::spec::Spec;
use super::{Arch, Fields, Result, generic, gpt2};

pub(super) const ARCH: Arch =
    Arch { model_types: &["gpt_bigcode"], transposed: generic::ARCH.transposed, spec: Some(spec), ..gpt2::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    // Heads with keys of their own lie in another order.
    if !fields.flag("multi_query", true)? {
        return Err(fields.unsupported("multi_query", &false.into()));
    }
    Ok(gpt2::read(fields, 1)?.into())
}
