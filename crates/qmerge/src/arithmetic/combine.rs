//! Several adapters become one.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::gathered::{self, Gathered, Member, Site};
use super::method::{Kind as Way, Method};
use super::report::{self, Combination, CombinedAdapter, CombinedWeight};
use super::seen::Seen;
use super::stacked::Stacked;
use super::svd::{Spectrum, Wanted, best, is_dependent};
use crate::adapters::{Adapter, ReadOptions, Scales, idle_residual};
use crate::dtype::Dtype;
use crate::edit::{Kept, Majority, Operator, Product, Tile, join};
use crate::error::{Error, Kind, Result, usage};
use crate::linalg::Factors;
use crate::parallel::parallel;
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::{Metric, Pieces, seed_of};
use crate::write::{Data, NewTensor, copy_tokenizer, overflow, publish_folder, refuse_replacing, write_adapter};

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

/// The new factors of a module: of a stack, of all matrices.
struct Made {
    /// None where factors are copied side by side, when they are written.
    factors: Option<Factors>,
    /// ‖D‖² and the share of it that is kept, where D is cut.
    energy: Option<f64>,
    kept: Option<f64>,
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

struct Work<'a> {
    adapters: &'a [Adapter],
    options: &'a CombineOptions,
    /// The new rank.
    rank: usize,
}

impl<'a> Work<'a> {
    /// The rank of all modules.
    fn new_rank(&self, gathered: &Gathered<'_>, progress: &dyn Progress) -> Result<usize> {
        let sites = &gathered.sites;
        let most = |rank: &dyn Fn(&Site) -> usize| sites.iter().map(rank).max().unwrap_or(1);
        let largest = |site: &Site| site.members.iter().map(|member| member.pair.rank).max().unwrap_or(1);
        match self.options.method.kind {
            Way::Exact => {
                let numbers: Vec<usize> = (0..sites.len()).collect();
                let ranks = parallel(&numbers, self.options.threads, progress, |&number| {
                    let rank = self.needed_rank(&sites[number]).map_err(|error| error.in_tensor(&sites[number].a))?;
                    progress.advance(self.rank_cost(&sites[number]));
                    Ok(rank)
                })?;
                Ok(ranks.into_iter().max().unwrap_or(1).max(1))
            }
            Way::Concatenation => Ok(most(&Site::rank)),
            Way::Factors(_) => {
                for site in sites {
                    self.refuse_ranks(site)?;
                }
                Ok(most(&largest))
            }
            Way::Deltas(_) => Ok(self.options.rank.unwrap_or_else(|| most(&largest))),
        }
    }

    /// Errors if factors of different ranks would be added.
    fn refuse_ranks(&self, site: &Site) -> Result<()> {
        let own = |member: &Member| (member.pair.rank, &self.adapters[member.adapter].path);
        let (rank, path) = own(&site.members[0]);
        let Some((other, another)) = site.members.iter().map(own).find(|(other, _)| *other != rank) else {
            return Ok(());
        };
        Err(Error::new(
            Kind::Mismatch,
            format!(
                "{} adds factors, which have to be of one rank, and `{}` has rank {rank} in {} and {other} in {}",
                self.options.method.id,
                site.module,
                path.display(),
                another.display()
            ),
        )
        .with_hint("take --method svd, or exact, for adapters of different ranks"))
    }

    /// Left (turned) and right factors of all members side by side, with weight and scaling in `right`.
    fn side_by_side(&self, site: &Site, expert: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for member in &site.members {
            let (own_left, own_right) = gathered::factors(self.adapters, member, expert)?;
            let factor = member.weight * member.pair.scale;
            left.extend(own_left);
            right.extend(own_right.into_iter().map(|x| (factor * f64::from(x)) as f32));
        }
        finite(right.iter())?;
        Ok((left, right))
    }

    /// The rank that the exact sum takes.
    fn needed_rank(&self, site: &Site) -> Result<usize> {
        let mut needed = 0;
        for expert in 0..site.experts() {
            let (left, right) = self.side_by_side(site, expert)?;
            let own = if is_dependent(&left, &right, site.rank()) {
                Spectrum::new(left, right, site.rank(), None).values.len()
            } else {
                site.rank()
            };
            needed = needed.max(own);
        }
        Ok(needed)
    }

    fn make(&self, site: &Site, metric: Option<&Metric>) -> Result<Made> {
        let side_by_side = matches!(self.options.method.kind, Way::Exact | Way::Concatenation);
        if side_by_side && site.rank() <= self.rank {
            return Ok(Made { factors: None, energy: None, kept: None });
        }
        let (mut stack, mut energy, mut kept) =
            (Stacked::new((site.outputs(), site.inputs()), self.rank, site.experts()), 0.0, 0.0);
        for expert in 0..site.experts() {
            let (factors, own_energy, own_kept) = match self.options.method.kind {
                Way::Exact | Way::Concatenation | Way::Deltas(Operator::Sum) => {
                    let (left, right) = self.side_by_side(site, expert)?;
                    let spectrum = Spectrum::new(left, right, site.rank(), metric);
                    (spectrum.cut(self.rank), spectrum.energy(), spectrum.kept(self.rank).unwrap_or(1.0))
                }
                Way::Factors(operator) => (self.of_factors(operator, site, expert)?, 0.0, 1.0),
                Way::Deltas(operator) => {
                    let dense = self.of_deltas(operator, site, expert)?;
                    let seed = seed_of(&site.a, self.options.seed);
                    let found = best(&dense, site.inputs(), Wanted::Rank(self.rank), seed, metric);
                    (found.factors, found.energy, found.kept)
                }
            };
            finite(factors.left.iter().chain(&factors.right))?;
            energy += own_energy;
            kept += own_energy * own_kept;
            stack.put(expert, &factors);
        }
        let energy = self.options.method.takes_rank().then_some(energy);
        Ok(Made {
            factors: Some(stack.factors),
            energy,
            kept: energy.filter(|energy| *energy > 0.0).map(|energy| kept / energy),
        })
    }

    fn seed(&self, site: &Site, member: usize, factor: &str, expert: usize) -> u64 {
        // The adapter's place among the adapters, so that it draws the same in modules that others do not have.
        seed_of(&format!("{}.{factor}.{expert}.{}", site.a, site.members[member].adapter), self.options.seed)
    }

    /// An operator on the list of B and on that of A.
    fn of_factors(&self, operator: Operator, site: &Site, expert: usize) -> Result<Factors> {
        let lists = site
            .members
            .iter()
            .map(|member| gathered::factors(self.adapters, member, expert))
            .collect::<Result<Vec<_>>>()?;
        let (lefts, rights): (Vec<_>, Vec<_>) = lists.into_iter().unzip();
        let one = |name: &str, mut values: Vec<Vec<f32>>, signed: bool| -> Result<Vec<f32>> {
            let weights: Vec<f32> = site
                .members
                .iter()
                .map(|member| member.weight * member.pair.scale)
                .map(|weight| (weight.abs().sqrt() * if signed && weight < 0.0 { -1.0 } else { 1.0 }) as f32)
                .collect();
            for (number, values) in values.iter_mut().enumerate() {
                let seed = self.seed(site, number, name, expert);
                let density = self.options.density.unwrap_or(1.0);
                let kept = Kept::of(operator, density, seed, |each| {
                    each(values);
                    Ok(())
                })?;
                kept.prune(0, values);
            }
            let mut out = vec![0.0; values[0].len()];
            join(operator, self.options.majority, &weights, &values, &mut out);
            Ok(out)
        };
        let (left, right) = (one("B", lefts, false)?, one("A", rights, true)?);
        let own = site.members[0].pair.rank;
        let (rows, rank) = (site.outputs(), self.rank);
        let mut padded = Factors { rank, left: vec![0.0; rows * rank], right: vec![0.0; rank * site.inputs()] };
        for (k, column) in left.chunks_exact(rows).enumerate().take(own) {
            column.iter().enumerate().for_each(|(r, x)| padded.left[r * rank + k] = *x);
        }
        padded.right[..right.len()].copy_from_slice(&right);
        Ok(padded)
    }

    /// An operator on the deltas (outputs, inputs), some rows at a time.
    fn of_deltas(&self, operator: Operator, site: &Site, expert: usize) -> Result<Vec<f32>> {
        let (rows, cols) = (site.outputs(), site.inputs());
        let height = (CHUNK / cols).max(1);
        let tiles = || {
            (0..rows).step_by(height).map(|first| Tile { outputs: first..rows.min(first + height), inputs: 0..cols })
        };
        let mut products = Vec::new();
        let mut kept = Vec::new();
        for (number, member) in site.members.iter().enumerate() {
            let (left, right) = gathered::factors(self.adapters, member, expert)?;
            let left = (0..left.len()).map(|at| left[at % member.pair.rank * rows + at / member.pair.rank]).collect();
            let product = Product::new(member.pair.rank, left, right, member.pair.scale as f32, None);
            let density = self.options.density.unwrap_or(1.0);
            let mut values = Vec::new();
            kept.push(Kept::of(operator, density, self.seed(site, number, "D", expert), |each| {
                for tile in tiles() {
                    values.resize(tile.len(), 0.0);
                    product.tile(&tile, &mut values);
                    each(&values);
                }
                Ok(())
            })?);
            products.push(product);
        }
        let weights: Vec<f32> = site.members.iter().map(|member| member.weight as f32).collect();
        let mut out = vec![0.0; rows * cols];
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); products.len()];
        for (tile, chunk) in tiles().zip(out.chunks_mut(height * cols)) {
            for ((product, kept), values) in products.iter().zip(&kept).zip(&mut values) {
                values.resize(chunk.len(), 0.0);
                product.tile(&tile, values);
                kept.prune((tile.outputs.start * cols) as u64, values);
            }
            join(operator, self.options.majority, &weights, &values, chunk);
        }
        finite(out.iter())?;
        Ok(out)
    }

    /// The new tensors of a module.
    fn tensors(
        self: &Work<'a>,
        site: &'a Site,
        factors: Option<Factors>,
        has_bias: bool,
        to: &mut Vec<NewTensor<'a>>,
    ) -> Result<()>
    where
        Self: 'a,
    {
        let (rank, dtype) = (self.rank, self.options.dtype);
        match factors {
            Some(Factors { left, right, .. }) => {
                for (name, shape, values) in [(&site.a, site.a_shape(rank), right), (&site.b, site.b_shape(rank), left)]
                {
                    let tensor = NewTensor::of_values(name.clone(), dtype, shape, values);
                    to.push(tensor.ok_or_else(|| overflow(name, dtype))?);
                }
            }
            None => {
                let whole = Work { adapters: self.adapters, options: self.options, rank };
                let again = Work { adapters: self.adapters, options: self.options, rank };
                let later = |name: &String, shape, make| NewTensor {
                    name: name.clone(),
                    dtype,
                    shape,
                    data: Data::Later(make),
                };
                to.push(later(&site.a, site.a_shape(rank), Box::new(move || Ok(whole.concatenated(site)?.right))));
                to.push(later(&site.b, site.b_shape(rank), Box::new(move || Ok(again.concatenated(site)?.left))));
            }
        }
        if has_bias && !site.is_embedding() {
            let values = gathered::bias(self.adapters, site)?.unwrap_or_else(|| vec![0.0; site.outputs()]);
            let tensor = NewTensor::of_values(site.bias.clone(), dtype, vec![site.outputs()], values);
            to.push(tensor.ok_or_else(|| overflow(&site.bias, dtype))?);
        }
        Ok(())
    }

    /// Factors side by side, as they are written.
    fn concatenated(&self, site: &Site) -> Result<Factors> {
        let mut stack = Stacked::new((site.outputs(), site.inputs()), self.rank, site.experts());
        for expert in 0..site.experts() {
            let (left, right) = self.side_by_side(site, expert)?;
            let (own, rows) = (site.rank(), site.outputs());
            let left = (0..own * rows).map(|at| left[at % own * rows + at / own]).collect();
            stack.put(expert, &Factors { rank: own, left, right });
        }
        Ok(stack.factors)
    }

    /// Nanoseconds of one thread that a module takes, about.
    fn cost(&self, site: &Site) -> u64 {
        let (n, ends) = (site.rank() as u64, (site.inputs() + site.outputs()) as u64);
        let matrix = site.inputs() as u64 * site.outputs() as u64;
        let each = match self.options.method.kind {
            Way::Exact | Way::Deltas(Operator::Sum) => ends * n * n / 8 + 4 * n * n * n,
            Way::Concatenation | Way::Factors(_) => 4 * ends * n,
            Way::Deltas(_) => matrix * (n / 8 + 40),
        };
        each * site.experts() as u64 + 1000
    }

    /// The part of that which goes into finding the rank.
    fn rank_cost(&self, site: &Site) -> u64 {
        if self.options.method.kind == Way::Exact { self.cost(site) / 4 * 3 } else { 0 }
    }
}

/// Values of a delta that are made at a time.
const CHUNK: usize = 1 << 16;

fn finite<'v>(mut values: impl Iterator<Item = &'v f32>) -> Result<()> {
    match values.all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFinite, "a value overflows in f32")
            .with_hint("the adapter's values or its weight are too large")),
    }
}
