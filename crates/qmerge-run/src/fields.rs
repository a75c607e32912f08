//! What a family reads a `config.json` by.

use qmerge::error::{Error, Kind, Result};
use qmerge::open::ModelConfig;
use serde_json::Value;

/// Fields of a `config.json`; errors name the file and the field.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'c> {
    config: &'c ModelConfig,
}

/// No dimension of a model is larger than this.
const MOST: u64 = 1 << 24;

impl<'c> Fields<'c> {
    /// Looks into a model's configuration.
    pub fn new(config: &'c ModelConfig) -> Self {
        Self { config }
    }

    fn bad(&self, key: &str, problem: &str) -> Error {
        Error::new(Kind::Malformed, format!("`{key}` {problem}"))
            .in_file(&self.config.path)
            .with_hint("copy config.json again from where the model was published")
    }

    /// Any field.
    pub fn get(&self, key: &str) -> Option<&'c Value> {
        self.config.find(key)
    }

    /// A count, if it is there.
    pub fn count_if(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n <= MOST => Ok(Some(n as usize)),
            _ => Err(self.bad(key, "is not a count")),
        }
    }

    /// A count.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.count_if(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(self.bad(key, "is zero")),
            None => Err(self.bad(key, "is missing")),
        }
    }

    /// A number, if it is there.
    pub fn number_if(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.bad(key, "is not a number")),
        }
    }

    /// A number, or what it is by default.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_if(key)?.unwrap_or(default))
    }

    /// A truth value, or what it is by default.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// A list, or an empty one.
    pub fn list(&self, key: &str) -> &'c [Value] {
        self.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// True for each layer that `layer_types` calls sliding; `None` where the field is missing.
    pub fn sliding(&self, layers: usize) -> Option<Vec<bool>> {
        let types = self.list("layer_types");
        (types.len() == layers).then(|| types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect())
    }
}
