//! Out of a GGUF file, into a folder that transformers loads: weights under the model's names, and what the keys say as `config.json` and tokenizer.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Destination, Export, Exported, Model};
use crate::arch;
use crate::arch::gguf::{Layout, View, is_rope};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, unsupported};
use crate::formats::{self, Claim};
use crate::open::safetensors::Safetensors;
use crate::open::{Checkpoint, MAX_TOKENIZER, ModelConfig, TOKENIZER_FILES, TokenizerKeys, read_tokenizer};
use crate::plan::{Tokenizer, fits};

/// Any format of safetensors.
#[derive(Debug)]
struct Folder;

/// The export of a GGUF base that takes another format.
pub(in crate::plan) const FOLDER: &dyn Export = &Folder;

impl Export for Folder {
    fn id(&self) -> &'static str {
        "folder"
    }

    fn about(&self) -> &'static str {
        "a folder of safetensors"
    }

    fn ending(&self) -> &'static str {
        ".safetensors"
    }

    /// The format that was asked for says so.
    fn quantizes(&self) -> bool {
        false
    }

    fn export(&self, model: &Model<'_, '_>) -> Result<Exported> {
        let base = &model.inputs.base;
        let format = model.options.to.ok_or_else(|| Error::new(Kind::Bug, "no format of a folder was asked for"))?;
        let plain = formats::of_dtype(Dtype::BF16)?;
        if base.is_self_contained() {
            fits::refuse_further_layers(base, &model.inputs.inventory.weights)?;
        }
        let mut places = HashMap::new();
        for (name, _) in model.weights {
            let claim = model.names.exact(name);
            let place = match claim {
                _ if model.predicts_further(name) => Destination::Nowhere,
                // What has no name in the model has none in GGUF's sense either: it is a part of the rope.
                Some(claim) if claim.weight.view().is_none() && is_rope(name) => Destination::Nowhere,
                Some(claim) if claim.weight.view().is_none() => {
                    return Err(nameless("a tensor", base).in_tensor(name));
                }
                _ => {
                    let takes =
                        !format.quantizes() || claim.is_some_and(|claim| model.quantized.takes(claim.weight.as_ref()));
                    let format = if takes { format } else { plain };
                    Destination::Tensor {
                        view: claim.and_then(|claim| as_family(model, claim)),
                        format,
                        importance: None,
                        others: Vec::new(),
                    }
                }
            };
            places.insert(name.clone(), place);
        }
        if let Some(entry) = model.inputs.inventory.opaque.iter().filter_map(|&at| base.entries.get(at)).next() {
            return Err(nameless(&format!("a tensor of {}", entry.dtype), base).in_tensor(&entry.name));
        }
        let mut warnings: Vec<String> = model.says_what_is_left_out().into_iter().collect();
        Ok(Exported {
            places,
            constants: Vec::new(),
            copies_rest: false,
            file: "model.safetensors".to_owned(),
            container: Arc::new(Safetensors),
            metadata: vec![("format".to_owned(), "pt".to_owned())],
            order: None,
            config: Some(config(model)?),
            beside: tokenizer(model, &mut warnings)?,
            warnings,
        })
    }
}

/// That the file holds what its architecture is not known to have.
fn nameless(what: &str, base: &Checkpoint) -> Error {
    let architecture = base.gguf.as_ref().map_or("", |metadata| metadata.architecture());
    let problem = format!(
        "{what} that has no name in the model: files of the architecture `{architecture}` are not known to have it"
    );
    unsupported(problem).in_file(&base.path).with_hint(
        "take the safetensors checkpoint that the file was made from, or leave out --to: a GGUF file keeps what is not known of it",
    )
}

/// A stack of matrices as the family has it, where that has inputs as rows.
fn as_family(model: &Model<'_, '_>, claim: &Claim) -> Option<View> {
    let weight = &claim.weight;
    let in_out = model.names.stacks_inputs_as_rows() && !weight.has_family_order();
    View::of_turned_stack(weight.name(), weight.shape()).filter(|_| in_out)
}

/// The configuration that the keys describe, with what a loader of a folder has to be told.
fn config(model: &Model<'_, '_>) -> Result<ModelConfig> {
    let base = &model.inputs.base;
    let mut config = arch::config(base)?.clone();
    if let Some(key) = &config.unread {
        return Err(unsupported(format!("the key `{key}` is not understood, so no config.json says the same"))
            .in_file(&base.path)
            .with_hint("take the model's own folder from where it was published"));
    }
    let layout = Layout::of(&config)?;
    let mut json = Map::new();
    json.insert("architectures".into(), json!([layout.class()]));
    // The name of another file than this.
    json.extend(std::mem::take(&mut config.json).into_iter().filter(|(key, _)| key != "_name_or_path"));
    json.insert("dtype".into(), json!(Dtype::BF16.torch_name()));
    let has = |end: &str| model.weights.iter().any(|(name, _)| name.ends_with(end));
    for (field, end) in [(layout.bias_field(), "self_attn.q_proj.bias"), (Some("mlp_bias"), "mlp.up_proj.bias")] {
        if let Some(field) = field.filter(|_| has(end)) {
            json.insert(field.into(), json!(true));
        }
    }
    let original = json.get("rope_scaling").and_then(|rope| rope.get("original_max_position_embeddings").cloned());
    if let Some(original) = original.filter(|_| layout.repeats_positions()) {
        json.insert("original_max_position_embeddings".into(), original);
    }
    config.json = json;
    if let Some(rope) = llama3(layout, &config)? {
        config.json.insert("rope_scaling".into(), rope);
    }
    Ok(config)
}

/// Llama 3's rope, which lies in a file as factors: the few numbers that they were made of, if these make them.
fn llama3(layout: &Layout, config: &ModelConfig) -> Result<Option<Value>> {
    let numbers = |key: &str| -> Option<Vec<f64>> {
        config.json.get("rope_scaling")?.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
    };
    let (Some(factors), true) = (numbers("short_factor"), numbers("short_factor") == numbers("long_factor")) else {
        return Ok(None);
    };
    let most = factors.iter().copied().fold(0.0, f64::max);
    let rope = json!({ "rope_type": "llama3", "factor": most, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 8192 });
    let mut tried = config.clone();
    tried.json.insert("rope_scaling".into(), rope.clone());
    let made = layout.said(&tried, 1, 0)?.constants;
    let same = made.first().is_some_and(|made| {
        made.values.len() == factors.len()
            && made
                .values
                .iter()
                .zip(&factors)
                .all(|(own, given)| (f64::from(*own) - given).abs() <= 1e-5 * given.abs())
    });
    Ok(same.then_some(rope))
}

/// The tokenizer's files: an adapter's own, or what the keys say.
fn tokenizer(model: &Model<'_, '_>, warnings: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    let base = &model.inputs.base;
    let mut adapters = model.inputs.adapters.iter().map(|adapter| &*adapter.tensors.store);
    let own = adapters.find(|store| model.options.tokenizer == Tokenizer::Adapter && store.has("tokenizer.json"));
    if let Some(store) = own {
        let file = |name: &&str| store.small(name, MAX_TOKENIZER).map(|bytes| Some(((*name).to_owned(), bytes?)));
        return TOKENIZER_FILES.iter().filter_map(|name| file(name).transpose()).collect();
    }
    let Some(metadata) = base.gguf.as_deref() else { return Ok(Vec::new()) };
    let said = match read_tokenizer(metadata) {
        Ok(said) => said,
        Err(error) => {
            warnings.push(format!(
                "no tokenizer is written: {}; copy tokenizer.json and tokenizer_config.json of the model into the output",
                error.message()
            ));
            return Ok(Vec::new());
        }
    };
    let TokenizerKeys { mut tokenizer, begin, stop, special, template } = said;
    let text = |kind: &str| special.iter().find(|(own, _)| *own == kind).map(|(_, text)| text.clone());
    if let (Some(id), Some(bos)) = (begin.first(), text("bos_token")) {
        let beginning = json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                     { "SpecialToken": { "id": bos, "type_id": 1 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { bos.as_str(): { "id": bos, "ids": [id], "tokens": [bos] } },
        });
        tokenizer.as_object_mut().map(|tokenizer| tokenizer.insert("post_processor".into(), beginning));
    }
    let mut about = Map::new();
    about.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    about.insert("clean_up_tokenization_spaces".into(), json!(false));
    special.iter().for_each(|(kind, text)| drop(about.insert((*kind).to_owned(), json!(text))));
    let pretty = |value: &Value| (serde_json::to_string_pretty(value).unwrap_or_default() + "\n").into_bytes();
    let mut files = vec![
        ("tokenizer.json".to_owned(), serde_json::to_vec(&tokenizer).unwrap_or_default()),
        ("tokenizer_config.json".to_owned(), pretty(&Value::Object(about))),
    ];
    if let Some(template) = template {
        files.push(("chat_template.jinja".to_owned(), template.into_bytes()));
    }
    if !stop.is_empty() {
        let mut generation = Map::from_iter([("eos_token_id".to_owned(), json!(stop))]);
        begin.first().map(|id| generation.insert("bos_token_id".into(), json!(id)));
        files.push(("generation_config.json".to_owned(), pretty(&Value::Object(generation))));
    }
    Ok(files)
}
