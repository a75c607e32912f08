//! An adapter of any method becomes a LoRA.
//!
//! What it adds to a linear layer is cut to the wanted rank: from its factors where it is a product of few, else as a matrix. A method that multiplies (OFT, IA3, DoRA)
//! adds what the base's weight becomes less what it was, so the LoRA fits that base alone. Stacks of experts become a LoRA on the stacked parameter, an embedding's
//! LoRA one on the embedding, and a bias that becomes another is taken whole.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::new_adapter::{NewAdapter, finite};
use super::report::{Conversion, ConvertedWeight, DroppedTensor};
use super::stacked::{Stacked, put_rows};
use super::svd::{Best, Spectrum, Wanted, best};
use super::target::Target;
use crate::adapters::{Adapter, Names, Stack};
use crate::dtype::Dtype;
use crate::edit;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, mismatch};
use crate::formats::Order;
use crate::linalg::{Factors, transposed};
use crate::parallel::parallel;
use crate::plan::{Action, Inputs, Plan, Recode};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::{matrix_name, seed_of};
use crate::write::{Data, NewTensor, copy_beside, publish_folder, refuse_replacing, write_adapter};

/// Choices of a conversion.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The rank of all modules, or the share of what each adds that its rank is to hold.
    pub wanted: Wanted,
    /// Element type of the factors.
    pub dtype: Dtype,
    /// Seed of what large matrices are searched with.
    pub seed: u64,
    /// Replace an existing output.
    pub force: bool,
    /// Leave out what the format has no place for of what the adapter changes: what a model sees or hears with.
    pub allow_unused: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
}

/// Something that becomes a pair of factors.
enum Job<'a> {
    /// The matrix of a layer, or its kernel.
    Layer { recode: &'a Recode, target: Target },
    /// A table of embeddings, in the module of that path.
    Embedding { recode: &'a Recode, module: String },
    /// The matrices of a stack of experts.
    Stack { stack: Stack<'a>, recodes: HashMap<&'a str, &'a Recode> },
}

/// What a plan does to the base's weights, for a LoRA.
#[derive(Default)]
struct Jobs<'a> {
    factors: Vec<Job<'a>>,
    /// Biases that become others, by the layer that has them.
    biases: Vec<(&'a Recode, Target)>,
    dropped: Vec<DroppedTensor>,
}

/// What a job came to.
struct Converted {
    stacked: Stacked,
    energy: f64,
    kept: f64,
}

/// Makes a LoRA of the one adapter of a plan, and writes it as a folder, whole or not at all.
pub fn convert(
    inputs: &Inputs,
    plan: &Plan,
    target: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Conversion> {
    options.wanted.refuse()?;
    let [adapter] = &inputs.adapters[..] else {
        return Err(Error::new(Kind::Bug, "a conversion is of one adapter"));
    };
    if adapter.is_tuned() {
        return Err(mismatch("a tuned model, not an adapter")
            .in_file(&adapter.path)
            .with_hint("extract makes an adapter of it"));
    }
    refuse_replacing(target, options.force, &[&adapter.path, &inputs.base.path])?;
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &[])?;
    let Jobs { factors: jobs, biases, dropped } = Jobs::of(adapter, &names, plan)?;
    if jobs.is_empty() {
        return Err(mismatch("it changes no linear layer, which is what a LoRA can do").in_file(adapter.file()));
    }
    progress.start(jobs.iter().map(Job::cost).sum());
    progress.phase("converting", "modules");
    let found = parallel(&jobs, options.threads, progress, |job| {
        let found = job.find(inputs, options).map_err(|error| error.in_tensor(&job.name()))?;
        progress.advance(job.cost());
        Ok(found)
    })?;
    let rank = found.iter().map(|found| found.stacked.factors.rank).max().unwrap_or(1);
    let mut made = NewAdapter::of_rank(rank);
    let mut weights = Vec::new();
    for (job, Converted { stacked, energy, kept }) in jobs.iter().zip(found) {
        let (module, rank) = (job.path(), stacked.factors.rank);
        weights.push(ConvertedWeight { module, rank, energy, kept: (energy > 0.0).then_some(kept) });
        match job {
            Job::Layer { recode, target } => match recode.from.weight.shape() {
                [_, _, kernel @ ..] if !kernel.is_empty() => {
                    made.take_convolution(&target.module, stacked.factors, kernel, options.dtype)?;
                }
                _ => made.take_all(target.clone(), stacked, options.dtype)?,
            },
            Job::Embedding { module, .. } => made.take_embedding(module, stacked.factors, options.dtype)?,
            Job::Stack { stack, .. } => made.take_all(Target::stack(stack), stacked, options.dtype)?,
        }
    }
    let copied = copies(adapter, &mut made);
    for (recode, target) in biases {
        made.take_bias(&names, target, options.dtype, recode.from.weight.shape().to_vec(), move || {
            let edited = Edited::new(inputs, recode)?;
            let (mut base, mut values) = (Vec::new(), Vec::new());
            edited.rows(&(0..recode.from.weight.geometry().rows), &mut base, &mut values)?;
            Ok(values)
        })?;
    }
    made.is_turned = adapter.config.fan_in_fan_out && made.targets.iter().all(|target| target.parameter.is_none());
    let mut config = made.config(&inputs.base);
    let own = &adapter.config.json;
    for key in [
        "base_model_name_or_path",
        "task_type",
        "modules_to_save",
        "bias",
        "trainable_token_indices",
        "ensure_weight_tying",
    ] {
        // A method has other words for its own biases.
        let is_word = |value: &Value| {
            key != "bias" || !made.has_bias && ["none", "all", "lora_only"].iter().any(|word| *value == *word)
        };
        if let Some(value) = own.get(key).filter(|value| is_word(value)) {
            config[key] = value.clone();
        }
    }
    let tensors = made.finish();
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        let warnings = adapter.beside().map_or_else(|| Ok(Vec::new()), |store| copy_beside(store, sink))?;
        Ok((write_adapter(sink, "", tensors, &config)?, warnings))
    })?;
    if jobs.iter().any(Job::is_of_base) {
        warnings.push(format!(
            "what a {} adapter does to a weight goes by the base's values, so it was computed with this base, and the LoRA fits no other",
            adapter.config.peft_type
        ));
    }
    let all: f64 = weights.iter().map(|weight| weight.energy).sum();
    let held: f64 = weights.iter().filter_map(|weight| Some(weight.kept? * weight.energy)).sum();
    Ok(Conversion {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        adapter: adapter.path.display().to_string(),
        method: adapter.config.peft_type.clone(),
        output: target.display().to_string(),
        format: "peft",
        rank,
        bytes,
        kept: (all > 0.0).then(|| held / all),
        weights,
        copied,
        dropped,
        warnings,
    })
}

impl<'a> Jobs<'a> {
    fn of(adapter: &Adapter, names: &Names<'a>, plan: &'a Plan) -> Result<Self> {
        let mut jobs = Self::default();
        let recodes: HashMap<&'a str, &'a Recode> = plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Recode(recode) if !recode.edits.is_empty() => Some((step.name.as_str(), &**recode)),
                _ => None,
            })
            .collect();
        let mut stacked = HashSet::new();
        for stack in Stack::all(names, !adapter.config.target_parameters.is_empty())? {
            let pieces = stack.experts.iter().flatten().map(|piece| piece.claim.weight.name());
            let own: HashMap<&str, &Recode> =
                pieces.filter_map(|name| recodes.get_key_value(name)).map(|(name, recode)| (*name, *recode)).collect();
            if !own.is_empty() {
                stacked.extend(own.keys().copied());
                jobs.factors.push(Job::Stack { stack, recodes: own });
            }
        }
        for step in &plan.steps {
            let name = step.name.as_str();
            let Some(recode) = recodes.get(name).filter(|_| !stacked.contains(name)) else { continue };
            jobs.sort(adapter, names, name, recode);
        }
        Ok(jobs)
    }

    /// What a LoRA can do in place of the edits of one weight.
    fn sort(&mut self, adapter: &Adapter, names: &Names<'a>, name: &str, recode: &'a Recode) {
        let layers: HashSet<Option<&str>> = recode.edits.iter().map(|(_, edit)| edit.layer.as_deref()).collect();
        let layer = layers.iter().next().copied().flatten().filter(|_| layers.len() == 1);
        let embeddings: HashSet<Option<String>> =
            recode.edits.iter().map(|(_, edit)| adapter.embedding(edit.tensors.first()?)).collect();
        let embedding = embeddings.into_iter().next().flatten().filter(|_| recode.edits.len() == 1);
        let shape = recode.from.weight.shape();
        // PEFT adds what it does to the output projection of torch's attention twice, and a LoRA's too.
        let is_attention = |module: &str| {
            let stem = module.strip_suffix(".out_proj").unwrap_or(module);
            names.exact(&format!("{stem}.in_proj_weight")).is_some()
        };
        let owner = name.strip_suffix(".bias").filter(|module| names.exact(&format!("{module}.weight")).is_some());
        let reason = match (layer, embedding, owner) {
            (_, Some(module), _) => return self.factors.push(Job::Embedding { recode, module }),
            (Some(layer), ..) if is_attention(layer) => {
                "it is a matrix of torch's attention, of which PEFT adds one twice: merge the adapter itself"
            }
            // One channel in each group, or one in all.
            (Some(_), ..) if shape.len() > 2 && shape.get(1) == Some(&1) => {
                "it may be a convolution in groups, whose factors have no common rank: merge the adapter itself"
            }
            (Some(layer), ..) if shape.len() >= 2 => {
                return self.factors.push(Job::Layer { recode, target: Target::layer(names, layer) });
            }
            (_, _, Some(module)) => return self.biases.push((recode, Target::layer(names, module))),
            _ if recode.edits.iter().all(|(_, edit)| edit.plan.is_tokens()) => return,
            _ if name.strip_suffix(".weight").is_some_and(|module| names.layers_within(module).is_some()) => {
                "it is several layers in memory, rows of one tensor here, and this version makes LoRAs of whole ones: merge the adapter itself"
            }
            _ => "it is no matrix of a layer, and this version makes LoRAs of those: merge the adapter itself",
        };
        self.dropped.push(DroppedTensor { name: name.to_owned(), energy: None, reason });
    }
}

impl Job<'_> {
    fn path(&self) -> String {
        match self {
            Self::Layer { target, .. } => target.path(),
            Self::Embedding { module, .. } => module.clone(),
            Self::Stack { stack, .. } => stack.path(),
        }
    }

    /// The name that it has in errors.
    fn name(&self) -> String {
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => recode.from.weight.name().to_owned(),
            Self::Stack { stack, .. } => stack.path(),
        }
    }

    fn cost(&self) -> u64 {
        let elements = |recode: &Recode| recode.from.weight.geometry().elements() as u64;
        60 * match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => elements(recode),
            Self::Stack { recodes, .. } => recodes.values().map(|recode| elements(recode)).sum(),
        }
    }

    fn is_of_base(&self) -> bool {
        let is_of_base = |recode: &Recode| recode.edits.iter().any(|(_, edit)| edit.plan.change.is_of_base());
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => is_of_base(recode),
            Self::Stack { recodes, .. } => recodes.values().any(|recode| is_of_base(recode)),
        }
    }

    fn find(&self, inputs: &Inputs, options: &ConvertOptions) -> Result<Converted> {
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => {
                let Best { factors, energy, kept } = cut(inputs, recode, options)?;
                Ok(Converted { stacked: Stacked::one(factors), energy, kept })
            }
            Self::Stack { stack, recodes } => {
                let (mut own, mut energy, mut held) = (Vec::new(), 0.0, 0.0);
                let mut edited = HashMap::new();
                for expert in 0..stack.experts.len() {
                    let found = cut_matrix(inputs, stack, expert, (recodes, &mut edited), options)?;
                    if let Some(found) = &found {
                        energy += found.energy;
                        held += found.kept * found.energy;
                    }
                    own.push(found.map(|found| found.factors));
                }
                let kept = if energy > 0.0 { held / energy } else { 1.0 };
                Ok(Converted { stacked: Stacked::of(stack, own), energy, kept })
            }
        }
    }
}

/// The same of one matrix of a stack, which may lie in several weights; none where nothing changes it. A weight's edits stay loaded while its matrices go by.
fn cut_matrix<'i>(
    inputs: &'i Inputs,
    stack: &Stack<'_>,
    expert: usize,
    (recodes, loaded): (&HashMap<&str, &Recode>, &mut HashMap<String, Edited<'i>>),
    options: &ConvertOptions,
) -> Result<Option<Best>> {
    let pieces: Vec<_> = stack.experts[expert]
        .iter()
        .filter_map(|piece| Some((piece, *recodes.get(piece.claim.weight.name())?)))
        .collect();
    if pieces.is_empty() {
        return Ok(None);
    }
    loaded.retain(|name, _| pieces.iter().any(|(piece, _)| piece.claim.weight.name() == name));
    for (piece, recode) in &pieces {
        if let Entry::Vacant(place) = loaded.entry(piece.claim.weight.name().to_owned()) {
            place.insert(Edited::new(inputs, recode)?);
        }
    }
    let (outputs, width) = stack.shape;
    let ranks = pieces.iter().map(|(piece, _)| {
        let edits = loaded[piece.claim.weight.name()].edits()?;
        edit::rank(edits, &piece.spot.rows)
    });
    let rank: Option<usize> = ranks.sum();
    if rank == Some(0) {
        return Ok(None);
    }
    let found = match rank.filter(|rank| *rank < outputs.min(width)) {
        Some(rank) => {
            // Turned.
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for (piece, recode) in &pieces {
                let edits = loaded[piece.claim.weight.name()].edits().unwrap_or_default();
                let cols = recode.from.weight.geometry().cols;
                let Some(own) = edit::factors(edits, &piece.spot.rows, cols) else {
                    return Err(Error::new(Kind::Bug, "a product without factors"));
                };
                let (of_outputs, of_inputs) = match piece.spot.transposed {
                    true => (own.right, transposed(&own.left, own.rank)),
                    false => (transposed(&own.left, own.rank), own.right),
                };
                for column in of_outputs.chunks_exact(piece.spot.width.max(1)) {
                    let mut whole = vec![0.0; outputs];
                    for (from, to) in piece.spot.put.iter().zip(piece.spot.take.iter()) {
                        whole[to] = column[from];
                    }
                    left.extend(whole);
                }
                right.extend(of_inputs);
            }
            finite(&left)?;
            finite(&right)?;
            Spectrum::new(left, right, rank, None).best(options.wanted)
        }
        None => {
            let mut difference = vec![0.0; outputs * width];
            for (piece, recode) in &pieces {
                let edited = &loaded[piece.claim.weight.name()];
                let values = added(edited, recode, &piece.spot.rows)?;
                put_rows(&piece.spot, values, width, &mut difference);
            }
            finite(&difference)?;
            let seed = seed_of(&matrix_name(&stack.path(), expert), options.seed);
            best(&difference, width, options.wanted, seed, None)
        }
    };
    finite(&found.factors.left)?;
    finite(&found.factors.right)?;
    Ok(Some(found))
}

/// What edits add to some rows of a weight, as it is stored.
fn added(edited: &Edited<'_>, recode: &Recode, rows: &Range<usize>) -> Result<Vec<f32>> {
    let cols = recode.from.weight.geometry().cols;
    let mut values = Vec::new();
    if recode.adds() {
        let zero = vec![0.0; rows.len() * cols];
        values.resize(zero.len(), 0.0);
        edit::apply(edited.edits().unwrap_or_default(), rows, cols, &zero, &mut values);
    } else {
        let mut base = Vec::new();
        edited.rows(rows, &mut base, &mut values)?;
        values.iter_mut().zip(base).for_each(|(x, base)| *x -= base);
    }
    finite(&values)?;
    Ok(values)
}

/// The best product of the wanted rank for what an adapter adds to a weight.
pub(super) fn cut(inputs: &Inputs, recode: &Recode, options: &ConvertOptions) -> Result<Best> {
    let geometry = recode.from.weight.geometry();
    let (rows, cols) = (geometry.rows, geometry.cols);
    let edited = Edited::new(inputs, recode)?;
    let seed = seed_of(recode.from.weight.name(), options.seed);
    let edits = edited.edits().unwrap_or_default();
    let is_low = edit::rank(edits, &(0..rows)).is_some_and(|rank| rank > 0 && rank < rows.min(cols));
    let product = is_low.then(|| edit::factors(edits, &(0..rows), cols)).flatten();
    let found = if let Some(Factors { rank, left, right }) = product {
        finite(&left)?;
        finite(&right)?;
        let (left, right) = (transposed(&left, rank), right);
        // What is stored turned is another matrix: its outputs are columns.
        let (left, right) = if recode.transposed { (right, left) } else { (left, right) };
        Spectrum::new(left, right, rank, None).best(options.wanted)
    } else {
        let values = added(&edited, recode, &(0..rows))?;
        let values = Order { transposed: recode.transposed, inputs: None }.to_model(values, cols);
        best(&values, if recode.transposed { rows } else { cols }, options.wanted, seed, None)
    };
    finite(&found.factors.left)?;
    finite(&found.factors.right)?;
    Ok(found)
}

/// Takes what is no part of the method over: modules trained whole, biases, tokens.
fn copies<'a>(adapter: &'a Adapter, made: &mut NewAdapter<'a>) -> Vec<String> {
    let mut copied = Vec::new();
    for entry in adapter.others() {
        let name = adapter.as_peft_writes(&entry.name);
        copied.push(name.clone());
        made.tensors.push(NewTensor {
            name,
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: Data::Entry(&adapter.tensors, entry),
        });
    }
    copied
}
