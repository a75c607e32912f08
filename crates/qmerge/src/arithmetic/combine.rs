//! Several adapters become one.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::gathered::{self, Gathered};
use super::joined::Work;
use super::method::Method;
use super::report::{self, Combination, CombinedAdapter, CombinedWeight};
use super::seen::Seen;
use crate::adapters::{Adapter, ReadOptions, Scales, idle_residual};
use crate::dtype::Dtype;
use crate::edit::{Majority, Operator};
use crate::error::{Result, usage};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::Pieces;
use crate::write::{NewTensor, copy_tokenizer, publish_folder, refuse_replacing, write_adapter};

/// Choices of a combination.
#[derive(Clone, Debug)]
pub struct CombineOptions {
    /// How.
    pub method: &'static Method,
    /// The new rank, for methods that take one; the largest of the adapters' without it.
    pub rank: Option<usize>,
    /// Share of values that stay, above 0: needed by methods that drop some.
    pub density: Option<f64>,
    /// How signs are elected, by methods that let them vote.
    pub majority: Majority,
    /// Seed of methods that draw.
    pub seed: u64,
    /// `regex=factor` rules on module paths: the first that is found in a path is a factor on what all adapters do there.
    pub scales: Vec<String>,
    /// Element type of the new factors.
    pub dtype: Dtype,
    /// Replace an existing output.
    pub force: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// What the adapters mean.
    pub read: ReadOptions,
}

impl CombineOptions {
    /// A method with nothing else chosen.
    pub fn new(method: &'static Method) -> Self {
        Self {
            method,
            rank: None,
            density: None,
            majority: Majority::Total,
            seed: 0,
            scales: Vec::new(),
            dtype: Dtype::F32,
            force: false,
            threads: 1,
            read: ReadOptions::default(),
        }
    }

    fn refuse(&self) -> Result<()> {
        let id = self.method.id;
        if self.rank.is_some() && !self.method.takes_rank() {
            return Err(usage(format!("{id} makes an adapter of the rank that it takes, and is given none"))
                .with_hint("leave --rank out, or take --method svd"));
        }
        if self.rank == Some(0) {
            return Err(usage("an adapter of rank 0 is none").with_hint("give --rank a number above 0"));
        }
        self.method.operator().unwrap_or(Operator::Sum).refuse_density(id, self.density)
    }
}

/// Combines LoRAs, each with its weight, and writes the result as a folder, whole or not at all. Where something is `seen` of a base, directions are those that count on
/// its layers' inputs, in modules whose inputs are known.
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// # use qmerge::{adapters::Adapter, progress::Silent};
/// use qmerge::arithmetic::{CombineOptions, Method, combine};
///
/// let open = |name: &str, weight| Adapter::open(format!("testdata/tiny-llama/adapters/{name}").as_ref(), weight);
/// let adapters = [open("plain", 0.7)?, open("rslora", 0.3)?];
/// # let output = std::env::temp_dir().join(format!("qmerge-combine-{}", std::process::id()));
/// let found = combine(&adapters, None, &output, &CombineOptions::new(Method::by_id("exact")?), &Silent)?;
/// assert_eq!(found.rank, 16);
/// # std::fs::remove_dir_all(&output).ok();
/// # Ok(()) }
/// ```
pub fn combine(
    adapters: &[Adapter],
    seen: Option<Seen<'_>>,
    target: &Path,
    options: &CombineOptions,
    progress: &dyn Progress,
) -> Result<Combination> {
    options.refuse()?;
    if seen.is_some() && !options.method.takes_rank() {
        return Err(usage(format!("{} cuts nothing, so it does not go by layers' inputs", options.method.id))
            .with_hint("give --rank, or take a method that ends in svd"));
    }
    let sources: Vec<&Path> = adapters.iter().map(|adapter| adapter.path.as_path()).collect();
    let Some(first) = adapters.first() else {
        return Err(usage("there is no adapter to combine").with_hint("give --adapter"));
    };
    refuse_replacing(target, options.force, &sources)?;
    let scales = Scales::new(&options.scales)?;
    let gathered = Gathered::of(adapters, &options.read, |number, module| {
        Ok(adapters[number].weight * scales.find(module)?.map_or(1.0, |(_, factor)| factor))
    })?;
    let mut work = Work { adapters, options, rank: 0 };
    progress.start(gathered.sites.iter().map(|site| work.cost(site)).sum());
    progress.phase("combining", "modules");
    work.rank = work.new_rank(&gathered, progress)?;
    let pieces = Pieces {
        inputs: gathered.sites.iter().map(|site| (site.inputs(), site.a.as_str())).collect(),
        wanted: seen.as_ref().map_or_else(|| Ok(HashMap::new()), |seen| seen.sites(&gathered))?,
    };
    let about = seen.as_ref().map(|seen| seen.calibration.about());
    let known = seen.map(|seen| seen.calibration);
    let made = pieces.each(known, options.threads, progress, |number, metric| {
        let site = &gathered.sites[number];
        let made = work.make(site, metric).map_err(|error| error.in_tensor(&site.a))?;
        progress.advance(work.cost(site) - work.rank_cost(site));
        Ok(made)
    })?;
    let weights: Vec<CombinedWeight> = gathered
        .sites
        .iter()
        .zip(&made)
        .map(|(site, (made, by_inputs))| CombinedWeight {
            module: site.module.clone(),
            rank_before: site.rank(),
            energy: made.energy,
            kept: made.kept,
            by_inputs: *by_inputs,
        })
        .collect();
    let has_bias = gathered.sites.iter().any(|site| site.members.iter().any(|member| member.pair.bias.is_some()));
    let config = Value::Object(gathered::config(adapters, &gathered, work.rank, has_bias)?);
    let mut warnings = gathered::warnings(adapters, &gathered);
    warnings.extend(idle_residual(adapters, &options.read));
    let (bytes, beside) = publish_folder(target, options.force, |sink| {
        let beside = copy_tokenizer(&*first.tensors.store, sink)?;
        let mut tensors: Vec<NewTensor<'_>> = Vec::new();
        for (site, (made, _)) in gathered.sites.iter().zip(made) {
            work.tensors(site, made.factors, has_bias, &mut tensors)?;
        }
        tensors.extend(gathered.copies());
        Ok((write_adapter(sink, "", tensors, &config)?, beside))
    })?;
    warnings.extend(beside);
    let part = |(number, adapter): (usize, &Adapter)| {
        let own = || gathered.sites.iter().flat_map(|site| &site.members).filter(|member| member.adapter == number);
        CombinedAdapter {
            adapter: adapter.path.display().to_string(),
            weight: adapter.weight,
            modules: own().count(),
            rank: own().map(|member| member.pair.rank).max().unwrap_or(0),
        }
    };
    Ok(Combination {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        parts: adapters.iter().enumerate().map(part).collect(),
        output: target.display().to_string(),
        method: options.method.id,
        density: options.density,
        seed: options.method.draws().then_some(options.seed),
        calibration: about,
        rank: work.rank,
        bytes,
        kept: report::kept(&weights),
        weights,
        copied: gathered.others.iter().map(|(name, ..)| name.clone()).collect(),
        left_out: gathered.training_only,
        warnings,
    })
}
