//! Every tensor of an adapter is accounted for: what is left out is refused or told of.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::adapters::{Adapter, Changes, LeftOut, Names, Rename};
use crate::arch;
use crate::error::{Kind, Result, counted, mismatch, unsupported};
use crate::plan::{fits, towers};

/// How the tensors of one adapter were accounted for.
#[derive(Clone, Debug, Default)]
pub struct Accounting {
    /// All its tensors.
    pub tensors: usize,
    /// Folded into a weight.
    pub merged: usize,
    /// Put in place of a tensor of the base.
    pub replaced: usize,
    /// New to the base.
    pub added: usize,
    /// Tensor files beside the adapter's own that are merged too.
    pub beside: Vec<String>,
    /// Tensor files beside it that are not.
    pub left_out: Vec<String>,
    /// Not needed, each with the reason.
    pub ignored: Vec<(String, &'static str)>,
    /// Matched nothing.
    pub unused: Vec<String>,
}

pub(super) fn refuse_unused(
    adapter: &Adapter,
    changes: &Changes,
    names: &Names<'_>,
    allow: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let Some(first) = changes.unused.first() else { return Ok(()) };
    let total = adapter.tensors.entries.len();
    let whose = if adapter.is_tuned() { "of the tuned model's" } else { "adapter" };
    let message = format!("{} of {total} {whose} tensors match nothing in the base", changes.unused.len());
    if allow && changes.unused.len() < total {
        warnings.push(format!("{message} and are left out, first `{first}`"));
        return Ok(());
    }
    // Where nothing else would be merged, leaving it out is no way to merge.
    let is_part = !changes.edits.is_empty() || !changes.replacements.is_empty() || !changes.additions.is_empty();
    let opaque = names.checkpoint.entries.iter().find(|entry| {
        let stem = first.rsplit(".lora_").last().unwrap_or(first);
        stem.split('.').skip(2).collect::<Vec<_>>().join(".") == entry.name.trim_end_matches(".weight")
            && names.exact(&entry.name).is_none()
    });
    let module = adapter.config.modules_to_save.iter().find(|module| {
        let path = first.strip_prefix("base_model.model.").unwrap_or(first);
        path.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(module.as_str()))
    });
    let special = towers::hint_of_file(names.checkpoint, first, is_part).or_else(|| hint_of_mlx(names, first));
    let hint = match opaque {
        _ if special.is_some() => special.unwrap_or_default(),
        _ if module.is_some() => format!(
            "`{}` was trained whole (modules_to_save) and the base has no such module: if it is a classifier's head, say so with `task_type` \
             (SEQ_CLS, TOKEN_CLS or QUESTION_ANS) in {}, and it is added{}",
            module.map_or("", String::as_str),
            adapter.config.path.display(),
            if is_part { "; --allow-unused leaves it out, and what it learned with it" } else { "" }
        ),
        Some(entry) => {
            format!("`{}` is stored as {}, which this version cannot decode", entry.name, entry.dtype)
        }
        None => {
            let example = names
                .weights
                .iter()
                .map(|claim| claim.weight.name())
                .find(|name| name.contains("q_proj"))
                .or_else(|| names.weights.first().map(|claim| claim.weight.name()));
            format!(
                "the base has names like `{}`; say how to translate with --map 'regex=>replacement'{}",
                example.unwrap_or("(none)"),
                if is_part { ", or leave them out with --allow-unused" } else { "" }
            )
        }
    };
    // What it was trained on may be what the base lacks.
    let checked = fits::refuse_mlx(names.checkpoint, names.weights);
    checked.and_then(|()| fits::check(names.checkpoint, names.weights)).or_else(|error| match error.kind() {
        Kind::Mismatch => Err(error),
        _ => Ok(()),
    })?;
    let file = adapter.tensors.get(first).map_or(adapter.path.as_path(), |entry| adapter.tensors.file_of(entry));
    Err(mismatch(format!("matches nothing in the base ({message})")).in_file(file).in_tensor(first).with_hint(hint))
}

/// What can be done with an adapter of single experts where mlx_lm's stacks hold them.
fn hint_of_mlx(names: &Names<'_>, first: &str) -> Option<String> {
    let has = |name: &str, own: &str| name.split('.').any(|part| part == own);
    let weights = || names.weights.iter().map(|claim| claim.weight.name());
    let stack = weights().find(|name| has(name, arch::SWITCH)).filter(|_| has(first, "experts"))?;
    Some(format!(
        "experts lie in MLX's own stacks there (`{stack}`), where single ones are not found: merge it into the checkpoint that the folder was converted from, and convert the result"
    ))
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Warns of trained tensors in other files of the adapter's folder, or refuses to go on without them.
pub(super) fn left_out(adapter: &Adapter, allow: bool, warnings: &mut Vec<String>) -> Result<()> {
    for LeftOut { file, reason, matters } in &adapter.left_out {
        let path = adapter.path.join(file);
        if *matters && !allow {
            return Err(unsupported((*reason).to_owned())
                .in_file(&path)
                .with_hint("merge without it by --allow-unused, or move it out of the folder"));
        }
        warnings.push(format!("{} is left out: {reason}", path.display()));
    }
    Ok(())
}

/// The same adapter more than once is a sum that is seldom meant.
pub(super) fn repeats(adapters: &[Adapter]) -> Vec<String> {
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    for adapter in adapters {
        let file = adapter.tensors.files.first().map_or(adapter.path.as_path(), |file| file.path());
        let file = file.canonicalize().unwrap_or_else(|_| file.to_path_buf());
        // A folder of one adapter is known by its own name.
        let place = if adapter.beside().is_some() { file.parent().unwrap_or(&file).to_path_buf() } else { file };
        *seen.entry(place).or_default() += 1;
    }
    let mut repeated: Vec<_> = seen.into_iter().filter(|(_, times)| *times > 1).collect();
    repeated.sort();
    let say = |(place, times): (PathBuf, usize)| {
        format!("{} is given {times} times, and its effects are summed", place.display())
    };
    repeated.into_iter().map(say).collect()
}

/// Counts the names that were used, not those that were merely looked up.
pub(super) fn rename_warning(renamed: &[Rename], changes: &[Changes]) -> Option<String> {
    let edits = changes.iter().flat_map(|changes| changes.edits.iter().map(|edit| edit.target.as_str()));
    let whole = changes.iter().flat_map(|changes| changes.replacements.iter().map(|whole| whole.target.as_str()));
    let used: HashSet<&str> = edits.chain(whole).collect();
    let renamed: Vec<&Rename> = renamed.iter().filter(|rename| used.contains(rename.to.as_str())).collect();
    let first = renamed.first()?;
    Some(format!(
        "{} found under other names in the base, first `{}` as `{}`",
        counted(renamed.len(), "adapter name was", "adapter names were"),
        first.from,
        first.to
    ))
}

/// What was never trained is told once, however many modules it is.
pub(crate) fn untrained_warning(adapter: &Adapter, modules: &[String], number: usize, all: bool) -> Option<String> {
    let path = adapter.path.display();
    let first = modules.first()?;
    let [whole, some] = adapter.said_of_untrained();
    Some(if all {
        format!("{path}: {whole}, as before any training: it changes nothing")
    } else {
        format!(
            "{path}: {} of {number} modules {some}, as before any training, and change nothing; first `{first}`",
            modules.len()
        )
    })
}

pub(super) fn adapter_warnings(adapter: &Adapter, changes: &Changes) -> Vec<String> {
    let mut warnings = Vec::new();
    // Some files hold what all layers share and nothing by their names.
    let names_layers = adapter.names_layers();
    let missing: Vec<&String> = adapter
        .config
        .target_modules
        .iter()
        .filter(|target| {
            names_layers
                && !target.is_empty()
                && !adapter.tensors.entries.iter().any(|entry| entry.name.split('.').any(|part| target.ends_with(part)))
        })
        .collect();
    if let Some(first) = missing.first() {
        warnings.push(format!(
            "{}: the configuration targets `{first}`{}, but the file holds no tensor for it{}",
            adapter.path.display(),
            if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() },
            missing.iter().find(|target| is_of_stack(adapter, target)).map_or(String::new(), |target| {
                format!(
                    ": where `{target}` is a stack of experts it is no module, and PEFT trains it where `target_parameters` names it"
                )
            })
        ));
    }
    if adapter.weight != 1.0 && changes.replacements.iter().any(|replacement| replacement.trained) {
        warnings.push(format!(
            "{}: modules trained whole are taken as they are; the weight {} applies to the rest only",
            adapter.path.display(),
            adapter.weight
        ));
    }
    warnings
}

/// True of a target among modules that is a stacked parameter's name, of an adapter of experts.
fn is_of_stack(adapter: &Adapter, target: &str) -> bool {
    let is_stack = [arch::GATE_UP, arch::DOWN].contains(&target.rsplit('.').next().unwrap_or(target));
    let names = || adapter.tensors.entries.iter().map(|entry| entry.name.as_str());
    let behind = |name: &str| name.split('.').skip_while(|part| *part != "experts").nth(1).map(str::to_owned);
    // An adapter of single experts has modules of such names.
    let is_single = |name: &str| behind(name).is_some_and(|part| part.parse::<usize>().is_ok());
    is_stack && names().any(|name| behind(name).is_some()) && !names().any(is_single)
}

pub(super) fn account(adapter: &Adapter, changes: &Changes) -> Accounting {
    Accounting {
        tensors: adapter.tensors.entries.len(),
        merged: changes.edits.iter().flat_map(|edit| &edit.tensors).collect::<HashSet<_>>().len(),
        replaced: changes.replacements.len(),
        added: changes.additions.len(),
        beside: adapter.tensors.files.iter().skip(1).filter_map(|file| file_name(file.path())).collect(),
        left_out: adapter.left_out.iter().map(|left_out| left_out.file.clone()).collect(),
        ignored: changes.ignored.clone(),
        unused: changes.unused.clone(),
    }
}
