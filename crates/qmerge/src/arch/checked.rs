//! Families whose linear layers were held against transformers' loader.

/// `model_type`s between spaces: those of `testdata/loaders.jsonl`, as a test says.
const CHECKED: &str = "llama";

/// True if a test holds what is quantized in models of that type to what the loader replaces.
pub(crate) fn is_checked(model_type: &str) -> bool {
    CHECKED.split(' ').any(|family| family == model_type)
}
