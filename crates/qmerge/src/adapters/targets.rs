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
    let paths = || {
        let matrices = names.weights.iter().filter(|claim| claim.weight.shape().len() == 2);
        matrices.filter_map(|claim| claim.weight.name().strip_suffix(".weight"))
    };
    // Layers that are rows of one tensor are modules of their own.
    let in_memory = |path: &str| names.layers_within(path).unwrap_or_else(|| vec![names.in_memory(path)]);
    let targeted = |called: &dyn Fn(&str) -> Vec<String>| -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in paths() {
            let own = called(path);
            for name in &own {
                if is_target(name)? && !is_excluded(name)? {
                    found.push(if own.len() == 1 { path.to_owned() } else { name.clone() });
                }
            }
        }
        Ok(found)
    };
    let mut found = targeted(&in_memory)?;
    if found.is_empty() {
        // An adapter may be older than the names that the model has in memory.
        found = targeted(&|path| vec![path.to_owned()])?;
    }
    if found.is_empty() {
        return Err(malformed("`target_modules` names no linear layer of the base"));
    }
    Ok(found)
}

type Matcher = Box<dyn Fn(&str) -> Result<bool>>;

fn matcher(config: &AdapterConfig, field: &'static str) -> Result<Matcher> {
    if let Some(Value::String(expression)) = config.json.get(field) {
        let regex = patterns::whole(expression)
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
