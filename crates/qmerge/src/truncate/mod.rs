//! An adapter cut to a lower rank, for serving beside the untouched base.
//!
//! Each module's D = scaling · B·A is replaced by its best approximation of the wanted rank in ‖X‖²_H = tr(X H Xᵀ), H the second moments of the module's
//! inputs where a calibration knows them, else in the plain norm. D is never formed: see [`crate::round::cut`]. The output is an ordinary LoRA with one rank
//! for all modules and a scaling of 1, which is inside its factors, so it needs no patterns and no rsLoRA. What is no factor is copied.

mod report;

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

pub use report::{CutWeight, Truncation};

use crate::adapters::{Adapter, LoraTensors, Pair, ReadOptions, idle_residual, plain_config, read_floats};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, mismatch, usage};
use crate::plan::{Action, Plan, untrained_warning};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::{Calibration, Cut, Factors, Metric, Pieces, cut};
use crate::write::{Data, NewTensor, copy_beside, overflow, publish_folder, refuse_replacing, write_adapter};

/// Choices of a truncation.
#[derive(Clone, Debug, Default)]
pub struct TruncateOptions {
    /// The new rank.
    pub rank: usize,
    /// Element type of the new factors; each factor's own without it.
    pub dtype: Option<Dtype>,
    /// Replace an existing output.
    pub force: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// What the adapter means.
    pub read: ReadOptions,
    /// Why there is no calibration, for the report.
    pub reason: Option<String>,
    /// True if whoever watches was told of the [`work`] already, as a part of more.
    pub announced: bool,
}

/// Nanoseconds of one thread that a module takes, about.
const MODULE: u64 = 5_000_000;

/// The work of cutting an adapter, in nanoseconds of one thread.
#[doc(hidden)]
pub fn work(adapter: &Adapter, options: &TruncateOptions) -> Result<u64> {
    Ok(MODULE * parts(adapter, options)?.pairs.len() as u64)
}

/// A pair of factors after the cut.
struct Done {
    cut: Cut,
    by_inputs: bool,
}

/// Errors if [`truncate`] would refuse an adapter or the output: for callers that do long work before.
#[doc(hidden)]
pub fn refuse_uncuttable(adapter: &Adapter, target: &Path, options: &TruncateOptions) -> Result<()> {
    parts(adapter, options)?;
    refuse_replacing(target, options.force, &[&adapter.path])
}

/// Cuts an adapter and writes it as a folder, whole or not at all. `plan` says which weights of a base its modules are, for `calibration`.
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// # use qmerge::{adapters::Adapter, progress::Silent};
/// use qmerge::truncate::{TruncateOptions, truncate};
///
/// let adapter = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 1.0)?;
/// # let output = std::env::temp_dir().join(format!("qmerge-truncate-{}", std::process::id()));
/// let options = TruncateOptions { rank: 2, threads: 1, ..TruncateOptions::default() };
/// let found = truncate(&adapter, None, None, &output, &options, &Silent)?;
/// println!("{:?} of its energy is kept", found.kept);
/// # std::fs::remove_dir_all(&output).ok();
/// # Ok(()) }
/// ```
pub fn truncate(
    adapter: &Adapter,
    plan: Option<&Plan>,
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &TruncateOptions,
    progress: &dyn Progress,
) -> Result<Truncation> {
    let parts = parts(adapter, options)?;
    refuse_replacing(target, options.force, &[&adapter.path])?;
    let of = |pair: &Pair, metric: Option<&Metric>| {
        let cut = cut_pair(adapter, pair, options.rank, metric).map_err(|error| error.in_tensor(&pair.a))?;
        progress.advance(MODULE);
        Ok(cut)
    };
    if !options.announced {
        progress.start(MODULE * parts.pairs.len() as u64);
    }
    progress.phase("cutting", "modules");
    let pieces = Pieces {
        inputs: parts.pairs.iter().map(|pair| (pair.inputs, pair.a.as_str())).collect(),
        wanted: plan.map_or_else(HashMap::new, |plan| by_weight(plan, &parts.pairs)),
    };
    let about = calibration.as_ref().map(|calibration| calibration.about());
    let known = calibration.filter(|_| plan.is_some());
    let done = pieces.each(known, options.threads, progress, |number, metric| of(&parts.pairs[number], metric))?;
    let done: Vec<Done> = done.into_iter().map(|(cut, by_inputs)| Done { cut, by_inputs }).collect();
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        let warnings = adapter.beside().map_or_else(|| Ok(Vec::new()), |store| copy_beside(store, sink))?;
        let tensors = tensors(adapter, &parts, &done, options)?;
        Ok((
            write_adapter(sink, "", tensors, &Value::Object(plain_config(&adapter.config.json, options.rank)))?,
            warnings,
        ))
    })?;
    let (untrained, modules) = adapter.untrained();
    let is_all = untrained.len() == modules && parts.others.is_empty();
    warnings.extend(untrained_warning(adapter, &untrained, modules, is_all));
    warnings.extend(idle_residual(std::slice::from_ref(adapter), &options.read));
    let weights: Vec<CutWeight> = parts
        .pairs
        .iter()
        .zip(&done)
        .map(|(pair, done)| CutWeight::new(&pair.module, pair.rank, &done.cut, done.by_inputs))
        .collect();
    Ok(Truncation {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        adapter: adapter.path.display().to_string(),
        output: target.display().to_string(),
        rank_before: parts.pairs.iter().map(|pair| pair.rank).max().unwrap_or(0),
        rank: options.rank,
        bytes_before: adapter.tensors.total_bytes(),
        bytes,
        calibration: about,
        reason: options.reason.clone(),
        kept: report::kept(&weights),
        weights,
        copied: parts.others,
        left_out: parts.training_only,
        advice: report::ADVICE.to_owned(),
        warnings,
    })
}

fn parts(adapter: &Adapter, options: &TruncateOptions) -> Result<LoraTensors> {
    let parts = LoraTensors::of(adapter, &options.read)?;
    let most = parts
        .pairs
        .iter()
        .map(|pair| pair.rank)
        .max()
        .ok_or_else(|| mismatch("it has no factors A and B to cut").in_file(adapter.tensors.files[0].path()))?;
    if options.rank == 0 {
        return Err(usage("an adapter of rank 0 is none").with_hint("give --rank a number above 0"));
    }
    if options.rank > most {
        return Err(usage(format!("rank {} is above the adapter's own, {most}", options.rank))
            .in_file(&adapter.path)
            .with_hint(format!("give --rank a number up to {most}")));
    }
    Ok(parts)
}

/// Weights whose inputs are wanted, with the pairs that they are given to. A stack's experts see different inputs, and an embedding's are tokens.
fn by_weight<'p>(plan: &'p Plan, pairs: &[Pair]) -> HashMap<&'p str, Vec<usize>> {
    let numbers: HashMap<&str, usize> = pairs
        .iter()
        .enumerate()
        .filter(|(_, pair)| pair.experts == 1 && !pair.embedding)
        .map(|(number, pair)| (pair.a.as_str(), number))
        .collect();
    let mut found: HashMap<&str, Vec<usize>> = HashMap::new();
    for step in &plan.steps {
        let Action::Recode(recode) = &step.action else { continue };
        let edits = recode.edits.iter().filter_map(|(_, edit)| numbers.get(edit.tensors.first()?.as_str()));
        for &number in edits {
            let own = found.entry(step.name.as_str()).or_default();
            if !own.contains(&number) {
                own.push(number);
            }
        }
    }
    found
}

/// The cut of one module; of a stack, each expert's by itself.
fn cut_pair(adapter: &Adapter, pair: &Pair, rank: usize, metric: Option<&Metric>) -> Result<Cut> {
    let (a, b) = (read_floats(&adapter.tensors, &pair.a)?, read_floats(&adapter.tensors, &pair.b)?);
    let Pair { experts, inputs, outputs, .. } = *pair;
    let (old, new) = (pair.rank * experts, rank * experts);
    let mut all = Cut {
        factors: Factors { rank: new, left: vec![0.0; outputs * new], right: vec![0.0; new * inputs] },
        energy: Some(0.0),
        kept: 0.0,
    };
    for e in 0..experts {
        let left = (0..outputs * pair.rank).map(|at| b[at / pair.rank * old + at % pair.rank * experts + e]).collect();
        let right = a[e * pair.rank * inputs..(e + 1) * pair.rank * inputs].to_vec();
        let one = cut(&Factors { rank: pair.rank, left, right }, pair.scale, rank, metric);
        for (at, x) in one.factors.left.iter().enumerate() {
            all.factors.left[at / rank * new + at % rank * experts + e] = *x;
        }
        all.factors.right[e * rank * inputs..(e + 1) * rank * inputs].copy_from_slice(&one.factors.right);
        all.energy = all.energy.zip(one.energy).map(|(sum, own)| sum + own);
        all.kept += one.kept;
    }
    let values = || all.factors.left.iter().chain(&all.factors.right);
    if !all.kept.is_finite() || values().any(|x| !x.is_finite()) {
        return Err(Error::new(Kind::NotFinite, "its product with B overflows")
            .with_hint("the adapter's values are too large for any model to run it"));
    }
    Ok(all)
}

fn tensors<'a>(
    adapter: &'a Adapter,
    parts: &LoraTensors,
    done: &[Done],
    options: &TruncateOptions,
) -> Result<Vec<NewTensor<'a>>> {
    let source = &adapter.tensors;
    let entry = |name: &str| source.get(name).ok_or_else(|| mismatch("missing").in_tensor(name));
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: Vec<usize>, values: Vec<f32>| {
        let dtype = options.dtype.unwrap_or(entry(name)?.dtype);
        let tensor = NewTensor::of_values(adapter.as_peft_writes(name), dtype, shape, values)
            .ok_or_else(|| overflow(name, dtype))?;
        tensors.push(tensor);
        Ok(())
    };
    for (pair, Done { cut, .. }) in parts.pairs.iter().zip(done) {
        let Factors { rank, left, right } = &cut.factors;
        // Kernels of convolutions keep their shape.
        let a = [&[*rank], &entry(&pair.a)?.shape[1..]].concat();
        let b = [&[pair.outputs, *rank], entry(&pair.b)?.shape.get(2..).unwrap_or_default()].concat();
        add(&pair.a, a, right.clone())?;
        add(&pair.b, b, left.clone())?;
        if let Some(bias) = &pair.bias {
            // PEFT scales it with the product.
            let values = read_floats(source, bias)?.iter().map(|x| (f64::from(*x) * pair.scale) as f32).collect();
            add(bias, entry(bias)?.shape.clone(), values)?;
        }
    }
    for name in &parts.others {
        let entry = entry(name)?;
        tensors.push(NewTensor {
            name: name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: Data::Entry(source, entry),
        });
    }
    Ok(tensors)
}
