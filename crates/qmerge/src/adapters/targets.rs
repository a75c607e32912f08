//! Modules that a configuration targets, for adapters whose files do not name them.

use serde_json::Value;

use super::{AdapterConfig, Names, patterns};
use crate::error::{Result, malformed, unsupported};

/// Paths of the base's linear layers that are targeted, as PEFT matches them: a list names ends of paths, a string is an expression for whole ones.
///
/// Source: PEFT 0.21, `tuners/tuners_utils.py`, `check_target_module_exists`.
pub(super) fn of(config: &AdapterConfig, names: &Names<'_>) -> Result<Vec<String>> {
    for field in ["layers_to_transform", "layers_pattern"] {
        if config.is_set(field) {
            return Err(unsupported(format!(
                "`{field}` is set, and the adapter's file does not name its layers: this version does not choose them by it"
            ))
            .with_hint("let PEFT turn it into an ordinary LoRA (`convert_to_lora`), and merge that"));
        }
    }
    let is_target = matcher(config, "target_modules")?;
    let is_excluded = matcher(config, "exclude_modules")?;
    let mut found = Vec::new();
    for claim in names.weights.iter().filter(|claim| claim.weight.shape().len() == 2) {
        let Some(path) = claim.weight.name().strip_suffix(".weight") else { continue };
        // An adapter may be older than the name that the model has in memory.
        let module = names.in_memory(path);
        let (targeted, excluded) =
            (is_target(path)? || is_target(&module)?, is_excluded(path)? || is_excluded(&module)?);
        if targeted && !excluded {
            found.push(path.to_owned());
        }
    }
    if found.is_empty() {
        return Err(malformed("`target_modules` names no linear layer of the base"));
    }
    Ok(found)
}

type Matcher = Box<dyn Fn(&str) -> Result<bool>>;

fn matcher(config: &AdapterConfig, field: &'static str) -> Result<Matcher> {
    if let Some(Value::String(expression)) = config.json.get(field) {
        let expression = expression.clone();
        let regex = patterns::compile(&format!(r"\A(?:{expression})\z"))
            .map_err(|cause| malformed(format!("`{field}` is not a regular expression: {cause}")))?;
        return Ok(Box::new(move |path| {
            regex.is_match(path).map_err(|cause| malformed(format!("`{field}` cannot be matched: {cause}")))
        }));
    }
    let ends = config.fields().texts(field)?;
    Ok(Box::new(move |path| {
        Ok(ends
            .iter()
            .any(|end| path.strip_suffix(end.as_str()).is_some_and(|head| head.is_empty() || head.ends_with('.'))))
    }))
}
