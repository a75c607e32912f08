//! What a family reads a `config.json` by.

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::open::ModelConfig;

/// Fields of a `config.json`; errors name the file, the field and its value.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'c> {
    config: &'c ModelConfig,
}

/// No dimension of a model is larger than this.
pub(crate) const MOST: usize = 1 << 24;
/// No model has more layers. Each takes memory before its tensors are looked for.
pub(crate) const MOST_LAYERS: usize = 1 << 14;

impl<'c> Fields<'c> {
    /// Looks into a model's configuration.
    pub fn new(config: &'c ModelConfig) -> Self {
        Self { config }
    }

    /// An error about a field with a value that cannot be meant.
    pub(crate) fn bad(&self, key: &str, value: &Value, problem: &str) -> Error {
        self.error(Kind::Malformed, format!("`{key}` is {}: {problem}", short(value))).with_hint(self.config.remedy())
    }

    /// An error about a field with a value that means something, but nothing that can be run.
    pub(crate) fn unsupported(&self, key: &str, value: &Value) -> Error {
        self.error(Kind::Unsupported, format!("`{key}` is {}, which cannot be run", short(value)))
            .with_hint("a merge does not need to run the model: --fast")
    }

    /// An error about a field with a value that another container has no place for.
    pub(crate) fn unsaid(&self, key: &str, value: &Value) -> Error {
        self.error(Kind::Unsupported, format!("`{key}` is {}, for which a GGUF file has no key", short(value)))
            .with_hint("llama.cpp runs models of this kind with another value: merge into a folder, with --to bf16")
    }

    /// An error about fields that do not fit each other.
    pub(crate) fn misfit(&self, problem: String) -> Error {
        self.error(Kind::Malformed, problem).with_hint(self.config.remedy())
    }

    /// An error about a field that must be there.
    pub(crate) fn missing(&self, key: &str) -> Error {
        self.misfit(format!("`{key}` is missing"))
    }

    fn error(&self, kind: Kind, problem: String) -> Error {
        Error::new(kind, problem).in_file(&self.config.path)
    }

    /// The configuration that they are read from.
    pub(crate) fn config(&self) -> &'c ModelConfig {
        self.config
    }

    /// Any field.
    pub fn get(&self, key: &str) -> Option<&'c Value> {
        self.config.find(key)
    }

    /// A count, zero included, if it is there.
    pub(crate) fn count_if(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().map(usize::try_from) {
            Some(Ok(n)) if n <= MOST => Ok(Some(n)),
            Some(_) => Err(self.bad(key, value, &format!("no model has more than {MOST}"))),
            None => Err(self.bad(key, value, "that is not a count")),
        }
    }

    /// A count above zero, if it is there.
    pub(crate) fn positive_if(&self, key: &str) -> Result<Option<usize>> {
        match (self.count_if(key)?, self.get(key)) {
            (Some(0), Some(value)) => Err(self.bad(key, value, "it must be above zero")),
            (count, _) => Ok(count),
        }
    }

    /// A count above zero.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.positive_if(key)?.ok_or_else(|| self.missing(key))
    }

    /// The same of the first of these names that is there: transformers 5 writes one name where families had their own.
    pub(crate) fn count_of(&self, keys: &[&str]) -> Result<usize> {
        let key = keys.iter().find(|key| self.get(key).is_some()).or(keys.first());
        key.map_or(Ok(0), |key| self.count(key))
    }

    /// The number of layers.
    pub fn layers(&self, key: &str) -> Result<usize> {
        match (self.count(key)?, self.get(key)) {
            (layers, Some(value)) if layers > MOST_LAYERS => {
                Err(self.bad(key, value, &format!("no model has more than {MOST_LAYERS}")))
            }
            (layers, _) => Ok(layers),
        }
    }

    /// The width of a head where it is not given: an equal share of the residual stream.
    pub fn share(&self, hidden: &str, heads: &str) -> Result<usize> {
        match (self.count(hidden)?, self.count(heads)?) {
            (width, heads_count) if heads_count > width => {
                Err(self.misfit(format!("`{heads}` is {heads_count}, more than `{hidden}`, which is {width}")))
            }
            (width, heads_count) => Ok(width / heads_count),
        }
    }

    /// A number, if it is there.
    pub(crate) fn number_if(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            // What is run is run in f32.
            Some(x) if (x as f32).is_finite() => Ok(Some(x)),
            Some(_) => Err(self.bad(key, value, "too large for a 32-bit number")),
            None => Err(self.bad(key, value, "that is not a number")),
        }
    }

    /// A number, or what it is by default.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_if(key)?.unwrap_or(default))
    }

    /// A number above zero, if it is there; its reciprocal is a 32-bit number too.
    pub(crate) fn above_zero_if(&self, key: &str) -> Result<Option<f64>> {
        match (self.number_if(key)?, self.get(key)) {
            (Some(x), Some(value)) if !(x > 0.0 && (1.0 / x as f32).is_finite()) => {
                Err(self.bad(key, value, "it must be above zero"))
            }
            (number, _) => Ok(number),
        }
    }

    /// A number above zero, or what it is by default.
    pub(crate) fn above_zero(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.above_zero_if(key)?.unwrap_or(default))
    }

    /// A share of something, or what it is by default.
    pub fn fraction(&self, key: &str, default: f64) -> Result<f64> {
        match (self.number(key, default)?, self.get(key)) {
            (share, Some(value)) if !(0.0..=1.0).contains(&share) => {
                Err(self.bad(key, value, "it must be between 0 and 1"))
            }
            (share, _) => Ok(share),
        }
    }

    /// What a norm adds to the mean square.
    pub fn eps(&self, key: &str, default: f64) -> Result<f32> {
        match (self.number(key, default)?, self.get(key)) {
            (eps, Some(value)) if eps < 0.0 => Err(self.bad(key, value, "it must not be negative")),
            (eps, _) => Ok(eps as f32),
        }
    }

    /// A truth value, or what it is by default.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(key, value, "that is neither true nor false"))
    }

    /// A list, if it is there.
    pub fn list(&self, key: &str) -> Result<Option<&'c [Value]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array() {
            Some(list) => Ok(Some(list)),
            None => Err(self.bad(key, value, "that is not a list")),
        }
    }

    /// A list with one item for each layer, if it is there.
    pub(crate) fn by_layer(&self, key: &str, layers: usize) -> Result<Option<&'c [Value]>> {
        match self.list(key)? {
            Some(list) if list.len() != layers => {
                Err(self.misfit(format!("`{key}` has {} items, but the model has {layers} layers", list.len())))
            }
            list => Ok(list),
        }
    }

    /// Leading layers without experts: those that `mlp_layer_types` calls dense, or as many as `first_k_dense_replace` says, or one.
    pub(crate) fn leading_dense(&self, layers: usize) -> Result<usize> {
        let Some(types) = self.by_layer("mlp_layer_types", layers)? else {
            return Ok(self.count_if("first_k_dense_replace")?.unwrap_or(1));
        };
        let leading = types.iter().take_while(|kind| *kind == "dense").count();
        match types.iter().skip(leading).find(|kind| *kind != "sparse") {
            Some(other) => Err(self.unsupported("mlp_layer_types", other)),
            None => Ok(leading),
        }
    }

    /// True for each layer that `layer_types` calls sliding; `None` where the field is missing.
    pub fn sliding(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let kind = |value: &Value| match value.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.unsupported("layer_types", value)),
        };
        let types = self.by_layer("layer_types", layers)?;
        types.map(|types| types.iter().map(kind).collect()).transpose()
    }

    /// The same; where the field is missing, all layers slide but each that is counted by `every`.
    pub(crate) fn sliding_but_every(&self, layers: usize, every: usize) -> Result<Vec<bool>> {
        Ok(self.sliding(layers)?.unwrap_or_else(|| (1..=layers).map(|n| n % every != 0).collect()))
    }
}

/// A value as it stands in the file, or the start of it.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
