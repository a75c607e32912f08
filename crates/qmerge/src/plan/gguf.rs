//! What cannot be said in a GGUF file that keeps the keys of its base.

use super::export::FOLDER;
use super::steps::ConfigChange;
use super::{Inputs, Options};
use crate::arch::gguf::File;
use crate::error::{Result, unsupported};

/// Refuses changes of the configuration that a GGUF base cannot take.
pub(super) fn refuse(inputs: &Inputs, options: &Options, change: &ConfigChange) -> Result<()> {
    let base = &inputs.base;
    let Ok(Some(file)) = File::of(base) else { return Ok(()) };
    // A folder that is made of it has room for all of these.
    if options.export.is_some_and(|export| export.id() == FOLDER.id()) {
        return Ok(());
    }
    let original = "merge into the safetensors checkpoint that it was made from";
    let problem = if change.vocab_size.is_some() {
        let problem = "the adapter changes the number of tokens, and the vocabulary of a GGUF file lies in its keys";
        let hint = format!("{original}, with --to and a type of GGUF, as --to q4_k_m");
        return Err(unsupported(problem).in_file(&base.path).with_hint(hint));
    } else if change.labels.is_some() || !change.added.is_empty() {
        "the adapter brings layers that the model does not have, which a GGUF file has no names for"
    } else if change.untie && !file.has_head() {
        "the adapter parts the embeddings, and llama.cpp takes those of this architecture for one tensor"
    } else {
        return Ok(());
    };
    Err(unsupported(problem).in_file(&base.path).with_hint(original))
}
