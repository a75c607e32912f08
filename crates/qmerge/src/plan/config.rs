//! What a merge or a conversion changes in `config.json`.

use serde_json::{Value, json};

use super::steps::ConfigChange;
use super::{Inputs, Options, classifier};
use crate::error::Result;
use crate::open::ModelConfig;

/// The output's configuration, or `None` if the base's serves unchanged. `own` is what an export has in its place.
pub(super) fn edited(
    inputs: &Inputs,
    options: &Options,
    own: Option<ModelConfig>,
    skipped: Option<&[String]>,
    change: &ConfigChange,
) -> Result<Option<ModelConfig>> {
    // What a GGUF file says of itself stays as it is: whether embeddings are tied follows from its tensors. One that is made says it in its keys.
    let is_apart = !inputs.base.is_self_contained() && options.export.is_none();
    let is_own = own.is_some();
    let Some(base) = own.or_else(|| inputs.base.config.clone().filter(|_| is_apart)) else { return Ok(None) };
    let mut config = base.clone();
    if change.untie {
        config.set_everywhere("tie_word_embeddings", &Value::Bool(false));
    }
    if let Some(tokens) = change.vocab_size {
        config.set_everywhere("vocab_size", &json!(tokens));
    }
    if let Some(labels) = &change.labels {
        classifier::describe(&mut config, labels);
    }
    classifier::skip(&mut config, &change.added);
    if let Some(to) = options.to {
        // Where other tools describe what is now stored otherwise.
        ["quantization", "compression_config"].iter().for_each(|key| config.remove_everywhere(key));
        to.describe(&mut config, &options.settings, skipped)?;
    }
    Ok((is_own || config.json != base.json).then_some(config))
}
