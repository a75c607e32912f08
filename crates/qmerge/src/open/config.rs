//! `config.json`: read for what a merge must know, rewritten only where a merge changes it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{MAX_CONFIG, json, read_small_text};
use crate::error::{Result, malformed};

/// A model's `config.json`.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Where it was read: the file, or a GGUF file whose keys say the same.
    pub path: PathBuf,
    /// The text as read, for copying it unchanged.
    pub text: String,
    /// The parsed document, keys in file order.
    pub json: Map<String, Value>,
    /// True for what the keys of a GGUF file say.
    pub(crate) is_of_gguf: bool,
    /// A key of a GGUF file that is not understood: the model would be run in another way than it is meant to.
    pub(crate) unread: Option<String>,
}

/// Sub-configurations in which composite models keep their language model's fields.
const NESTED: &[&str] = &["text_config", "llm_config", "language_config", "thinker_config", "decoder"];

impl ModelConfig {
    /// Reads and parses the file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(read_small_text(path, MAX_CONFIG)?, path)
    }

    /// Parses the text of a file; the path is for messages.
    pub fn parse(text: String, path: &Path) -> Result<Self> {
        let json = json::parse_object(&text)
            .map_err(|error| malformed(format!("not a JSON object: {error}")).in_file(path))?;
        Ok(Self { path: path.to_path_buf(), text, json, is_of_gguf: false, unread: None })
    }

    /// What the keys of a GGUF file say.
    pub(super) fn of_gguf(json: Map<String, Value>, file: &Path, unread: Option<String>) -> Self {
        let text = Value::Object(json.clone()).to_string();
        Self { path: file.to_path_buf(), text, json, is_of_gguf: true, unread }
    }

    /// What can be done where it is broken.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.is_of_gguf {
            "take another GGUF file of the model"
        } else {
            "copy config.json again from where the model was published"
        }
    }

    /// `model_type`, the family's name in transformers ("" where there is none).
    pub fn model_type(&self) -> &str {
        self.json.get("model_type").and_then(Value::as_str).unwrap_or("")
    }

    /// The class that it is of, the first of `architectures`.
    pub fn class(&self) -> Option<&str> {
        self.json.get("architectures")?.get(0)?.as_str()
    }

    /// The model's type, and those of the models that it is made of, by the fields that say so; "" for its own.
    pub(crate) fn parts(&self) -> Vec<(&str, &str)> {
        let parts = self.json.iter().filter_map(|(key, part)| Some((key.as_str(), part.get("model_type")?.as_str()?)));
        std::iter::once(("", self.model_type())).chain(parts).collect()
    }

    /// A field of this document or of the first nested language-model configuration that has it.
    pub fn find(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null()).or_else(|| {
            NESTED.iter().find_map(|nested| self.json.get(*nested)?.get(key).filter(|value| !value.is_null()))
        })
    }

    /// Whether input and output embeddings are one tensor, as far as the file says.
    ///
    /// transformers' default is true, but a family may override it; the caller decides by whether the output
    /// embedding is stored.
    pub fn tied(&self) -> Option<bool> {
        self.find("tie_word_embeddings").and_then(Value::as_bool)
    }

    /// `quantization_config`, at the top or nested.
    pub fn quantization(&self) -> Option<&Map<String, Value>> {
        self.find("quantization_config").and_then(Value::as_object)
    }

    /// Sets `key` at the top and in every nested configuration that has it.
    pub(crate) fn set_everywhere(&mut self, key: &str, value: &Value) {
        let mut found = false;
        for nested in NESTED {
            if let Some(Value::Object(map)) = self.json.get_mut(*nested)
                && map.contains_key(key)
            {
                map.insert(key.to_owned(), value.clone());
                found = true;
            }
        }
        if !found || self.json.contains_key(key) {
            self.json.insert(key.to_owned(), value.clone());
        }
    }

    /// Removes `key` at the top and in every nested configuration.
    pub(crate) fn remove_everywhere(&mut self, key: &str) {
        self.json.shift_remove(key);
        for nested in NESTED {
            if let Some(Value::Object(map)) = self.json.get_mut(*nested) {
                map.shift_remove(key);
            }
        }
    }

    /// The document as transformers writes it: indent 2, a newline at the end; numbers keep their spelling.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.json).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ModelConfig {
        ModelConfig::parse(text.into(), Path::new("")).unwrap()
    }

    #[test]
    fn rewriting_keeps_order_and_number_spelling() {
        let text = "{\n  \"z\": 1e-05,\n  \"a\": 10000.0,\n  \"tie_word_embeddings\": true\n}\n";
        let mut edited = config(text);
        assert_eq!(edited.to_text(), text);
        edited.set_everywhere("tie_word_embeddings", &Value::Bool(false));
        assert_eq!(edited.to_text(), text.replace("true", "false"));
    }

    #[test]
    fn nested_fields_are_set_where_they_stand() {
        let mut edited = config(r#"{"text_config": {"vocab_size": 5}, "model_type": "llava"}"#);
        edited.set_everywhere("vocab_size", &Value::from(7));
        assert_eq!(edited.find("vocab_size"), Some(&Value::from(7)));
        assert!(!edited.json.contains_key("vocab_size"));
    }
}
