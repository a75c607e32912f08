//! `adapter_config.json`: the fields that all methods have, and typed access to those of each.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::patterns;
use crate::error::{Error, Result, malformed, unsupported};
use crate::open;

/// What configurations of all methods have. Fields that are missing take PEFT's defaults; those of a method are read by it, out of `json`.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// Where it was read.
    pub path: PathBuf,
    /// The whole document.
    pub json: Map<String, Value>,
    /// Method ("LORA").
    pub peft_type: String,
    /// The base stores weights as (in, out).
    pub fan_in_fan_out: bool,
    /// Modules trained whole.
    pub modules_to_save: Vec<String>,
    /// Parameters targeted by name (experts).
    pub target_parameters: Vec<String>,
    /// Modules targeted, where given as a list.
    pub target_modules: Vec<String>,
    /// Input and output embedding share the adapter: `ensure_weight_tying`, where PEFT heeds it.
    pub ensure_weight_tying: bool,
    /// What the model was trained to do ("SEQ_CLS").
    pub task_type: Option<String>,
    /// The class of the model that was trained, which PEFT writes where no task is given ("ViTForImageClassification").
    pub trained_class: Option<String>,
    /// Base model the adapter was trained on, as it says.
    pub base_model: Option<String>,
}

impl AdapterConfig {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = open::read_small_text(path, open::MAX_CONFIG)?;
        parse(&text, path).map_err(|error| error.in_file(path))
    }

    /// The classification that the adapter was trained for, if it is one.
    pub fn task(&self) -> Option<Task> {
        match self.task_type.as_deref() {
            Some(task_type) => Task::of(task_type),
            None => Task::of_class(self.trained_class.as_deref()?),
        }
    }

    /// True if the field is set: neither missing, nor null, false or empty.
    pub fn is_set(&self, key: &str) -> bool {
        match self.json.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(items)) => !items.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        }
    }

    /// Fields that are set and are neither everyone's nor one of `own`: they may change what the adapter means.
    pub(super) fn unknown(&self, own: &[&str]) -> impl Iterator<Item = &str> {
        let known = |key: &str| EVERYONES.contains(&key) || own.contains(&key);
        self.json.keys().map(String::as_str).filter(move |key| !known(key) && self.is_set(key))
    }

    /// Errors if there is one.
    pub(super) fn refuse_unknown(&self, own: &[&str]) -> Result<()> {
        match self.unknown(own).next() {
            None => Ok(()),
            Some(key) => Err(unsupported(format!(
                "`{key}` is set, which is no field of a {} adapter that this version knows: it may change what the adapter means",
                self.peft_type
            ))
            .with_hint("if it matters in training only, take it out of adapter_config.json")),
        }
    }

    /// Typed access to the document.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields(&self.json)
    }

    /// True if `target_parameters` names the parameter at `path`: all of it, or its end from a dot on.
    pub fn targets_parameter(&self, path: &str) -> bool {
        self.target_parameters.iter().any(|target| {
            path.strip_suffix(target.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

/// Fields that adapters of all methods may have: read here, or without a meaning for who merges.
const EVERYONES: &[&str] = &[
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "runtime_config",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "bias",
    "init_weights",
];

/// Tasks for which a head is trained that the base does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A label for a text ("SEQ_CLS").
    Sequence,
    /// A label for each token ("TOKEN_CLS").
    Token,
    /// Where an answer begins and ends ("QUESTION_ANS").
    Answer,
    /// What the class of that name does, which no task of PEFT's stands for: labels for images, pixels or sounds.
    Class(String),
}

impl Task {
    /// Ends of names of classes that have such a head.
    const CLASSES: &[&str] = &["Classification", "Segmentation", "ObjectDetection", "QuestionAnswering"];

    fn of(task_type: &str) -> Option<Self> {
        match task_type {
            "SEQ_CLS" => Some(Self::Sequence),
            "TOKEN_CLS" => Some(Self::Token),
            "QUESTION_ANS" => Some(Self::Answer),
            _ => None,
        }
    }

    /// That of a class of transformers, if it has a head.
    pub(crate) fn of_class(class: &str) -> Option<Self> {
        Self::CLASSES.iter().any(|end| class.ends_with(end)).then(|| Self::Class(class.to_owned()))
    }

    /// What PEFT calls it, if it has a name for it.
    pub(crate) fn task_type(&self) -> Option<&'static str> {
        let is_it = |task_type: &&str| Self::of(task_type).is_some_and(|task| self.class().ends_with(task.class()));
        ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"].into_iter().find(is_it)
    }

    /// True for the modules that PEFT trains whole without being told.
    pub(super) fn is_head(&self, module: &str) -> bool {
        match self {
            Self::Sequence | Self::Token => matches!(module.split('.').next(), Some("classifier" | "score")),
            Self::Answer => module == "qa_outputs",
            Self::Class(_) => false,
        }
    }

    /// True if the head's rows are labels that `config.json` names.
    pub(crate) fn has_labels(&self) -> bool {
        !matches!(self, Self::Answer)
    }

    /// What transformers' class for the task is called behind the family's name; all of its name where that is known.
    pub(crate) fn class(&self) -> &str {
        match self {
            Self::Sequence => "ForSequenceClassification",
            Self::Token => "ForTokenClassification",
            Self::Answer => "ForQuestionAnswering",
            Self::Class(class) => class,
        }
    }
}

/// Parses the document. `path` is remembered, not read.
pub(crate) fn parse(text: &str, path: &Path) -> Result<AdapterConfig> {
    of_json(object(text)?, path)
}

/// Parses a JSON object.
pub(super) fn object(text: &str) -> Result<Map<String, Value>> {
    open::json::parse_object(text).map_err(|error| malformed(format!("not a JSON object: {error}")))
}

/// Takes a document for a configuration. `path` is remembered, not read.
pub(super) fn of_json(json: Map<String, Value>, path: &Path) -> Result<AdapterConfig> {
    let fields = Fields(&json);
    let peft_type =
        fields.text("peft_type")?.ok_or_else(|| malformed("no `peft_type`: not an adapter's configuration"))?;
    let modules_to_save = fields.texts("modules_to_save")?;
    let ensure_weight_tying = fields.flag("ensure_weight_tying")? && names_embedding(&json, &modules_to_save);
    Ok(AdapterConfig {
        path: path.to_path_buf(),
        peft_type,
        fan_in_fan_out: fields.flag("fan_in_fan_out")?,
        modules_to_save,
        target_parameters: fields.texts("target_parameters")?,
        target_modules: match json.get("target_modules") {
            Some(Value::String(_)) => Vec::new(),
            _ => fields.texts("target_modules")?,
        },
        ensure_weight_tying,
        task_type: json.get("task_type").and_then(Value::as_str).map(str::to_owned),
        trained_class: json
            .get("auto_mapping")
            .and_then(|mapping| mapping.get("base_model_class")?.as_str())
            .map(str::to_owned),
        base_model: fields.text("base_model_name_or_path")?.filter(|name| !name.is_empty()),
        json,
    })
}

/// True where what is trained of an embedding is called as PEFT knows embeddings. `ensure_weight_tying` ties nothing else, whatever the model ties: not GPT-2's `wte`.
///
/// Source: PEFT 0.21, `tuners/tuners_utils.py`, `_check_tied_modules`.
fn names_embedding(json: &Map<String, Value>, modules_to_save: &[String]) -> bool {
    const EMBEDDINGS: [&str; 2] = ["embed_tokens", "lm_head"];
    let is_embedding = |path: &str| path.rsplit('.').next().is_some_and(|last| EMBEDDINGS.contains(&last));
    let is_targeted = match json.get("target_modules") {
        Some(Value::String(expression)) => patterns::whole(expression)
            .is_ok_and(|regex| EMBEDDINGS.iter().any(|name| regex.is_match(name).unwrap_or(false))),
        Some(Value::Array(targets)) => targets.iter().filter_map(Value::as_str).any(is_embedding),
        _ => false,
    };
    is_targeted || modules_to_save.iter().any(|path| is_embedding(path))
}

/// Typed access; null counts as missing.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, want: &str, value: &Value) -> Error {
        malformed(format!("`{key}` is {value}, expected {want}"))
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        self.get(key)
            .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| Self::wrong(key, "a string", value)))
            .transpose()
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| number(value).ok_or_else(|| Self::wrong(key, "a number", value))).transpose()
    }

    /// A whole number from `least` on.
    pub(super) fn count(&self, key: &str, least: usize, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_u64().filter(|number| *number >= least as u64 && *number <= 1 << 32);
        number
            .map(|number| number as usize)
            .ok_or_else(|| Self::wrong(key, &format!("a whole number from {least} on"), value))
    }

    /// True or false, with a default where it is missing.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_none() { Ok(default) } else { self.flag(key) }
    }

    /// True or false; false where it is missing.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| Self::wrong(key, "true or false", value)))
    }

    /// A list of strings; one string is a list of itself.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let items = match value {
            Value::String(one) => return Ok(vec![one.clone()]),
            Value::Array(items) => items,
            _ => return Err(Self::wrong(key, "a list of strings", value)),
        };
        items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| Self::wrong(key, "a list of strings", value)))
            .collect()
    }

    /// Numbers by pattern, in the order of the file.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<(String, f64)>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let map = value.as_object().ok_or_else(|| Self::wrong(key, "an object of numbers", value))?;
        map.iter()
            .map(|(pattern, value)| {
                number(value)
                    .map(|number| (pattern.clone(), number))
                    .ok_or_else(|| Self::wrong(key, "an object of numbers", value))
            })
            .collect()
    }
}

/// A finite number: Python's JSON knows `NaN` and `Infinity`, and any JSON `1e999`.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_targeted_by_the_end_of_their_path() {
        let text = r#"{"peft_type": "LORA", "target_parameters": ["experts.gate_up_proj", "down_proj"]}"#;
        let config = parse(text, Path::new("x")).unwrap();
        for path in ["layers.0.mlp.experts.gate_up_proj", "experts.gate_up_proj", "layers.0.mlp.experts.down_proj"] {
            assert!(config.targets_parameter(path), "{path}");
        }
        for path in ["shared_experts.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj.weight", "mlp.up_down_proj"] {
            assert!(!config.targets_parameter(path), "{path}");
        }
    }

    #[test]
    fn wrong_types_are_named() {
        for (text, field) in [
            (r#"{"peft_type": 3}"#, "peft_type"),
            (r#"{"r": 4}"#, "peft_type"),
            (r#"{"peft_type": "LORA", "fan_in_fan_out": 1}"#, "fan_in_fan_out"),
            ("[]", "JSON object"),
        ] {
            let error = parse(text, Path::new("x")).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
