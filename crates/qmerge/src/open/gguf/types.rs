//! The numbers of ggml's element types.

use crate::dtype::Dtype;
use crate::error::{Result, malformed, unsupported};

/// Numbers of types that ggml gave up.
const RETIRED: &[u32] = &[4, 5, 31, 32, 33, 36, 37, 38];

/// The type of that number.
pub(super) fn dtype(number: u32) -> Result<Dtype> {
    match Dtype::from_ggml_id(number) {
        Some(dtype) => Ok(dtype),
        None if RETIRED.contains(&number) => {
            Err(unsupported(format!("stored in type {number} of ggml, which llama.cpp gave up"))
                .with_hint("quantize the model anew with a current llama.cpp"))
        }
        None if number < 64 => {
            Err(unsupported(format!("stored in type {number} of ggml, which this version does not read"))
                .with_hint("take the model in another quantization"))
        }
        None => Err(malformed(format!("type {number}, which ggml does not have")).with_hint(super::BROKEN)),
    }
}
