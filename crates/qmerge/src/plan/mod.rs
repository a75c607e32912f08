//! Everything decided before the first byte of a weight is read.
//!
//! A plan is a function of names, shapes, configurations and options: which tensors are copied, which are edited, recoded or
//! replaced, where every byte of the output goes, and what the user should be warned of. It does no I/O, so `--dry-run` shows
//! exactly what would happen.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod classifier;
mod config;
mod layout;
mod method;
mod quantized;
mod recode;
mod steps;
mod tie;

pub use layout::{OutFile, OutTensor, Slot};
pub use method::{Data, Method};
pub use recode::{Recode, Source};
pub use steps::{Action, Step};

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::adapters::{Adapter, Changes, LeftOut, Names, ReadOptions, Rename, base_names};
use crate::error::{Result, counted, mismatch, unsupported};
use crate::formats::{self, Claim, Format, Inventory, Setting, Settings};
use crate::open::{Checkpoint, ModelConfig};
use crate::round::Rounding;

/// Choices that a plan takes.
#[derive(Clone)]
pub struct Options {
    /// Output format; `None` keeps each weight's own.
    pub to: Option<&'static dyn Format>,
    /// Choices for weights that take a new format.
    pub settings: Settings,
    /// How codes are chosen.
    pub rounding: Method,
    /// What methods that go by the inputs of layers can go by.
    pub data: Data,
    /// Seed of methods that draw.
    pub seed: u64,
    /// Rank of an adapter that holds what rounding left.
    pub residual_rank: Option<usize>,
    /// `regex=>replacement` rules on names.
    pub maps: Vec<String>,
    /// What adapters mean.
    pub read: ReadOptions,
    /// Adapter tensors that match nothing become a warning.
    pub allow_unused: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: None,
            settings: Settings::default(),
            rounding: Method::Named(crate::round::NEAREST),
            data: Data::Unknown("nothing is known of the inputs of layers".into()),
            seed: 0,
            residual_rank: None,
            maps: Vec::new(),
            read: ReadOptions::default(),
            allow_unused: false,
        }
    }
}

/// What a plan is made from: opened, not read.
#[derive(Debug)]
pub struct Inputs {
    /// The base.
    pub base: Checkpoint,
    /// Its weights.
    pub inventory: Inventory,
    /// The adapters, in the order given.
    pub adapters: Vec<Adapter>,
    /// What the base was quantized from, where a rounding method needs it.
    pub original: Option<Original>,
}

/// The checkpoint that a base was quantized from.
#[derive(Debug)]
pub struct Original {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Its weights.
    pub inventory: Inventory,
    by_name: HashMap<String, usize>,
}

impl Original {
    /// The weight of that name.
    pub fn weight(&self, name: &str) -> Option<&Claim> {
        self.by_name.get(name).and_then(|&at| self.inventory.weights.get(at))
    }
}

impl Inputs {
    /// Claims the weights of a base and takes the adapters.
    pub fn new(base: Checkpoint, adapters: Vec<Adapter>) -> Result<Self> {
        let inventory = formats::inventory(&base)?;
        Ok(Self { base, inventory, adapters, original: None })
    }

    /// Takes what the base was quantized from.
    pub fn with_original(self, checkpoint: Checkpoint) -> Result<Self> {
        let inventory = formats::inventory(&checkpoint)?;
        let names = inventory.weights.iter().enumerate();
        let by_name = names.map(|(at, claim)| (claim.weight.name().to_owned(), at)).collect();
        Ok(Self { original: Some(Original { checkpoint, inventory, by_name }), ..self })
    }

    /// Errors if a file of any of them was changed after it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.base.check_unchanged()?;
        self.adapters.iter().try_for_each(|adapter| adapter.tensors.check_unchanged())?;
        self.original.iter().try_for_each(|original| original.checkpoint.check_unchanged())
    }
}

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

/// A whole merge, decided.
#[derive(Debug)]
pub struct Plan {
    /// What happens, in the order of the output's bytes as far as possible.
    pub steps: Vec<Step>,
    /// Files that hold tensors.
    pub files: Vec<OutFile>,
    /// Name of the index file, where the base has one.
    pub index: Option<String>,
    /// The output's `config.json`, if it differs from the base's.
    pub config: Option<ModelConfig>,
    /// One per adapter.
    pub accounting: Vec<Accounting>,
    /// Format of the output in a word ("nf4", "bf16", "nf4 + bf16").
    pub output_format: String,
    /// The rounding method that was asked for, or that stands for most. Each step has its own.
    pub rounding: &'static dyn Rounding,
    /// Why this method.
    pub reason: Option<String>,
    /// Seed of methods that draw.
    pub seed: u64,
    /// Rank of an adapter that holds what rounding left.
    pub residual_rank: Option<usize>,
    /// Rules on names, as given.
    pub maps: Vec<String>,
    /// What adapters were taken to mean.
    pub read: ReadOptions,
    /// True if no adapter changes anything, since none was trained.
    pub untrained: bool,
    /// Modules of adapters that were not trained: each a part of a warning already.
    pub(crate) untrained_modules: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Decides everything. Errors if an adapter does not fit the base.
    pub fn new(inputs: &Inputs, options: &Options) -> Result<Self> {
        let names = Names::new(&inputs.base, &inputs.inventory.weights, &options.maps)?;
        let mut warnings = Vec::new();
        let mut changes = Vec::new();
        for adapter in &inputs.adapters {
            let mut read = adapter.read(&names, &options.read)?;
            warnings.append(&mut read.warnings);
            refuse_unused(adapter, &read, &names, options.allow_unused, &mut warnings)?;
            left_out(adapter, options.allow_unused, &mut warnings)?;
            changes.push(read);
        }
        warnings.extend(rename_warning(&names.renamed(), &changes));
        warnings.extend(repeats(&inputs.adapters));
        let own = base_names::of_base(&inputs.base);
        warnings.extend(inputs.adapters.iter().filter_map(|adapter| base_names::warning(adapter, &own)));
        let mut untrained_modules = 0;
        let mut untrained = !inputs.adapters.is_empty();
        for (adapter, changes) in inputs.adapters.iter().zip(&changes) {
            let (modules, number) = adapter.untrained();
            let all = modules.len() == number && number > 0 && changes.is_low_rank_only();
            untrained &= all;
            untrained_modules += modules.len();
            warnings.extend(untrained_warning(adapter, &modules, number, all));
        }
        method::refuse_without_scales(options.rounding, options.to)?;
        let options = &Options {
            rounding: if untrained { options.rounding.without_delta() } else { options.rounding },
            ..options.clone()
        };
        warnings.extend(
            inputs.adapters.iter().zip(&changes).flat_map(|(adapter, changes)| adapter_warnings(adapter, changes)),
        );
        let accounting =
            inputs.adapters.iter().zip(&changes).map(|(adapter, changes)| account(adapter, changes)).collect();
        let decided = steps::decide(inputs, options, &names, changes)?;
        warnings.extend(decided.warnings);
        warnings.extend(decided.rounding.warning.filter(|_| !untrained));
        let (files, steps) = layout::lay_out(inputs, decided.steps)?;
        let config = config::edited(inputs, options, decided.skipped.as_deref(), &decided.config)?;
        Ok(Self {
            output_format: formats::phrase(output_matrices(&steps, inputs)),
            steps,
            files,
            index: inputs.base.index.clone(),
            config,
            accounting,
            rounding: decided.rounding.rounding,
            reason: if untrained { Some("the adapter changes nothing".into()) } else { decided.rounding.reason },
            seed: options.seed,
            residual_rank: options.residual_rank,
            maps: options.maps.clone(),
            untrained,
            untrained_modules,
            read: options.read.clone(),
            warnings,
        })
    }

    /// The weights that change.
    pub fn recodes(&self) -> impl Iterator<Item = &Recode> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Recode(recode) => Some(recode.as_ref()),
            Action::Copy { .. } => None,
        })
    }

    /// True if some weight is rounded by what is known of its inputs.
    pub fn is_calibrated(&self) -> bool {
        self.recodes().any(|recode| recode.rounding.whole().is_some())
    }

    /// True if some weight is stored afresh in a format that goes by that setting.
    pub fn takes_setting(&self, name: &str) -> bool {
        self.recodes().any(|recode| {
            let (from, to) = (recode.from.weight.format(), recode.to.format());
            let own = |setting: &Setting| setting.name == name && (setting.of_scales || from != to);
            !recode.keeps_scales && formats::by_id(to).is_ok_and(|format| format.settings().iter().any(own))
        })
    }

    /// The most bytes that the output's weight files can take.
    pub fn output_bytes(&self) -> u64 {
        self.files.iter().map(OutFile::max_bytes).sum()
    }
}

fn refuse_unused(
    adapter: &Adapter,
    changes: &Changes,
    names: &Names<'_>,
    allow: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let Some(first) = changes.unused.first() else { return Ok(()) };
    let total = adapter.tensors.entries.len();
    let message = format!("{} of {total} adapter tensors match nothing in the base", changes.unused.len());
    if allow && changes.unused.len() < total {
        warnings.push(format!("{message} and are left out, first `{first}`"));
        return Ok(());
    }
    let opaque = names.checkpoint.entries.iter().find(|entry| {
        let stem = first.rsplit(".lora_").last().unwrap_or(first);
        stem.split('.').skip(2).collect::<Vec<_>>().join(".") == entry.name.trim_end_matches(".weight")
            && names.exact(&entry.name).is_none()
    });
    let module = adapter.config.modules_to_save.iter().find(|module| {
        let path = first.strip_prefix("base_model.model.").unwrap_or(first);
        path.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(module.as_str()))
    });
    let hint = match opaque {
        _ if module.is_some() => format!(
            "`{}` was trained whole (modules_to_save) and the base has no such module: if it is a classifier's head, say so with `task_type` \
             (SEQ_CLS, TOKEN_CLS or QUESTION_ANS) in {}, and it is added; --allow-unused leaves it out, and what it learned with it",
            module.map_or("", String::as_str),
            adapter.config.path.display()
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
                "the base has names like `{}`; say how to translate with --map 'regex=>replacement', or leave them out with --allow-unused",
                example.unwrap_or("(none)")
            )
        }
    };
    let file = adapter.tensors.get(first).map_or(adapter.path.as_path(), |entry| adapter.tensors.file_of(entry));
    Err(mismatch(format!("matches nothing in the base ({message})")).in_file(file).in_tensor(first).with_hint(hint))
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Warns of trained tensors in other files of the adapter's folder, or refuses to go on without them.
fn left_out(adapter: &Adapter, allow: bool, warnings: &mut Vec<String>) -> Result<()> {
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
fn repeats(adapters: &[Adapter]) -> Vec<String> {
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    for adapter in adapters {
        let file = adapter.tensors.files.first().map_or(adapter.path.as_path(), |file| file.path());
        *seen.entry(file.canonicalize().unwrap_or_else(|_| file.to_path_buf())).or_default() += 1;
    }
    let mut repeated: Vec<_> = seen.into_iter().filter(|(_, times)| *times > 1).collect();
    repeated.sort();
    let say = |(file, times): (PathBuf, usize)| {
        format!("{} is given {times} times, and its effects are summed", file.parent().unwrap_or(&file).display())
    };
    repeated.into_iter().map(say).collect()
}

/// Counts the names that were used, not those that were merely looked up.
fn rename_warning(renamed: &[Rename], changes: &[Changes]) -> Option<String> {
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
    Some(match all {
        true => format!("{path}: its B factors are all zero, as before any training: it changes nothing"),
        false => format!(
            "{path}: {} of {number} modules have a B factor of zero, as before any training, and change nothing; first `{first}`",
            modules.len()
        ),
    })
}

fn adapter_warnings(adapter: &Adapter, changes: &Changes) -> Vec<String> {
    let mut warnings = Vec::new();
    let missing: Vec<&String> = adapter
        .config
        .target_modules
        .iter()
        .filter(|target| {
            !target.is_empty()
                && !adapter.tensors.entries.iter().any(|entry| entry.name.split('.').any(|part| target.ends_with(part)))
        })
        .collect();
    if let Some(first) = missing.first() {
        warnings.push(format!(
            "{}: the configuration targets `{first}`{}, but the file holds no tensor for it",
            adapter.path.display(),
            if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() }
        ));
    }
    if adapter.weight != 1.0 && changes.replacements.iter().any(|replacement| replacement.trained) {
        warnings.push(format!(
            "{}: modules trained whole are taken as they are; the weight {} applies to the low-rank part only",
            adapter.path.display(),
            adapter.weight
        ));
    }
    warnings
}

fn account(adapter: &Adapter, changes: &Changes) -> Accounting {
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

/// The format of each matrix of the output.
fn output_matrices<'s>(steps: &'s [Step], inputs: &'s Inputs) -> impl Iterator<Item = &'static str> + 's {
    let by_name: HashMap<&str, &'static str> = inputs
        .inventory
        .weights
        .iter()
        .filter_map(|claim| Some((claim.entries.first()?.name.as_str(), claim.weight.format())))
        .collect();
    steps.iter().filter_map(move |step| match &step.action {
        Action::Copy { entry } if entry.shape.len() >= 2 => by_name.get(entry.name.as_str()).copied(),
        Action::Recode(recode) if recode.to.shape().len() >= 2 => Some(recode.to.format()),
        _ => None,
    })
}
