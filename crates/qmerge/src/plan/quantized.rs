//! What takes a quantizing format, and what a loader must be told of the rest.
//!
//! A checkpoint loads only if its codes lie where the loader makes quantized layers. transformers makes one of every linear layer but those that
//! `llm_int8_skip_modules` names, where that list takes the place of its own defaults (the head, what is tied to an embedding): an entry keeps a module whose path begins with it,
//! up to a dot, or ends with it. So linear layers that are known by name are quantized, and every other matrix is named in full.

use super::steps::{Action, Step};
use crate::adapters::Names;
use crate::arch::{self, Role};
use crate::formats::Weight;

/// True for a plain matrix that becomes a quantized one.
pub(super) fn takes(names: &Names<'_>, weight: &dyn Weight) -> bool {
    let Some(module) = weight.name().strip_suffix(".weight") else { return false };
    weight.shape().len() == 2
        && !names.is_head(module)
        && !arch::leaf_in(module, names.arch.not_linear)
        && !is_own(names, module)
        && arch::role(names.model_type(), module) == Role::Linear
}

/// True if the module is a part of another that multiplies with its weight itself, as torch's MultiheadAttention does: no loader replaces it.
fn is_own(names: &Names<'_>, module: &str) -> bool {
    module.strip_suffix("out_proj").is_some_and(|path| names.exact(&format!("{path}in_proj_weight")).is_some())
}

/// True if a linear layer's weight is stored (in, out), and loaders want it (out, in) once it is quantized.
pub(super) fn is_turned(names: &Names<'_>, weight: &dyn Weight) -> bool {
    let module = weight.name().strip_suffix(".weight").unwrap_or(weight.name());
    weight.is_plain() && weight.shape().len() == 2 && arch::leaf_in(module, names.arch.transposed)
}

/// Modules with a plain matrix, as a loader is told of them; `None` if its own default, the head, is all.
pub(super) fn skipped(names: &Names<'_>, steps: &[Step]) -> Option<Vec<String>> {
    let (mut plain, mut coded) = (Vec::new(), Vec::new());
    for step in steps {
        let Some(module) = step.name.strip_suffix(".weight") else { continue };
        match &step.action {
            Action::Copy { entry } if entry.shape.len() == 2 && entry.dtype.is_plain_float() => plain.push(module),
            Action::Recode(recode) if recode.to.shape().len() == 2 && recode.to.is_plain() => plain.push(module),
            Action::Recode(recode) if !recode.to.is_plain() => coded.push(module),
            _ => {}
        }
    }
    let mut found: Vec<String> = Vec::new();
    for module in plain {
        if arch::leaf_in(module, names.arch.not_linear) || module.contains("norm") {
            continue;
        }
        // Experts are one bare tensor in memory, or modules of that name.
        found.push(module.split_once(".experts.").map_or(module.to_owned(), |(before, _)| format!("{before}.experts")));
    }
    // The head under the name that it has in memory: where it is tied it is not stored, and it may have moved.
    let head_is_coded = coded.iter().any(|module| names.is_head(module));
    if !head_is_coded {
        let tied = names.tie.filter(|_| names.is_tied()).map(arch::Tie::head);
        for alias in tied.into_iter().chain(["lm_head"]) {
            if !coded.iter().any(|module| matches(alias, module)) {
                found.push(alias.to_owned());
            }
        }
    }
    found.sort();
    found.dedup();
    (found != ["lm_head"]).then_some(found)
}

/// True if a loader takes the entry of its list to mean the module.
fn matches(entry: &str, module: &str) -> bool {
    module.ends_with(entry) || module.strip_prefix(entry).is_some_and(|rest| rest.starts_with('.'))
}

/// A warning where matrices stay plain because their names say nothing, and an error's text where the loader's rule cannot tell two modules apart.
pub(super) fn doubts(
    names: &Names<'_>,
    steps: &[Step],
    skipped: Option<&[String]>,
) -> (Option<String>, Option<String>) {
    let unknown: Vec<&str> = steps
        .iter()
        .filter_map(|step| Some((step.name.strip_suffix(".weight")?, step)))
        .filter(|(module, step)| {
            let shape = match &step.action {
                Action::Copy { entry } if entry.dtype.is_plain_float() => entry.shape.as_slice(),
                Action::Recode(recode) if recode.to.is_plain() => recode.to.shape(),
                _ => return false,
            };
            shape.len() == 2
                && !names.is_head(module)
                && !arch::leaf_in(module, names.arch.not_linear)
                && arch::role(names.model_type(), module) == Role::Unknown
        })
        .map(|(module, _)| module)
        .collect();
    let warning = unknown.first().map(|first| {
        format!("{} matrices are not known to be linear layers and stay as they are, first `{first}`", unknown.len())
    });
    let clash = steps.iter().find_map(|step| {
        let Action::Recode(recode) = &step.action else { return None };
        let module = step.name.strip_suffix(".weight").filter(|_| !recode.to.is_plain())?;
        let entry = skipped?.iter().find(|entry| matches(entry, module))?;
        Some(format!("`{module}` is quantized, but loaders would keep it plain, as they keep `{entry}`"))
    });
    (warning, clash)
}
