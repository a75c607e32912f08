//! What several LoRAs make of a module, by each method.

use super::combine::CombineOptions;
use super::gathered::{self, Gathered, Member, Site};
use super::method::Kind as Way;
use super::stacked::Stacked;
use super::svd::{Spectrum, Wanted, best, is_dependent};
use crate::adapters::Adapter;
use crate::edit::{Kept, Operator, Product, Tile, join};
use crate::error::{Error, Kind, Result};
use crate::linalg::Factors;
use crate::parallel::parallel;
use crate::progress::Progress;
use crate::round::{Metric, seed_of};
use crate::write::{Data, NewTensor, overflow};

/// The new factors of a module: of a stack, of all matrices.
pub(super) struct Made {
    /// None where factors are copied side by side, when they are written.
    pub(super) factors: Option<Factors>,
    /// ‖D‖² and the share of it that is kept, where D is cut.
    pub(super) energy: Option<f64>,
    pub(super) kept: Option<f64>,
}

/// How modules are joined.
pub(super) struct Work<'a> {
    pub(super) adapters: &'a [Adapter],
    pub(super) options: &'a CombineOptions,
    /// The new rank.
    pub(super) rank: usize,
}

impl<'a> Work<'a> {
    /// The rank of all modules.
    pub(super) fn new_rank(&self, gathered: &Gathered<'_>, progress: &dyn Progress) -> Result<usize> {
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

    /// The new factors of a module, in the metric of its inputs if they are known.
    pub(super) fn make(&self, site: &Site, metric: Option<&Metric>) -> Result<Made> {
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
    pub(super) fn tensors(
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
    pub(super) fn cost(&self, site: &Site) -> u64 {
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
    pub(super) fn rank_cost(&self, site: &Site) -> u64 {
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
