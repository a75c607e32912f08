//! An adapter as llama.cpp loads it: a GGUF file of factors, under the names and in the order of rows that the base's architecture has.
//!
//! The format has one alpha, and a factor of alpha / r for each product. What scales otherwise (rsLoRA, an `alpha_pattern`) is made to fit: the alpha is the one
//! that most products have, and the others' part is in B. What it cannot say is refused: llama.cpp would load the file and do something else.
//! `adapters/dialects/gguf.rs` is the way back. Source: llama.cpp, `convert_lora_to_gguf.py`, `src/llama-adapter.{cpp,h}`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::convert::ConvertOptions;
use super::cut::cut;
use super::in_file::{InFile, dealt_out, stacked, times};
use super::new_adapter::finite;
use super::report::{self, Conversion, ConvertedWeight};
use super::svd::{Spectrum, Wanted};
use crate::adapters::Names;
use crate::arch;
use crate::arch::gguf::{File, Layout, To, View, towers};
use crate::edit::{self, Aside};
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, counted, unsupported, usage};
use crate::linalg::{Factors, transposed};
use crate::open::gguf::{Field, Keys, Writer, expert};
use crate::open::{HubId, Metadata};
use crate::parallel::parallel;
use crate::plan::{Action, Inputs, Plan, Recode, Source};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::write::{NewTensor, is_single_file, overflow, publish_file, refuse_replacing};

/// What is said of what the format cannot say.
const WAY_OUT: &str = "merge the adapter into the model, or leave that out of its training";
/// The base for which more can be written.
const OF_THE_FILE: &str =
    "give the model's GGUF file as --base, which has each expert by itself and the language model alone";

/// A file has no larger stacks: what is done for each expert looks at all.
const MOST_EXPERTS: usize = 1 << 14;

/// A weight that the adapter changes, and how a file has it.
struct Job<'p> {
    recode: &'p Recode,
    /// Inputs are rows where it is stored.
    transposed: bool,
    view: View,
}

impl Job<'_> {
    /// Rows of a matrix of the stack that it is, where outputs are rows; of the only one all.
    fn outputs(&self, matrix: usize) -> Range<usize> {
        let outputs = match model_shape(self.recode, self.transposed)[..] {
            [_, outputs, _] => outputs,
            _ => self.recode.outputs(),
        };
        outputs * matrix..outputs * (matrix + 1)
    }
}

/// A product, before its place in the file is known.
pub(super) struct Pair {
    pub(super) factors: Factors,
    /// Its factor, times the rank.
    pub(super) alpha: f64,
    pub(super) energy: f64,
    pub(super) kept: f64,
}

/// Writes the one adapter of a plan as a GGUF file, whole or not at all.
pub fn convert_to_gguf(
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
    if !is_single_file(target) || target.extension().is_some_and(|ending| ending != "gguf") {
        return Err(usage("llama.cpp's adapter is one file")
            .in_file(target)
            .with_hint("give the output a name that ends in .gguf"));
    }
    refuse_replacing(target, options.force, &[adapter.file(), &adapter.path, &inputs.base.path])?;
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &[])?;
    let made;
    let file = if inputs.base.is_self_contained() {
        let file = File::of(&inputs.base).map_err(|unknown| unsupported(unknown.about).in_file(&inputs.base.path))?;
        file.ok_or_else(|| Error::new(Kind::Bug, "a GGUF base without keys"))?
    } else {
        let (layout, keys) = of_model(inputs, &names)?;
        made = keys;
        File::made(layout, &made)
    };
    let (jobs, left_out) = jobs(inputs, &names, plan, &file, options.allow_unused)?;
    let cost = |job: &Job<'_>| job.recode.from.weight.geometry().elements() as u64;
    progress.start(jobs.iter().map(cost).sum());
    progress.phase("converting", "modules");
    let found = parallel(&jobs, options.threads, progress, |job| {
        let found = pairs(inputs, job, options).map_err(|error| error.in_tensor(job.recode.to.name()))?;
        progress.advance(cost(job));
        Ok(found)
    })?;
    let weights: Vec<ConvertedWeight> = jobs.iter().zip(&found).map(|(job, pairs)| told(job, pairs)).collect();
    let rank = weights.iter().map(|weight| weight.rank).max().unwrap_or(1);
    let dealt = jobs.iter().zip(found).flat_map(|(job, pairs)| {
        let each = pairs.into_iter().flat_map(|(matrix, pair)| dealt_out(&job.view, &job.outputs(matrix), pair));
        each.collect::<Vec<_>>()
    });
    let dealt = dealt.collect();
    let pairs = stacked(inputs, jobs.into_iter().map(|job| job.view).collect(), dealt, &file)?;
    let alpha = alpha_of_most(pairs.iter().map(|(_, pair)| pair));
    let mut tensors = Vec::new();
    for (place, Pair { factors, alpha: own, .. }) in pairs {
        for (name, shape, values) in stored(&place, factors, own / f64::from(alpha)) {
            let tensor = NewTensor::of_values(name.clone(), options.dtype, shape, values);
            tensors.push(tensor.ok_or_else(|| overflow(&name, options.dtype))?);
        }
    }
    let mut keys = Keys::default();
    keys.set("general.architecture", Field::Text(file.architecture().to_owned()));
    keys.set("general.type", Field::Text("adapter".into()));
    keys.set("adapter.type", Field::Text("lora".into()));
    if let Some(id) = adapter.config.base_model.as_deref().and_then(HubId::parse) {
        keys.set("general.base_model.count", Field::Count(1));
        keys.set("general.base_model.0.repo_url", Field::Text(format!("https://huggingface.co/{id}")));
    }
    keys.set("adapter.lora.alpha", Field::Float(alpha));
    let bytes = publish_file(target, Writer::anew(keys.finish()), tensors)?;
    Ok(Conversion {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        adapter: adapter.path.display().to_string(),
        method: adapter.config.peft_type.clone(),
        output: target.display().to_string(),
        format: "gguf-lora",
        rank,
        bytes,
        kept: report::held(&weights),
        weights,
        copied: Vec::new(),
        dropped: Vec::new(),
        warnings: says_left_out(&left_out).into_iter().collect(),
    })
}

/// What is said of a weight.
fn told(job: &Job<'_>, pairs: &[(usize, Pair)]) -> ConvertedWeight {
    let module = job.recode.to.name();
    let energy: f64 = pairs.iter().map(|(_, pair)| pair.energy).sum();
    let kept: f64 = pairs.iter().map(|(_, pair)| pair.energy * pair.kept).sum();
    ConvertedWeight {
        module: module.strip_suffix(".weight").unwrap_or(module).to_owned(),
        rank: pairs.iter().map(|(_, pair)| pair.factors.rank).max().unwrap_or(0),
        energy,
        kept: (energy > 0.0).then_some(kept / energy),
    }
}

/// Dimensions of a weight whose matrices have outputs as rows, whatever it is stored as.
fn model_shape(recode: &Recode, transposed: bool) -> Vec<usize> {
    let mut shape = recode.from.weight.shape().to_vec();
    if let (true, [_, rows, cols]) = (transposed, shape.as_mut_slice()) {
        std::mem::swap(rows, cols);
    }
    shape
}

/// That changes of towers are left out, where there are any.
fn says_left_out(left_out: &[&str]) -> Option<String> {
    let first = left_out.first()?;
    let changes = counted(left_out.len(), "weight", "weights");
    Some(format!(
        "what the adapter changes of {changes} that the model sees or hears with is left out, which llama.cpp takes from an mmproj file; first `{first}`"
    ))
}

/// How a file of a folder's model has its weights.
fn of_model(inputs: &Inputs, names: &Names<'_>) -> Result<(&'static Layout, Metadata)> {
    let config = arch::config(&inputs.base)?;
    let (config, layout) = towers::stored(config).map_err(|error| {
        error.with_hint(format!(
            "types that are: {}; for any other use llama.cpp's convert_lora_to_gguf.py",
            Layout::known_types().join(", ")
        ))
    })?;
    let tokens = names.embed().map_or(0, |claim| claim.weight.geometry().rows);
    // The order of rows goes by numbers of heads, which stand beside the number of tokens.
    Ok((layout, layout.said(&config, tokens, 0)?.keys.finish()))
}

/// The weights that the adapter changes, and those of towers, which are left out if `allow` says so. Errors if one is no product, or has no place in a file.
fn jobs<'p>(
    inputs: &Inputs,
    names: &Names<'_>,
    plan: &'p Plan,
    file: &File<'_>,
    allow: bool,
) -> Result<(Vec<Job<'p>>, Vec<&'p str>)> {
    let refuse = |recode: &Recode, problem: &str| -> Error {
        unsupported(format!("{problem}, which llama.cpp's adapters cannot say"))
            .in_file(&inputs.base.path)
            .in_tensor(recode.to.name())
            .with_hint(WAY_OUT)
    };
    let is_stored = |name: &str| inputs.inventory.weights.iter().any(|claim| claim.weight.name() == name);
    // The base's own copy of an embedding comes along with its factors.
    let came_along = |recode: &Recode| {
        let name = recode.from.entries.first().map_or("", |entry| entry.name.as_str());
        let base = inputs.inventory.weights.iter().find(|claim| claim.weight.name() == recode.to.name());
        name.ends_with(".base_layer.weight")
            && base.is_some_and(|base| base.weight.shape() == recode.from.weight.shape())
    };
    let (mut jobs, mut left_out) = (Vec::new(), Vec::new());
    let mut parted = None;
    for step in &plan.steps {
        let Action::Recode(recode) = &step.action else { continue };
        let is_changed = !recode.edits.is_empty() || matches!(recode.source, Source::Adapter(_));
        if is_changed && inputs.tower_of(recode.to.name()).is_some() {
            left_out.push(recode.to.name());
            continue;
        }
        if matches!(recode.source, Source::Adapter(_)) && !came_along(recode) {
            return Err(refuse(recode, "a tensor that was trained whole, or of a vocabulary that was resized"));
        }
        let name = recode.to.name();
        if !is_stored(name) {
            parted = Some(recode);
        }
        if recode.edits.is_empty() {
            continue;
        }
        let is_stack = recode.from.weight.shape().len() == 3;
        let transposed = if is_stack { names.is_turned_stack(recode.from.weight.as_ref()) } else { recode.transposed };
        let shape = model_shape(recode, transposed);
        if !matches!(shape.len(), 2 | 3) {
            return Err(refuse(recode, "a change of a bias or a norm"));
        }
        let view = file.place(name, &shape, false)?;
        if is_stack && shape.first().is_some_and(|matrices| *matrices > MOST_EXPERTS) {
            return Err(refuse(recode, "a change of more matrices in one stack than any model has experts"));
        }
        // A stack goes matrix by matrix, where the file has each by itself.
        let has_matrices = |view: &View| {
            view.weave.as_ref().is_some_and(|weave| {
                weave.deals_out_rows() && weave.pieces().iter().all(|piece| expert(&piece.stored).is_some())
            })
        };
        if is_stack && !view.as_ref().is_some_and(has_matrices) {
            let is_apart = !inputs.base.is_self_contained() && file.has_single_experts();
            let hint = if is_apart { OF_THE_FILE } else { WAY_OUT };
            return Err(refuse(recode, "a change of a stack of matrices as one").with_hint(hint));
        }
        let view = view.ok_or_else(|| refuse(recode, "a weight that the architecture has no name for"))?;
        if view.weave.as_ref().is_some_and(|weave| !weave.deals_out_rows()) {
            return Err(refuse(
                recode,
                "a change of a weight that lies in a file in another order of columns, or turned",
            ));
        }
        jobs.push(Job { recode, transposed, view });
    }
    if let Some(recode) = parted {
        // llama.cpp finds the head's factors by the tensor's name, and a tied head is the embedding's tensor.
        return Err(refuse(recode, "a change of one end of tied embeddings"));
    }
    match left_out.first() {
        Some(name) if !allow || jobs.is_empty() => {
            let or = if jobs.is_empty() { "" } else { ", or leave that out with --allow-unused" };
            Err(unsupported("a change of what the model sees or hears with, which llama.cpp's adapters cannot say")
                .in_file(&inputs.base.path)
                .in_tensor(name)
                .with_hint(format!("merge the adapter into the model{or}")))
        }
        None if jobs.is_empty() => Err(usage("it changes no weight").in_file(&inputs.base.path)),
        _ => Ok((jobs, left_out)),
    }
}

/// What an adapter adds to a weight: its own factors where all of it is wanted. Of a stack those of each matrix that it changes, with its number.
fn pairs(inputs: &Inputs, job: &Job<'_>, options: &ConvertOptions) -> Result<Vec<(usize, Pair)>> {
    let recode = job.recode;
    let is_stack = recode.from.weight.shape().len() == 3;
    if options.wanted != Wanted::Share(1.0) {
        if is_stack {
            return Err(usage("--rank and --energy cut no stack of experts for llama.cpp")
                .with_hint("leave them out: the factors stay as they are"));
        }
        let found = cut(inputs, recode, options)?;
        let alpha = found.factors.rank as f64;
        return Ok(vec![(0, Pair { factors: found.factors, alpha, energy: found.energy, kept: found.kept })]);
    }
    let edited = Edited::new(inputs, recode)?;
    let edits = edited.edits().unwrap_or_default();
    let (rows, cols) = (recode.from.weight.geometry().rows, recode.from.weight.geometry().cols);
    let own = match (edits, &recode.edits[..]) {
        ([edit], [(_, planned)]) if !is_stack => match edit.aside(rows) {
            Some(Aside::Product(product)) => {
                let mut right = Vec::new();
                product.right(0..product.rank, &mut right);
                let scale = planned.plan.scale().unwrap_or(f64::from(product.scale));
                Some((Factors { rank: product.rank, left: product.left.to_vec(), right }, scale))
            }
            _ => None,
        },
        _ => None,
    };
    if let Some((factors, scale)) = own {
        return Ok(vec![(0, of_factors(job, factors, scale)?)]);
    }
    let mut found = Vec::new();
    for (number, rows) in recode.matrices().enumerate() {
        let rank = edit::rank(edits, &rows);
        if is_stack && rank == Some(0) {
            continue;
        }
        let rank = rank.filter(|rank| *rank > 0 && *rank <= rows.len().min(cols));
        let factors = rank.and_then(|rank| Some(Factors { rank, ..edit::factors(edits, &rows, cols)? }));
        // Those of a stack have the adapter's own factor in them.
        let scale = match &recode.edits[..] {
            [(_, planned)] if is_stack => planned.plan.scale().filter(|scale| scale.is_normal()),
            _ => None,
        };
        let factors = factors.ok_or_else(|| {
            let error = unsupported("what the adapter does to it is no product of two factors of low rank");
            let way_out =
                "--rank R, or --energy SHARE with a share below 1, cuts it to one, and says how much that holds";
            error.with_hint(if is_stack { WAY_OUT } else { way_out })
        })?;
        let Factors { rank, mut left, right } = factors;
        let scale = scale.unwrap_or(1.0);
        left.iter_mut().for_each(|x| *x = times(*x, scale.recip()));
        found.push((number, of_factors(job, Factors { rank, left, right }, scale)?));
    }
    Ok(found)
}

/// A product as the model has it, (outputs, inputs), of one that is stored.
fn of_factors(job: &Job<'_>, factors: Factors, scale: f64) -> Result<Pair> {
    let Factors { rank, left, right } = factors;
    finite(&left)?;
    finite(&right)?;
    let energy = Spectrum::new(transposed(&left, rank), right.clone(), rank, None).energy() * scale * scale;
    let cols = right.len() / rank.max(1);
    let (left, right) =
        if job.transposed { (transposed(&right, cols), transposed(&left, rank)) } else { (left, right) };
    Ok(Pair { factors: Factors { rank, left, right }, alpha: scale * rank as f64, energy, kept: 1.0 })
}

/// The alpha that most products have, which is not zero: llama.cpp takes that for a factor of 1.
fn alpha_of_most<'p>(pairs: impl Iterator<Item = &'p Pair>) -> f32 {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for alpha in pairs.map(|pair| pair.alpha as f32).filter(|alpha| alpha.is_normal()) {
        *counts.entry(alpha.to_bits()).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(bits, count)| (*count, *bits));
    most.map_or(1.0, |(bits, _)| f32::from_bits(bits))
}

/// Names, dimensions and values of a product's factors; B is multiplied by `more`.
fn stored(place: &InFile, factors: Factors, more: f64) -> [(String, Vec<usize>, Vec<f32>); 2] {
    let Factors { rank, mut left, right } = factors;
    let view = &place.view;
    let (rows, cols) = (left.len() / rank.max(1), right.len() / rank.max(1));
    left.iter_mut().for_each(|x| *x = times(*x, more));
    if let Some(order) = view.order {
        left = order.permuted(&left, rank, To::File);
    }
    let name = |factor: &str| format!("{}.{factor}", view.stored);
    if view.is_table() {
        // Rows are looked up in A, which is what PEFT's B is not: (tokens, rank).
        let a = (name("lora_a"), vec![rows, rank], left);
        return [a, (name("lora_b"), vec![cols, rank], transposed(&right, cols))];
    }
    let (mut a, mut b) = (vec![rank, cols], vec![rows, rank]);
    if let Some(experts) = place.experts.filter(|experts| *experts > 0) {
        (a, b) = (vec![experts, rank, cols / experts], vec![experts, rows / experts, rank]);
    }
    [(name("lora_a"), a, right), (name("lora_b"), b, left)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(alpha: f64) -> Pair {
        Pair { factors: Factors { rank: 1, left: vec![1.0], right: vec![1.0] }, alpha, energy: 1.0, kept: 1.0 }
    }

    #[test]
    fn the_alpha_is_that_of_most() {
        let of = |alphas: &[f64]| alpha_of_most(alphas.iter().map(|alpha| pair(*alpha)).collect::<Vec<_>>().iter());
        assert_eq!(of(&[16.0, 8.0, 16.0]), 16.0);
        assert_eq!(of(&[8.0, 16.0]), 16.0);
        assert_eq!(of(&[0.0, 0.0, -2.0]), -2.0);
        assert_eq!(of(&[0.0]), 1.0);
    }
}
