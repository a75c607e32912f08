//! Everything decided before the first byte of a weight is read.
//!
//! A plan is a function of names, shapes, configurations and options: which tensors are copied, which are edited, recoded or
//! replaced, where every byte of the output goes, and what the user should be warned of. It writes nothing, and reads nothing but the small files that another
//! container takes in (a tokenizer), so `--dry-run` shows exactly what would happen.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod accounting;
mod builder;
mod came_along;
mod classifier;
mod config;
mod export;
pub(crate) mod fits;
mod gguf;
mod layout;
mod method;
mod original;
mod part;
mod promote;
mod quantized;
mod recode;
mod rescaled;
mod steps;
mod stored;
mod target;
mod tie;
mod towers;

pub use accounting::Accounting;
pub(crate) use accounting::untrained_warning;
pub use export::{Constant, EXPORTS, Export, Importance};
pub use layout::{OutFile, OutTensor, Slot};
pub use method::{Data, Method};
pub(crate) use original::ORIGINAL;
pub use part::Part;
pub use promote::Promotion;
#[doc(hidden)]
pub use promote::refuse_promotion;
pub use recode::{Recode, Source};
pub use steps::{Action, Step};

use std::collections::HashMap;
use std::sync::Arc;

use accounting::{account, adapter_warnings, left_out, refuse_unused, rename_warning, repeats};
use rescaled::{refuse_parts_of_rescaled, rescaled_warning};

use crate::adapters::{Adapter, Changes, InputFactors, Names, ReadOptions, base_names, idle_residual};
use crate::error::{Result, malformed, usage};
use crate::formats::{self, Claim, Format, Inventory, Setting, Settings};
use crate::open::{Checkpoint, ModelConfig};
use crate::round::Rounding;

/// Choices that a plan takes.
#[derive(Clone)]
pub struct Options {
    /// Output format; `None` keeps each weight's own.
    pub to: Option<&'static dyn Format>,
    /// Another container than the base's, with formats of its own: no other format can be asked for beside it.
    pub export: Option<&'static dyn Export>,
    /// How large the inputs of layers are, for an export whose encoders go by it.
    pub importance: Option<Arc<Importance>>,
    /// Whose tokenizer and chat template the output takes.
    pub tokenizer: Tokenizer,
    /// Choices for weights that take a new format.
    pub settings: Settings,
    /// How codes are chosen.
    pub rounding: Method,
    /// What methods that go by the inputs of layers can go by.
    pub data: Data,
    /// Seed of methods that draw.
    pub seed: u64,
    /// Weights that take a wider type.
    pub promote: Option<Promotion>,
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
            export: None,
            importance: None,
            tokenizer: Tokenizer::default(),
            settings: Settings::default(),
            rounding: Method::Named(crate::round::NEAREST),
            data: Data::Unknown("nothing is known of the inputs of layers".into()),
            seed: 0,
            promote: None,
            residual_rank: None,
            maps: Vec::new(),
            read: ReadOptions::default(),
            allow_unused: false,
        }
    }
}

/// Whose tokenizer and chat template an output takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenizer {
    /// The adapter's where it has them, else the base's.
    #[default]
    Adapter,
    /// The base's.
    Base,
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
        // An adapter may bring a head of its own, and there would be no file for it.
        if base.entries.is_empty() {
            return Err(malformed("the base holds no tensors").in_file(&base.path).with_hint(
                "its files are empty, as a save that was cut short or a placeholder leaves them: take the model again",
            ));
        }
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
    /// True if the output is another container than the base: then no file beside the base's weights is copied.
    pub is_export: bool,
    /// Files that an export has beside its weights, by name.
    pub beside: Vec<(String, Vec<u8>)>,
    /// Whose tokenizer and chat template the output takes.
    pub tokenizer: Tokenizer,
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
    ///
    /// ```
    /// # fn main() -> qmerge::error::Result<()> {
    /// # use qmerge::{adapters::Adapter, open::Checkpoint};
    /// use qmerge::formats;
    /// use qmerge::plan::{Inputs, Method, Options, Plan};
    ///
    /// # let base = Checkpoint::open("testdata/tiny-llama/bases/base-nf4dq".as_ref())?;
    /// # let adapter = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 1.0)?;
    /// let inputs = Inputs::new(base, vec![adapter])?;
    /// // Any plan's format may be another than the base's; without adapters this converts.
    /// let options = Options { to: Some(formats::by_id("bf16")?), rounding: Method::Auto, ..Options::default() };
    /// let plan = Plan::new(&inputs, &options)?;
    /// assert_eq!(plan.output_format, "bf16");
    /// assert!(plan.accounting[0].unused.is_empty()); // every tensor of the adapter has its place
    /// # Ok(()) }
    /// ```
    pub fn new(inputs: &Inputs, options: &Options) -> Result<Self> {
        let names = Names::new(&inputs.base, &inputs.inventory.weights, &options.maps)?;
        let mut warnings = Vec::new();
        let quantizes = options.to.map(|to| to.quantizes()).or_else(|| options.export.map(|export| export.quantizes()));
        let mut changes = read_adapters(inputs, options, &names, quantizes, &mut warnings)?;
        came_along::leave_out(inputs, &names, &mut changes, &mut warnings)?;
        refuse_idle_scales(&options.read, &changes)?;
        refuse_original_of_tuned(inputs)?;
        refuse_parts_of_rescaled(inputs, &changes)?;
        warnings.extend(rename_warning(&names.renamed(), &changes));
        let idle = names.idle_maps();
        warnings.extend(idle.iter().filter_map(|&number| options.maps.get(number)).map(|map| {
            format!("`--map '{map}'` translates no name of the adapter, or a rule before it takes them: a name is a module's path and its parameter, as `model.layers.0.mlp.up_proj.weight`")
        }));
        warnings.extend(repeats(&inputs.adapters));
        warnings.extend(idle_residual(&inputs.adapters, &options.read));
        let own = base_names::of_base(&inputs.base);
        warnings.extend(inputs.adapters.iter().filter_map(|adapter| base_names::warning(adapter, &own)));
        warnings.extend(inputs.adapters.iter().filter_map(|adapter| rescaled_warning(adapter, inputs)));
        let mut untrained_modules = 0;
        let mut untrained = !inputs.adapters.is_empty();
        for (adapter, changes) in inputs.adapters.iter().zip(&changes) {
            let (modules, number) = adapter.untrained();
            let all = modules.len() == number && number > 0 && changes.is_layers_only();
            untrained &= all;
            untrained_modules += modules.len();
            warnings.extend(untrained_warning(adapter, &modules, number, all));
        }
        // Of a GGUF file, another format makes a folder.
        let export =
            options.export.or((options.to.is_some() && inputs.base.is_self_contained()).then_some(export::FOLDER));
        if let Some(to) = options.to.filter(|to| to.is_of_gguf() || options.export.is_some()) {
            return Err(usage(format!("{} is no format of its own here", to.id()))
                .with_hint("types of GGUF files are exports, and a file of them has no other format"));
        }
        if options.promote.as_ref().is_some_and(|promotion| !promotion.is_idle()) {
            refuse_promotion(inputs, options)?;
        }
        method::refuse_without_scales(options.rounding, quantizes)?;
        let options = &Options {
            rounding: if untrained { options.rounding.without_delta() } else { options.rounding },
            export,
            ..options.clone()
        };
        warnings.extend(
            inputs.adapters.iter().zip(&changes).flat_map(|(adapter, changes)| adapter_warnings(adapter, changes)),
        );
        let accounting =
            inputs.adapters.iter().zip(&changes).map(|(adapter, changes)| account(adapter, changes)).collect();
        let mut decided = steps::decide(inputs, options, &names, changes)?;
        warnings.extend(decided.warnings);
        warnings.extend(decided.rounding.warning.filter(|_| !untrained));
        gguf::refuse(inputs, options, &decided.config)?;
        let own = decided.exported.as_mut().and_then(|exported| exported.config.take());
        let config = config::edited(inputs, options, own, decided.skipped.as_deref(), &decided.config)?;
        let is_export = decided.exported.is_some();
        let (files, steps, beside) = match decided.exported {
            Some(mut exported) => {
                let beside = std::mem::take(&mut exported.beside);
                let (files, steps) = layout::lay_out_anew(&inputs.base, exported, decided.steps)?;
                (files, steps, beside)
            }
            None => {
                let (files, steps) = layout::lay_out(inputs, decided.steps)?;
                (files, steps, Vec::new())
            }
        };
        Ok(Self {
            output_format: formats::phrase(output_matrices(&steps, inputs)),
            steps,
            files,
            index: inputs.base.index.clone().filter(|_| !is_export),
            config,
            is_export,
            beside,
            tokenizer: options.tokenizer,
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
            Action::Copy { .. } | Action::Constant(_) => None,
        })
    }

    /// True if what the base has of quantized weights stays in its formats, or it has none.
    pub(crate) fn keeps_format(&self, inputs: &Inputs) -> bool {
        let mut coded = inputs.inventory.weights.iter().filter(|claim| !claim.weight.is_plain()).peekable();
        coded.peek().is_none()
            || coded.any(|claim| self.output_format.split(" + ").any(|have| have == claim.weight.format()))
    }

    /// True if some weight is rounded by what is known of its inputs.
    pub fn is_calibrated(&self) -> bool {
        self.recodes().any(|recode| recode.rounding.whole().is_some())
    }

    /// Names of the weights that are.
    #[doc(hidden)]
    pub fn calibrated(&self) -> impl Iterator<Item = &str> {
        let is_calibrated =
            |step: &&Step| matches!(&step.action, Action::Recode(recode) if recode.rounding.whole().is_some());
        self.steps.iter().filter(is_calibrated).map(|step| step.name.as_str())
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

/// What each adapter changes.
fn read_adapters(
    inputs: &Inputs,
    options: &Options,
    names: &Names<'_>,
    quantizes: Option<bool>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Changes>> {
    let mut changes = Vec::new();
    // What other adapters add is added to the weights that were trained with it. 16 bits lose nothing to gain, and have what PEFT writes.
    let mut reading = options.read.clone();
    if inputs.adapters.len() > 1 || quantizes == Some(false) {
        reading.input_factors = InputFactors::InPlace;
    }
    for adapter in &inputs.adapters {
        let mut read = adapter.read(names, &reading)?;
        warnings.append(&mut read.warnings);
        refuse_unused(adapter, &read, names, options.allow_unused, warnings)?;
        left_out(adapter, options.allow_unused, warnings)?;
        towers::set_aside(inputs, options, adapter, &mut read, warnings)?;
        changes.push(read);
    }
    Ok(changes)
}

/// A tuned model's sum does not depend on what the base's rounding did.
fn refuse_original_of_tuned(inputs: &Inputs) -> Result<()> {
    if inputs.original.is_some()
        && let Some(tuned) = inputs.adapters.iter().find(|adapter| adapter.is_tuned())
    {
        return Err(usage("what the base was quantized from is no use beside a tuned model")
            .in_file(&tuned.path)
            .with_hint(
                "leave out --original: with weight 1 the sum is the tuned model whatever the base's rounding did",
            ));
    }
    Ok(())
}

/// A rule that finds nothing is a mistake.
fn refuse_idle_scales(read: &ReadOptions, changes: &[Changes]) -> Result<()> {
    let idle = |number: &usize| !changes.iter().any(|changes| changes.scales.contains(number));
    let mut idle = read.scales.rules().enumerate().filter(|(number, _)| idle(number));
    match idle.next() {
        Some((_, rule)) if !changes.is_empty() => Err(usage(format!(
            "`--lora-scale {rule}`: no module that is merged is found by it, or rules before it find all of them"
        ))
        .with_hint("it is looked for in paths like `model.layers.0.mlp.up_proj`")),
        _ => Ok(()),
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
