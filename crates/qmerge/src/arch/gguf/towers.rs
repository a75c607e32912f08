//! Models that see or hear: a file holds their language model, and llama.cpp takes what else there is from a second file (mmproj).

use std::borrow::Cow;

use super::{Layout, mistral3, qwen_vl};
use crate::arch::{Fields, language_model, language_model_beside};
use crate::error::{Result, unsupported};
use crate::open::ModelConfig;

/// Models with towers of which a file is made.
struct Family {
    model_types: &'static [&'static str],
    /// Types that their language models may be of, with the layout of those that lie in a file otherwise than such a model alone.
    texts: &'static [(&'static str, Option<&'static Layout>)],
    /// The type of a language model whose fields stand among those of the whole, where there is no `text_config` (as Qwen 2 VL is published).
    beside: Option<&'static str>,
    /// A field of `vision_config` of which the file says something: what the tower adds to layers of the language model.
    of_tower: Option<&'static str>,
}

/// Says no more than the types.
const PLAIN: Family = Family { model_types: &[], texts: &[], beside: None, of_tower: None };

/// Language models of other families' models.
const LLAMA_OR_MISTRAL: [(&str, Option<&Layout>); 2] = [("llama", None), ("mistral", None)];
const LLAMA_TO_QWEN2: &[(&str, Option<&Layout>)] = &[LLAMA_OR_MISTRAL[0], LLAMA_OR_MISTRAL[1], ("qwen2", None)];

const FAMILIES: &[Family] = &[
    Family { model_types: &["gemma3"], texts: &[("gemma3_text", None)], ..PLAIN },
    Family { model_types: &["gemma3n"], texts: &[("gemma3n_text", None)], ..PLAIN },
    Family { model_types: &["gemma4"], texts: &[("gemma4_text", None)], ..PLAIN },
    Family { model_types: &["llama4"], texts: &[("llama4_text", None)], ..PLAIN },
    Family {
        model_types: &["mistral3"],
        texts: &[("mistral", Some(&mistral3::MISTRAL)), ("ministral3", None)],
        ..PLAIN
    },
    Family { model_types: &["qwen3_5"], texts: &[("qwen3_5_text", None)], ..PLAIN },
    Family { model_types: &["qwen3_5_moe"], texts: &[("qwen3_5_moe_text", None)], ..PLAIN },
    Family { model_types: &["qwen2_vl"], texts: &[("qwen2_vl_text", None)], beside: Some("qwen2_vl_text"), ..PLAIN },
    Family {
        model_types: &["qwen2_5_vl"],
        texts: &[("qwen2_5_vl_text", None)],
        beside: Some("qwen2_5_vl_text"),
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_vl"],
        texts: &[("qwen3_vl_text", None)],
        of_tower: Some(qwen_vl::DEEPSTACK),
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_vl_moe"],
        texts: &[("qwen3_vl_moe_text", None)],
        of_tower: Some(qwen_vl::DEEPSTACK),
        ..PLAIN
    },
    Family {
        model_types: &["llava", "llava_next", "llava_next_video", "llava_onevision"],
        texts: LLAMA_TO_QWEN2,
        ..PLAIN
    },
    Family {
        model_types: &["internvl"],
        texts: &[("llama", None), ("qwen2", None), ("qwen3", None), ("qwen3_moe", None)],
        ..PLAIN
    },
    Family { model_types: &["lfm2_vl"], texts: &[("lfm2", None), ("lfm2_moe", None)], ..PLAIN },
    Family { model_types: &["lighton_ocr"], texts: &[("qwen3", None)], ..PLAIN },
    Family { model_types: &["qwen2_audio"], texts: &[("qwen2", None)], ..PLAIN },
    Family { model_types: &["voxtral"], texts: &[("llama", None)], ..PLAIN },
    Family { model_types: &["glm4v_moe"], texts: &[("glm4v_moe_text", None)], ..PLAIN },
    Family { model_types: &["idefics3", "smolvlm"], texts: &LLAMA_OR_MISTRAL, ..PLAIN },
];

/// How paths of the language model begin beside towers, and alone.
const BEGINNINGS: &[(&str, &str)] = &[
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.text_model.", "model."),
];

/// Modules that are towers, or lead from one into the language model.
const TOWERS: &[&str] = &[
    "audio_tower",
    "connector",
    "embed_audio",
    "embed_vision",
    "image_newline",
    "multi_modal_projector",
    "vision_encoder",
    "vision_model",
    "vision_projection",
    "vision_tower",
    "visual",
];

/// The types of such models.
pub(super) fn types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.model_types).copied()
}

/// A path as the language model alone has it.
pub(crate) fn alone(name: &str) -> Cow<'_, str> {
    let begun = |(beside, alone): &(&str, &str)| Some(format!("{alone}{}", name.strip_prefix(beside)?));
    BEGINNINGS.iter().find_map(begun).map_or(Cow::Borrowed(name), Cow::Owned)
}

/// The configuration that a file is made from, and how the file has the model.
pub(crate) fn stored(config: &ModelConfig) -> Result<(Cow<'_, ModelConfig>, &'static Layout)> {
    let Some(family) = FAMILIES.iter().find(|family| family.model_types.contains(&config.model_type())) else {
        return Ok((Cow::Borrowed(config), Layout::of(config)?));
    };
    let stands_beside = family.beside.filter(|_| Fields::new(config).get("text_config").is_none());
    let own = match stands_beside {
        Some(text) => Cow::Owned(language_model_beside(config, text)),
        None => language_model(config)?,
    };
    let Some((_, layout)) = family.texts.iter().find(|(text, _)| *text == own.model_type()) else {
        let (whole, text) = (config.model_type(), own.model_type());
        let known: Vec<&str> = family.texts.iter().map(|(text, _)| *text).collect();
        return Err(unsupported(format!(
            "models of type `{whole}` around one of type `{text}` are not turned into GGUF"
        ))
        .in_file(&config.path)
        .with_hint(format!(
            "`text_config.model_type` may be {}; of another llama.cpp's convert_hf_to_gguf.py may make a file",
            known.join(" or ")
        )));
    };
    let layout = layout.map_or_else(|| Layout::of(&own), Ok)?;
    let tower = |field: &str| config.json.get("vision_config")?.get(field).cloned();
    let Some((field, value)) = family.of_tower.and_then(|field| Some((field, tower(field)?))) else {
        return Ok((own, layout));
    };
    let mut own = own.into_owned();
    own.json.insert(field.to_owned(), value);
    Ok((Cow::Owned(own), layout))
}

/// The tower of such a model that a tensor belongs to, or what leads from one.
pub(crate) fn tower(config: &ModelConfig, name: &str) -> Option<&'static str> {
    named(name).filter(|_| types().any(|model_type| model_type == config.model_type()))
}

/// The tower that a path names, of whatever model.
pub(crate) fn named(path: &str) -> Option<&'static str> {
    let first = path.strip_prefix("model.").unwrap_or(path).split('.').next()?;
    TOWERS.iter().copied().find(|tower| *tower == first)
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
            ("model.text_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ] {
            assert_eq!((alone(name).as_ref(), tower(&gemma, name)), (own, None));
        }
        for name in ["vision_tower.vision_model.head.probe", "model.vision_tower.head.probe"] {
            assert_eq!(tower(&gemma, name), Some("vision_tower"));
            assert_eq!(tower(&config(r#"{"model_type": "gemma3_text"}"#), name), None);
        }
        assert_eq!(tower(&gemma, "model.layers.0.vision_tower.weight"), None);
        let llava = config(r#"{"model_type": "llava_next"}"#);
        for name in ["image_newline", "model.image_newline"] {
            assert_eq!(tower(&llava, name), Some("image_newline"));
        }
    }

    #[test]
    fn a_language_model_that_no_file_holds_is_named() {
        let config = |text: &str| ModelConfig::parse(text.into(), "config.json".as_ref()).unwrap();
        for (text, said) in [
            (r#"{"model_type": "mistral4"}"#, "`mistral4`"),
            (r#"{"model_type": "llama"}"#, "`llama`"),
            ("{}", "`text_config.model_type`"),
            ("[]", "`text_config`"),
            ("null", "`text_config`"),
        ] {
            let mistral = config(&format!(r#"{{"model_type": "mistral3", "text_config": {text}}}"#));
            let error = stored(&mistral).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        // Fields of the language model among those of the whole, where there is no other place for them.
        let qwen = config(r#"{"model_type": "qwen2_vl", "hidden_size": 8, "text_config": null}"#);
        let (own, layout) = stored(&qwen).unwrap();
        assert_eq!((own.model_type(), layout.architecture()), ("qwen2_vl_text", "qwen2vl"));
        assert_eq!((own.json["hidden_size"].as_u64(), own.json["num_hidden_layers"].as_u64()), (Some(8), Some(80)));
        let gemma = config(r#"{"model_type": "gemma3", "hidden_size": 8}"#);
        assert!(stored(&gemma).unwrap_err().to_string().contains("`gemma3`"));
        let mistral = config(r#"{"model_type": "mistral3", "text_config": {"model_type": "mistral"}}"#);
        let (own, layout) = stored(&mistral).unwrap();
        assert_eq!((own.model_type(), layout.architecture()), ("mistral", "mistral3"));
    }
}
