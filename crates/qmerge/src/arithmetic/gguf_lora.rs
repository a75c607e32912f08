//! An adapter as llama.cpp loads it: a GGUF file of factors, under the names and in the order of rows that the base's architecture has.
//!
//! The format has one alpha, and a factor of alpha / r for each product. What scales otherwise (rsLoRA, an `alpha_pattern`) is made to fit: the alpha is the one
//! that most products have, and the others' part is in B. What it cannot say is refused: llama.cpp would load the file and do something else.
//! `adapters/dialects/gguf.rs` is the way back. Source: llama.cpp, `convert_lora_to_gguf.py`, `src/llama-adapter.{cpp,h}`.

use std::collections::BTreeMap;
use std::path::Path;

use super::convert::ConvertOptions;
use super::cut::cut;
use super::new_adapter::finite;
use super::report::{self, Conversion, ConvertedWeight};
use super::svd::{Spectrum, Wanted};
use crate::adapters::Names;
use crate::arch;
use crate::arch::gguf::{File, Layout, Piece, To, View, towers};
use crate::edit::{self, Aside};
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, counted, mismatch, unsupported, usage};
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

/// A weight that the adapter changes, and how a file has it.
struct Job<'p> {
    recode: &'p Recode,
    view: View,
}

/// A product, before its place in the file is known.
struct Pair {
    factors: Factors,
    /// Its factor, times the rank.
    alpha: f64,
    energy: f64,
    kept: f64,
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
    let made;
    let file = if inputs.base.is_self_contained() {
        let file = File::of(&inputs.base).map_err(|unknown| unsupported(unknown.about).in_file(&inputs.base.path))?;
        file.ok_or_else(|| Error::new(Kind::Bug, "a GGUF base without keys"))?
    } else {
        let (layout, keys) = of_model(inputs)?;
        made = keys;
        File::made(layout, &made)
    };
    let (jobs, left_out) = jobs(inputs, plan, &file, options.allow_unused)?;
    let cost = |job: &Job<'_>| job.recode.from.weight.geometry().elements() as u64;
    progress.start(jobs.iter().map(cost).sum());
    progress.phase("converting", "modules");
    let pairs = parallel(&jobs, options.threads, progress, |job| {
        let found = pair(inputs, job, options).map_err(|error| error.in_tensor(job.recode.to.name()))?;
        progress.advance(cost(job));
        Ok(found)
    })?;
    let rank = pairs.iter().map(|pair| pair.factors.rank).max().unwrap_or(1);
    let weights: Vec<ConvertedWeight> = jobs
        .iter()
        .zip(&pairs)
        .map(|(job, pair)| {
            let module = job.recode.to.name();
            ConvertedWeight {
                module: module.strip_suffix(".weight").unwrap_or(module).to_owned(),
                rank: pair.factors.rank,
                energy: pair.energy,
                kept: (pair.energy > 0.0).then_some(pair.kept),
            }
        })
        .collect();
    let pairs = stacked(inputs, jobs, pairs, &file)?;
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

/// That changes of towers are left out, where there are any.
fn says_left_out(left_out: &[&str]) -> Option<String> {
    let first = left_out.first()?;
    let changes = counted(left_out.len(), "weight", "weights");
    Some(format!(
        "what the adapter changes of {changes} that the model sees or hears with is left out, which llama.cpp takes from an mmproj file; first `{first}`"
    ))
}

/// How a file of a folder's model has its weights.
fn of_model(inputs: &Inputs) -> Result<(&'static Layout, Metadata)> {
    let config = arch::config(&inputs.base)?;
    let (config, layout) = towers::stored(config).map_err(|error| {
        error.with_hint(format!(
            "types that are: {}; for any other use llama.cpp's convert_lora_to_gguf.py",
            Layout::known_types().join(", ")
        ))
    })?;
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &[])?;
    let tokens = names.embed().map_or(0, |claim| claim.weight.geometry().rows);
    // The order of rows goes by numbers of heads, which stand beside the number of tokens.
    Ok((layout, layout.said(&config, tokens, 0)?.keys.finish()))
}

/// The weights that the adapter changes, and those of towers, which are left out if `allow` says so. Errors if one is no product, or has no place in a file.
fn jobs<'p>(inputs: &Inputs, plan: &'p Plan, file: &File<'_>, allow: bool) -> Result<(Vec<Job<'p>>, Vec<&'p str>)> {
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
        let shape = recode.from.weight.shape();
        match shape.len() {
            2 => {}
            3 => {
                let is_apart = !inputs.base.is_self_contained() && file.has_single_experts();
                let hint = if is_apart { OF_THE_FILE } else { WAY_OUT };
                return Err(refuse(recode, "a change of a stack of matrices as one").with_hint(hint));
            }
            _ => return Err(refuse(recode, "a change of a bias or a norm")),
        }
        let view = file
            .place(name, shape, false)?
            .ok_or_else(|| refuse(recode, "a weight that the architecture has no name for"))?;
        if view.weave.as_ref().is_some_and(|weave| !weave.deals_out_rows()) {
            return Err(refuse(
                recode,
                "a change of a weight that lies in a file in another order of columns, or turned",
            ));
        }
        jobs.push(Job { recode, view });
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

/// What an adapter adds to a weight: its own factors where all of it is wanted.
fn pair(inputs: &Inputs, job: &Job<'_>, options: &ConvertOptions) -> Result<Pair> {
    let recode = job.recode;
    if options.wanted != Wanted::Share(1.0) {
        let found = cut(inputs, recode, options)?;
        let alpha = found.factors.rank as f64;
        return Ok(Pair { factors: found.factors, alpha, energy: found.energy, kept: found.kept });
    }
    let geometry = recode.from.weight.geometry();
    let rows = 0..geometry.rows;
    let edited = Edited::new(inputs, recode)?;
    let edits = edited.edits().unwrap_or_default();
    let own = match (edits, &recode.edits[..]) {
        ([edit], [(_, planned)]) => match edit.aside(geometry.rows) {
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
    let summed = || {
        let rank = edit::rank(edits, &rows).filter(|rank| *rank > 0 && *rank <= geometry.rows.min(geometry.cols))?;
        edit::factors(edits, &rows, geometry.cols).map(|factors| (Factors { rank, ..factors }, 1.0))
    };
    let (factors, scale) = own.or_else(summed).ok_or_else(|| {
        unsupported("what the adapter does to it is no product of two factors of low rank")
            .with_hint("--rank R, or --energy SHARE with a share below 1, cuts it to one, and says how much that holds")
    })?;
    let Factors { rank, left, right } = factors;
    finite(&left)?;
    finite(&right)?;
    let energy = Spectrum::new(transposed(&left, rank), right.clone(), rank, None).energy() * scale * scale;
    let (left, right) =
        if recode.transposed { (transposed(&right, geometry.cols), transposed(&left, rank)) } else { (left, right) };
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

/// Where a product lies: a weight's own, or those of all experts of a stack, whose factors lie one behind the other.
struct InFile {
    view: View,
    experts: Option<usize>,
}

/// Products of experts become those of their stacks: of one rank, with zeros for an expert that the adapter does not change.
fn stacked(inputs: &Inputs, jobs: Vec<Job<'_>>, pairs: Vec<Pair>, file: &File<'_>) -> Result<Vec<(InFile, Pair)>> {
    let mut all: Vec<(InFile, Pair)> = Vec::new();
    let mut stacks: BTreeMap<String, BTreeMap<usize, Pair>> = BTreeMap::new();
    for (Job { view, .. }, pair) in jobs.into_iter().zip(pairs) {
        match expert(&view.stored) {
            Some((stack, number)) => drop(stacks.entry(stack).or_default().insert(number, pair)),
            None => {
                all.extend(dealt_out(view, pair).into_iter().map(|(view, pair)| (InFile { view, experts: None }, pair)))
            }
        }
    }
    if stacks.is_empty() {
        return Ok(all);
    }
    // Rows and inputs of each stack's experts in the base, and their numbers.
    let mut sizes: BTreeMap<String, (View, usize, usize, Vec<usize>)> = BTreeMap::new();
    for claim in &inputs.inventory.weights {
        let &[rows, cols] = claim.weight.shape() else { continue };
        let Some(view) = file.stored(&towers::alone(claim.weight.name()), rows)? else { continue };
        let Some((stack, number)) = expert(&view.stored) else { continue };
        let own =
            sizes.entry(stack.clone()).or_insert_with(|| (View { stored: stack, ..view }, rows, cols, Vec::new()));
        if (own.1, own.2) != (rows, cols) {
            return Err(mismatch(format!("shape [{rows}, {cols}], but other experts are [{}, {}]", own.1, own.2))
                .in_tensor(claim.weight.name()));
        }
        own.3.push(number);
    }
    for (stack, mut experts) in stacks {
        let Some((view, rows, cols, mut numbers)) = sizes.remove(&stack) else { continue };
        numbers.sort_unstable();
        let count = numbers.len();
        if let Some((missing, _)) = numbers.iter().enumerate().find(|(at, number)| at != *number) {
            return Err(mismatch(format!(
                "the {count} experts of `{stack}` in the base are not numbered from 0 on: no {missing}, or one twice"
            )));
        }
        let rank = experts.values().map(|pair| pair.factors.rank).max().unwrap_or(1);
        // A factor is alpha / rank, whose rank is that of all.
        let alpha_of = |pair: &Pair| pair.alpha / pair.factors.rank.max(1) as f64 * rank as f64;
        let alpha = experts.values().map(alpha_of).find(|alpha| *alpha != 0.0).unwrap_or(rank as f64);
        let mut factors = Factors { rank, left: Vec::new(), right: Vec::new() };
        for number in 0..count {
            let mut left = vec![0.0; rows * rank];
            let mut right = vec![0.0; rank * cols];
            if let Some(pair) = experts.remove(&number) {
                let (more, own) = (alpha_of(&pair) / alpha, pair.factors.rank);
                for (to, from) in left.chunks_exact_mut(rank).zip(pair.factors.left.chunks_exact(own.max(1))) {
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = times(*x, more));
                }
                right.iter_mut().zip(pair.factors.right).for_each(|(to, x)| *to = x);
            }
            factors.left.extend(left);
            factors.right.extend(right);
        }
        all.push((InFile { view, experts: Some(count) }, Pair { factors, alpha, energy: 0.0, kept: 1.0 }));
    }
    Ok(all)
}

/// A product of a weight that lies in several tensors is one for each: they share the inputs' factor, and have their rows of the other.
fn dealt_out(view: View, pair: Pair) -> Vec<(View, Pair)> {
    let Some(weave) = view.weave.clone() else { return vec![(view, pair)] };
    let rank = pair.factors.rank;
    let all = 0..weave.geometry().0;
    let own = |(number, piece): (usize, &Piece)| {
        let rows = weave.rows_of(number, &all);
        let mut left = vec![0.0; rows.len() * rank];
        let at = |row: usize| row * rank..(row + 1) * rank;
        weave.each_row(number, &rows, &all, |to, from| {
            if let (Some(to), Some(from)) = (left.get_mut(at(to)), pair.factors.left.get(at(from))) {
                to.copy_from_slice(from);
            }
        });
        let factors = Factors { rank, left, right: pair.factors.right.clone() };
        (View { stored: piece.stored.clone(), weave: None, ..view.clone() }, Pair { factors, ..pair })
    };
    weave.pieces().iter().enumerate().map(own).collect()
}

/// As a file's alpha is rounded to f32, what is left of a ratio of 1 is that.
fn times(x: f32, more: f64) -> f32 {
    if more as f32 == 1.0 { x } else { (f64::from(x) * more) as f32 }
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
