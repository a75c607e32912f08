//! Families of decoders: one file each, which states what differs from Llama, and one line in [`FAMILIES`].

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

mod gemma2;
mod gemma3;
mod gpt2;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Checkpoint, ModelConfig};

use crate::fields::Fields;
use crate::spec::Spec;

/// One family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` values of `config.json`.
    pub model_types: &'static [&'static str],
    /// Reads the configuration.
    pub spec: fn(&Fields<'_>) -> Result<Spec>,
}

/// Every family that can be run.
pub static FAMILIES: &[Family] = &[
    gemma2::FAMILY,
    gemma3::FAMILY,
    gpt2::FAMILY,
    granite::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    olmo2::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    smollm3::FAMILY,
];

/// The configuration of a model that is to run. Errors if the checkpoint has none.
pub fn config(checkpoint: &Checkpoint) -> Result<&ModelConfig> {
    checkpoint.config.as_ref().ok_or_else(|| {
        Error::new(Kind::Malformed, "no config.json: the kind of model is unknown")
            .in_file(&checkpoint.path)
            .with_hint("copy it from where the model was published")
    })
}

/// The spec of a model. Errors if its family is not known, and lists those that are.
pub fn spec(config: &ModelConfig) -> Result<Spec> {
    let model_type = config.model_type();
    let Some(family) = FAMILIES.iter().find(|family| family.model_types.contains(&model_type)) else {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        let problem = match model_type {
            "" => "`model_type` is missing".to_owned(),
            _ => format!("models of type `{model_type}` cannot be run"),
        };
        return Err(Error::new(Kind::Unsupported, problem)
            .in_file(&config.path)
            .with_hint(format!("types that can: {}", known.join(", "))));
    };
    let fields = Fields::new(config);
    let spec = (family.spec)(&fields).map_err(|error| error.in_file(&config.path))?;
    spec.check(&fields)?;
    Ok(spec)
}
