//! Models that see or hear: a file holds their language model, and llama.cpp takes what else there is from a second file (mmproj).

use std::borrow::Cow;

use super::{Layout, mistral3};
use crate::arch::language_model;
use crate::error::Result;
use crate::open::ModelConfig;

/// Types of models with towers, and of the language models in them that a file holds as it does such a model alone, or by a layout of their own.
const TYPES: &[(&str, &[(&str, Option<&Layout>)])] = &[
    ("gemma3", &[("gemma3_text", None)]),
    ("gemma3n", &[("gemma3n_text", None)]),
    ("gemma4", &[("gemma4_text", None)]),
    ("llama4", &[("llama4_text", None)]),
    ("mistral3", &[("mistral", Some(&mistral3::MISTRAL)), ("ministral3", None)]),
    ("qwen3_5", &[("qwen3_5_text", None)]),
    ("qwen3_5_moe", &[("qwen3_5_moe_text", None)]),
];

/// How paths of the language model begin beside towers, and alone.
const BEGINNINGS: &[(&str, &str)] = &[
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
];

/// Modules that are towers, or lead from one into the language model.
const TOWERS: &[&str] =
    &["audio_tower", "embed_audio", "embed_vision", "multi_modal_projector", "vision_model", "vision_tower", "visual"];

/// The types of models with towers of which a file is made.
pub(crate) fn types() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(model_type, _)| *model_type)
}

/// A path as the language model alone has it.
pub(super) fn alone(name: &str) -> Cow<'_, str> {
    let begun = |(beside, alone): &(&str, &str)| Some(format!("{alone}{}", name.strip_prefix(beside)?));
    BEGINNINGS.iter().find_map(begun).map_or(Cow::Borrowed(name), Cow::Owned)
}

/// The configuration that a file is made from, and how the file has the model.
pub(crate) fn stored(config: &ModelConfig) -> Result<(Cow<'_, ModelConfig>, &'static Layout)> {
    let Some((_, texts)) = TYPES.iter().find(|(model_type, _)| *model_type == config.model_type()) else {
        return Ok((Cow::Borrowed(config), Layout::of(config)?));
    };
    let own = language_model(config)?;
    let (_, layout) = texts.iter().find(|(text, _)| *text == own.model_type()).copied().unwrap_or_default();
    let layout = layout.map_or_else(|| Layout::of(&own), Ok)?;
    Ok((own, layout))
}

/// The tower of such a model that a tensor belongs to, or what leads from one.
pub(crate) fn tower(config: &ModelConfig, name: &str) -> Option<&'static str> {
    let first = name.strip_prefix("model.").unwrap_or(name).split('.').next()?;
    let own = types().any(|model_type| model_type == config.model_type());
    TOWERS.iter().copied().find(|tower| own && *tower == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_releases_are_told_apart() {
        let config = |text: &str| ModelConfig::parse(text.into(), "config.json".as_ref()).unwrap();
        let gemma = config(r#"{"model_type": "gemma3"}"#);
        for (name, own) in [
            ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ] {
            assert_eq!((alone(name).as_ref(), tower(&gemma, name)), (own, None));
        }
        for name in ["vision_tower.vision_model.head.probe", "model.vision_tower.head.probe"] {
            assert_eq!(tower(&gemma, name), Some("vision_tower"));
            assert_eq!(tower(&config(r#"{"model_type": "gemma3_text"}"#), name), None);
        }
        assert_eq!(tower(&gemma, "model.layers.0.vision_tower.weight"), None);
    }

    #[test]
    fn a_language_model_that_no_file_holds_is_named() {
        let config = |text: &str| ModelConfig::parse(text.into(), "config.json".as_ref()).unwrap();
        let error = stored(&config(r#"{"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}"#));
        assert!(error.unwrap_err().to_string().contains("`mistral4`"));
        let (own, layout) = stored(&config(r#"{"model_type": "mistral3", "text_config": {"model_type": "mistral"}}"#))
            .map(|(own, layout)| (own.into_owned(), layout))
            .unwrap();
        assert_eq!((own.model_type(), layout.architecture()), ("mistral", "mistral3"));
    }
}
