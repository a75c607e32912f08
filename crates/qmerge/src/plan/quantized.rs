//! What takes a quantizing format, and what a loader must be told of the rest.
//!
//! A checkpoint loads only if its codes lie where the loader makes quantized layers. transformers makes one of every linear layer but those that
//! `llm_int8_skip_modules` names, where that list takes the place of its own defaults (the head, what is tied to an embedding): an entry keeps a module whose path begins with it,
//! up to a dot, or ends with it. So linear layers that are known by name are quantized, and every other matrix is named in full.

use std::collections::{BTreeSet, HashSet};

use super::Options;
use crate::adapters::Names;
use crate::arch::{self, Role};
use crate::error::{Result, counted, mismatch, unsupported};
use crate::formats::{Format, Weight};

/// Which weights take the quantizing format that was asked for, and which modules a loader has to keep plain.
#[derive(Debug, Default)]
pub(super) struct Quantized<'a> {
    takes: HashSet<&'a str>,
    /// Weights that are codes take it too, if they are what takes it.
    anew: bool,
    /// Entries of `llm_int8_skip_modules` or what the format calls it; `None` if the loader's own default says the same.
    pub(super) skipped: Option<Vec<String>>,
    /// What is not known for certain.
    pub(super) warning: Option<String>,
}

/// Modules of a base, by what becomes of their matrices.
struct Modules<'a> {
    /// Matrices that become codes.
    taking: Vec<&'a str>,
    /// Matrices that stay plain.
    plain: Vec<&'a str>,
    /// Matrices that are codes already.
    coded: HashSet<&'a str>,
    /// Those of `plain` whose names say nothing.
    unknown: Vec<&'a str>,
}

impl<'a> Quantized<'a> {
    /// Decides for a base. `added` are tensors that the output has beside the base's.
    ///
    /// Errors if a loader of this family could not read the output at all.
    pub(super) fn new<'n>(
        names: &Names<'a>,
        options: &Options,
        added: impl Iterator<Item = &'n str>,
    ) -> Result<Quantized<'a>> {
        let Some(format) = options.to.filter(|to| to.quantizes()) else { return Ok(Self::default()) };
        // What a GGUF file has as codes lies plain or as other codes in a folder.
        let anew = names.checkpoint.is_self_contained();
        let mut modules = sort(names, format, anew);
        let mut entries = entries(names, &modules, added);
        leave_plain_what_is_reached(&mut modules, &mut entries);
        refuse(names, &modules, format)?;
        let entries = anchored(entries, &modules.coded);
        Ok(Self {
            skipped: (entries != ["lm_head"]).then_some(entries),
            warning: warning(names, &modules, format),
            takes: modules.taking.into_iter().collect(),
            anew,
        })
    }

    /// True for a plain matrix that becomes a quantized one.
    pub(super) fn takes(&self, weight: &dyn Weight) -> bool {
        (weight.is_plain() || self.anew) && module_of(weight.name()).is_some_and(|module| self.takes.contains(module))
    }
}

/// True if the dimensions of a weight change places as it is stored in another way, be that as the family has what is plain (`has_family_order`) or not: Conv1D layers have (in, out)
/// then, and (out, in) where they are quantized, or in another container.
/// So do those of the matrices of stacks that are codes, where the family has inputs as rows.
pub(super) fn is_reversed(names: &Names<'_>, weight: &dyn Weight, has_family_order: bool) -> bool {
    let changes = weight.has_family_order() != has_family_order;
    match weight.shape().len() {
        2 => changes && is_conv1d(names, weight.name()),
        3 => changes && has_family_order && names.stacks_inputs_as_rows(),
        _ => false,
    }
}

/// True if the rows of a weight, which the model has under that name, are inputs: as its format stores it, or as the family stores what is plain (Conv1D).
pub(super) fn is_transposed(names: &Names<'_>, name: &str, weight: &dyn Weight) -> bool {
    weight.is_transposed() || weight.has_family_order() && weight.shape().len() == 2 && is_conv1d(names, name)
}

fn is_conv1d(names: &Names<'_>, name: &str) -> bool {
    module_of(name).is_some_and(|module| arch::leaf_in(module, names.arch.transposed))
}

fn module_of(name: &str) -> Option<&str> {
    name.strip_suffix(".weight")
}

/// Tells what takes the format from other matrices, by their names.
fn sort<'a>(names: &Names<'a>, format: &dyn Format, anew: bool) -> Modules<'a> {
    let mut modules = Modules { taking: Vec::new(), plain: Vec::new(), coded: HashSet::new(), unknown: Vec::new() };
    let families: Vec<&str> = names.parts.iter().map(|(_, family)| *family).collect();
    let plain = PlainInBase::of(names);
    for claim in names.weights {
        let weight = &claim.weight;
        let Some(module) = module_of(weight.name()) else { continue };
        if !weight.is_plain() && !anew {
            modules.coded.insert(module);
            continue;
        }
        if weight.shape().len() != 2 {
            continue;
        }
        let role = if arch::leaf_in(module, names.arch.transposed) && !plain.names(module) {
            if format.takes_conv1d() { Role::Linear } else { Role::Plain }
        } else if arch::leaf_in(module, names.arch.not_linear) {
            Role::Embedding
        } else if names.is_head(module) {
            Role::Head
        } else if is_own(names, module) || plain.names(module) || names.layers_within(module).is_some() {
            Role::Plain
        } else {
            arch::role(&families, module)
        };
        match role {
            // Of nothing there are no codes.
            _ if !weight.shape().contains(&0) && format.takes(role, weight.shape()) => modules.taking.push(module),
            // No loader takes a table for a linear layer.
            Role::Embedding => {}
            Role::Unknown => {
                modules.plain.push(module);
                modules.unknown.push(module);
            }
            Role::Linear | Role::Head | Role::Plain => modules.plain.push(module),
        }
    }
    modules
}

/// True if the module is a part of another that multiplies with its weight itself, as torch's MultiheadAttention does: no loader replaces it.
fn is_own(names: &Names<'_>, module: &str) -> bool {
    module.strip_suffix("out_proj").is_some_and(|path| names.exact(&format!("{path}in_proj_weight")).is_some())
}

/// Layers that a quantized base keeps plain on purpose: they stay so in another quantized format.
struct PlainInBase<'a>(Vec<&'a str>);

impl<'a> PlainInBase<'a> {
    fn of(names: &Names<'a>) -> Self {
        let quantization = names.checkpoint.config.as_ref().and_then(|config| config.quantization());
        let lists = ["llm_int8_skip_modules", "modules_to_not_convert", "ignored_layers", "ignore", "skip_modules"]
            .into_iter()
            .filter_map(|key| quantization?.get(key)?.as_array());
        Self(lists.flatten().filter_map(|entry| entry.as_str()).filter(|entry| !entry.is_empty()).collect())
    }

    /// As transformers 5 takes an entry, or as releases before it and vLLM do, to whom it may stand anywhere in the path.
    fn names(&self, module: &str) -> bool {
        let path = format!(".{module}.");
        self.0.iter().any(|entry| matches(entry, module) || path.contains(&format!(".{entry}.")))
    }
}

/// The modules that a loader has to keep plain.
fn entries<'n>(names: &Names<'_>, modules: &Modules<'_>, added: impl Iterator<Item = &'n str>) -> BTreeSet<String> {
    let experts = |module: &str| module.split_once(".experts.").map(|(before, _)| format!("{before}.experts"));
    let coded: HashSet<String> = modules.coded.iter().filter_map(|module| experts(module)).collect();
    let added = added.filter_map(module_of).filter(|module| !arch::leaf_in(module, names.arch.not_linear));
    // Experts are one bare tensor in memory, or modules of that name.
    let entry = |module: &str| match names.layers_within(module) {
        // Loaders with the model's own code, and vLLM, have the one layer.
        Some(layers) => [layers, vec![module.to_owned()]].concat(),
        // Older loaders have the head where the file has it.
        None if names.is_head(module) => vec![names.in_memory(module), module.to_owned()],
        None => vec![experts(module).filter(|all| !coded.contains(all)).unwrap_or_else(|| names.in_memory(module))],
    };
    let mut entries: BTreeSet<String> = modules.plain.iter().flat_map(|module| entry(module)).collect();
    entries.extend(added.flat_map(entry));
    // The head under the name that it has in memory: where it is tied it is not stored, and it may have moved.
    if !modules.coded.iter().any(|module| names.is_head(module)) {
        let tied = names.tie.filter(|_| names.is_tied()).map(arch::Tie::head);
        let other = arch::head_in_memory(names.model_type());
        entries.extend(tied.into_iter().chain(other).chain(["lm_head"]).map(str::to_owned));
    }
    entries
}

/// An entry may reach further than its module, as `classifier` does to `pre_classifier`. What is reached stays plain too, and is named itself.
fn leave_plain_what_is_reached(modules: &mut Modules<'_>, entries: &mut BTreeSet<String>) {
    loop {
        let (reached, taking) =
            std::mem::take(&mut modules.taking).into_iter().partition(|module| reaches(entries, module));
        modules.taking = taking;
        let reached: Vec<&str> = reached;
        if reached.is_empty() {
            return;
        }
        entries.extend(reached.iter().map(|&module| module.to_owned()));
        modules.plain.extend(reached);
    }
}

/// True if a loader takes the entry of its list to mean the module.
fn matches(entry: &str, module: &str) -> bool {
    module.ends_with(entry) || module.strip_prefix(entry).is_some_and(|rest| rest.starts_with('.'))
}

/// The same for any of many entries.
fn reaches(entries: &BTreeSet<String>, module: &str) -> bool {
    let ends = module.char_indices().filter_map(|(at, _)| module.get(at..));
    let beginnings = module.match_indices('.').filter_map(|(at, _)| module.get(..at));
    ends.chain(beginnings).any(|part| entries.contains(part))
}

/// Where an entry would reach what is stored as codes already, it is bound to its own module: entries are regular expressions.
fn anchored(entries: BTreeSet<String>, coded: &HashSet<&str>) -> Vec<String> {
    entries
        .into_iter()
        .map(|entry| if coded.iter().any(|module| matches(&entry, module)) { format!("^{entry}$") } else { entry })
        .collect()
}

/// Refuses an output that no loader could read.
fn refuse(names: &Names<'_>, modules: &Modules<'_>, format: &dyn Format) -> Result<()> {
    let file = &names.checkpoint.path;
    let family = names.model_type();
    if modules.taking.is_empty() && modules.coded.is_empty() {
        let stack = names.weights.iter().map(|claim| &claim.weight).find(|weight| weight.shape().len() == 3);
        let or_stack =
            stack.map_or(String::new(), |stack| format!("; stacks of experts (`{}`) are no layers", stack.name()));
        return Err(mismatch(format!(
            "no weight of this model can be stored as {}: loaders make quantized layers of linear layers only{}, and none is known by its name{}{or_stack}",
            format.id(),
            if format.takes_conv1d() { "" } else { ", not of GPT-2's Conv1D" },
            if family.is_empty() { String::new() } else { format!(" in a model of type `{family}`") }
        ))
        .in_file(file)
        .with_hint("write it plain, with --to bf16"));
    }
    let passed_over = modules.coded.iter().filter(|module| arch::leaf_in(module, names.arch.transposed)).min();
    if let Some(module) = passed_over.filter(|_| !format.takes_conv1d()) {
        return Err(mismatch(format!("it is quantized in a Conv1D, which loaders of {} pass over", format.id()))
            .in_file(file)
            .in_tensor(&format!("{module}.weight"))
            .with_hint("write it plain, with --to bf16, or in a format that they know there: nf4, fp4, int8"));
    }
    let split = names.experts.filter(|experts| experts.split_when_quantized);
    let stacked = split.and_then(|experts| {
        let is_stack = |name: &str| experts.modules.iter().any(|module| name.contains(&format!("{module}.")));
        names
            .weights
            .iter()
            .map(|claim| &claim.weight)
            .find(|weight| weight.shape().len() == 3 && is_stack(weight.name()))
    });
    if let Some(weight) = stacked {
        return Err(unsupported(format!(
            "experts are stored stacked, and what reads `{family}` in {} has them otherwise there",
            format.id()
        ))
        .in_file(file)
        .in_tensor(weight.name())
        .with_hint("write it plain, with --to bf16"));
    }
    Ok(())
}

/// What cannot be known of a family that was not looked at, and of names that say nothing.
fn warning(names: &Names<'_>, modules: &Modules<'_>, format: &dyn Format) -> Option<String> {
    let id = format.id();
    let unknown = modules.unknown.first().map(|first| {
        format!(
            "{}, first `{first}`",
            counted(
                modules.unknown.len(),
                "matrix is not known to be a linear layer and stays as it is",
                "matrices are not known to be linear layers and stay as they are"
            )
        )
    });
    if arch::is_checked(names.model_type()) {
        return unknown;
    }
    let family = match names.model_type() {
        "" => "the base does not say its model_type, so".to_owned(),
        family => format!("models of type `{family}` were not held against a loader:"),
    };
    Some(format!(
        "{family} what becomes {id}, {}, goes by the names of linear layers in other families{}",
        counted(modules.taking.len(), "matrix", "matrices"),
        unknown.map_or(String::new(), |unknown| format!("; {unknown}"))
    ))
}
