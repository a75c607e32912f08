//! Sums over a weight of the base and the same weight of the merge, and comparison of what no adapter touches.

use std::collections::HashMap;
use std::ops::Range;

use super::experts::{Matrix, Straight};
use super::rounded::Rounded;
use crate::adapters::Names;
use crate::arch;
use crate::arch::gguf::Layout;
use crate::edit::common_step;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result};
use crate::formats::{Claim, Geometry, Grid, Levels, Reader, Weight};
use crate::linalg::transposed;
use crate::measure::Sums;
use crate::open::{Checkpoint, Entry, same_bytes};
use crate::parallel::parallel;
use crate::plan::{Inputs, Recode};
use crate::progress::Progress;
use crate::simd::differences::differences;

/// Relative error up to which a tensor that was stored as this weight is counts as the same: about 1.7 times what as many bits leave of normal values, which is 0.1, 0.19,
/// 0.34 and 0.6 of four to one (Max 1960).
pub(super) fn same_recoded(weight: &dyn Weight) -> f64 {
    let bytes: u64 = weight.parts().iter().map(|part| part.bytes).sum();
    match 8 * bytes / weight.geometry().elements().max(1) as u64 {
        4.. => 0.2,
        3 => 0.34,
        2 => 0.58,
        _ => 0.9,
    }
}

/// Relative error of a value that was rounded to 16 bits before it was quantized.
const ROUNDED: f32 = 0.004;
/// Relative error of scales that were quantized after the codes were chosen by them.
const NESTED: f32 = 0.1;

/// True if the merge is a GGUF file with more rows, which are to be zeros.
fn is_padded(own: Geometry, claim: &Claim) -> bool {
    let other = claim.weight.geometry();
    let is_longer = other.rows > own.rows && other.cols == own.cols;
    is_longer && claim.weight.view().is_some() && Layout::may_be_padded(claim.weight.name())
}

/// One verification in progress.
pub(super) struct Run<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) merged: &'a Checkpoint,
    /// How the base has its experts.
    pub(super) experts: Option<arch::Experts>,
    /// The base's weights by the name of their first tensor.
    pub(super) stored: HashMap<&'a str, &'a Claim>,
    /// Worker threads.
    pub(super) threads: usize,
    pub(super) progress: &'a dyn Progress,
}

/// The weight of the merge that one of the base became. A head that the merge has tied is its embedding, and its bias what stands beside it.
pub(super) fn counterpart<'m>(found: &Names<'m>, name: &str) -> Result<Option<&'m Claim>> {
    let tied = || match name.strip_suffix(".weight") {
        Some(module) => Some(found.tied_to(module)?.1),
        None => found.tied_bias(name),
    };
    Ok(found.find(name)?.or_else(tied))
}

impl Run<'_> {
    /// The tensor of the merge that one of the base became: of the same name, or of the same weight of the model.
    pub(super) fn find_entry<'m>(&self, found: &Names<'m>, entry: &Entry) -> Result<Option<&'m Entry>> {
        let name = self.stored.get(entry.name.as_str()).map_or(entry.name.as_str(), |claim| claim.weight.name());
        match found.checkpoint.get(&entry.name) {
            Some(entry) => Ok(Some(entry)),
            None => Ok(counterpart(found, name)?.map(|claim| &claim.entries[0])),
        }
    }

    /// True if the rows that the merge has behind the base's are zeros.
    fn ends_in_zeros(&self, own: Geometry, claim: &Claim) -> Result<bool> {
        let (reader, other) = (Reader::new(self.merged, claim)?, claim.weight.geometry());
        let chunks = chunks(other.rows.saturating_sub(own.rows), other.cols, other.row_step);
        let zeros = parallel(&chunks, self.threads, self.progress, |rows| {
            let mut values = Vec::new();
            reader.rows(&(own.rows + rows.start..own.rows + rows.end), &mut values)?;
            Ok(values.iter().all(|x| *x == 0.0))
        })?;
        Ok(zeros.into_iter().all(|is_zero| is_zero))
    }

    /// Rows of the merge as the base has them.
    fn reader<'m>(&'m self, geometry: Geometry, claim: &'m Claim) -> Result<Reader<'m>> {
        let other = Reader::new(self.merged, claim)?;
        if is_padded(geometry, claim) { Ok(other) } else { other.reshaped(geometry.rows, geometry.cols) }
    }

    /// Sums of W0, T and M over one weight, on all threads, added in row order; and what its values say where they are stored as they are.
    pub(super) fn measure(&self, recode: &Recode, claim: &Claim) -> Result<(Sums, Option<Rounded>)> {
        let geometry = recode.from.weight.geometry();
        let shape_differs = claim.weight.geometry().elements() != geometry.elements();
        let is_padded = is_padded(geometry, claim);
        if is_padded && !self.ends_in_zeros(geometry, claim)? {
            let problem = format!("behind the {} rows of the base the merge has others than zeros", geometry.rows);
            return Err(Error::new(Kind::Mismatch, problem).in_file(&self.merged.path));
        }
        if shape_differs && !is_padded {
            return Err(Error::new(
                Kind::Mismatch,
                format!("shape {:?} in the merge, {:?} expected", claim.weight.shape(), recode.to.shape()),
            )
            .in_file(&self.merged.path));
        }
        if let Some(matrices) = self.turned(recode.from.weight.as_ref(), claim) {
            let target = Target::new(self.inputs, recode, claim)?;
            return target
                .added(matrices.iter().map(|(own, other)| target.whole(own, &self.turned_back(claim, other)?)));
        }
        let other = self.reader(geometry, claim)?;
        let step = common_step(geometry.row_step, other.claim().weight.geometry().row_step);
        let target = Target::new(self.inputs, recode, claim)?;
        let chunks = chunks(geometry.rows, geometry.cols, step);
        let found = parallel(&chunks, self.threads, self.progress, |rows| target.chunk(rows, &other, rows))?;
        target.added(found.into_iter().map(Ok))
    }

    /// The same of experts that lie otherwise in the merge.
    pub(super) fn measure_experts(
        &self,
        recode: &Recode,
        matrices: &[Matrix<'_>],
        claim: &Claim,
    ) -> Result<(Sums, Option<Rounded>)> {
        let target = Target::new(self.inputs, recode, claim)?;
        let Some(runs) = runs(matrices) else {
            return target.added(matrices.iter().map(|matrix| target.whole(&matrix.rows, &matrix.read(self.merged)?)));
        };
        let found = self.in_runs(&recode.from, &runs, |rows, other, theirs| target.chunk(rows, other, theirs))?;
        target.added(found.into_iter().map(Ok))
    }

    /// What `work` finds in each chunk of the runs' rows, with a reader of the merge and the rows there.
    fn in_runs<T: Send>(
        &self,
        own: &Claim,
        runs: &[Straight<'_>],
        work: impl Fn(&Range<usize>, &Reader<'_>, &Range<usize>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let cols = own.weight.geometry().cols;
        let cut = |run: &Straight<'_>| {
            let step = common_step(own.weight.geometry().row_step, run.claim.weight.geometry().row_step);
            chunks(run.rows.len(), cols, step.min(run.rows.len().max(1)))
        };
        let mut readers: HashMap<&str, Reader<'_>> = HashMap::new();
        for run in runs.iter().map(|run| run.claim) {
            if !readers.contains_key(run.weight.name()) {
                readers.insert(run.weight.name(), Reader::new(self.merged, run)?);
            }
        }
        let parts: Vec<(&Straight<'_>, Range<usize>)> =
            runs.iter().flat_map(|run| cut(run).into_iter().map(move |rows| (run, rows))).collect();
        parallel(&parts, self.threads, self.progress, |(run, rows)| {
            let at = |first: usize| first + rows.start..first + rows.end;
            work(&at(run.rows.start), &readers[run.claim.weight.name()], &at(run.first))
        })
    }

    /// Share of a quantized weight's values that hold a level which neither the base has nor rounding to the nearest would give: a method chose it.
    /// `None` where the merge stores values as they are.
    pub(super) fn chosen(&self, recode: &Recode, claim: &Claim) -> Result<Option<f64>> {
        if claim.weight.is_plain() || self.turned(recode.from.weight.as_ref(), claim).is_some() {
            return Ok(None);
        }
        let geometry = recode.from.weight.geometry();
        let target = Edited::new(self.inputs, recode)?;
        let other = self.reader(geometry, claim)?;
        let step = common_step(geometry.row_step, other.claim().weight.geometry().row_step);
        let chunks = chunks(geometry.rows, geometry.cols, step);
        let chosen = parallel(&chunks, self.threads, self.progress, |rows| chosen_in(&target, rows, &other, rows))?;
        Ok(Some(chosen.iter().sum::<usize>() as f64 / geometry.elements().max(1) as f64))
    }

    /// The same of experts that lie otherwise in the merge; `None` too where no row of the base is one there.
    pub(super) fn chosen_experts(&self, recode: &Recode, matrices: &[Matrix<'_>]) -> Result<Option<f64>> {
        let geometry = recode.from.weight.geometry();
        // Codes of rows that go together are only known together.
        let is_cut = |run: &Straight<'_>| run.claim.weight.geometry().row_step == 1 && !run.claim.weight.is_plain();
        let Some(runs) = runs(matrices).filter(|runs| geometry.row_step == 1 && runs.iter().all(is_cut)) else {
            return Ok(None);
        };
        let target = Edited::new(self.inputs, recode)?;
        let chosen =
            self.in_runs(&recode.from, &runs, |rows, other, theirs| chosen_in(&target, rows, other, theirs))?;
        Ok(Some(chosen.iter().sum::<usize>() as f64 / geometry.elements().max(1) as f64))
    }

    /// True if a tensor that no adapter touches holds the same values in the merge.
    pub(super) fn unchanged(&self, entry: &Entry, found: &Names<'_>) -> Result<bool> {
        let claim = self.stored.get(entry.name.as_str()).copied();
        let other = claim.map_or(Ok(None), |claim| counterpart(found, claim.weight.name()))?;
        let (Some(claim), Some(other)) = (claim, other) else {
            let Some(other) = self.find_entry(found, entry)? else { return Ok(false) };
            return same_bytes((&self.inputs.base, entry), (self.merged, other));
        };
        Ok(self.against_base(claim, other)?.is_some_and(|sums| is_same(&sums, claim, other)))
    }

    /// How far a weight of the merge is from a base's; `None` where their shapes differ.
    pub(super) fn against_base(&self, claim: &Claim, other: &Claim) -> Result<Option<Sums>> {
        let geometry = claim.weight.geometry();
        let is_padded = is_padded(geometry, other);
        if is_padded && !self.ends_in_zeros(geometry, other)?
            || !is_padded && other.weight.geometry().elements() != geometry.elements()
        {
            return Ok(None);
        }
        let base = Reader::new(&self.inputs.base, claim)?;
        let sums = if let Some(matrices) = self.turned(claim.weight.as_ref(), other) {
            let mut total = Sums::zero();
            for (own, theirs) in &matrices {
                let mut w = Vec::new();
                base.rows(own, &mut w)?;
                let m = self.turned_back(other, theirs)?;
                total.add(&Sums { elements: w.len() as u64, differences: differences(&w, &w, &m) });
            }
            total
        } else {
            let other = self.reader(geometry, other)?;
            let step = common_step(geometry.row_step, other.claim().weight.geometry().row_step);
            self.summed(geometry.rows, geometry.cols, step, |rows| {
                let (mut w, mut m) = (Vec::new(), Vec::new());
                base.rows(rows, &mut w)?;
                other.rows(rows, &mut m)?;
                Ok(Sums { elements: w.len() as u64, differences: differences(&w, &w, &m) })
            })?
        };
        Ok(Some(sums))
    }

    /// The same of experts that lie otherwise in the merge.
    pub(super) fn unchanged_experts(&self, claim: &Claim, matrices: &[Matrix<'_>], other: &Claim) -> Result<bool> {
        let base = Reader::new(&self.inputs.base, claim)?;
        let sums_of = |w: &[f32], m: &[f32]| Sums { elements: w.len() as u64, differences: differences(w, w, m) };
        let mut total = Sums::zero();
        match runs(matrices) {
            Some(runs) => {
                let found = self.in_runs(claim, &runs, |rows, other, theirs| {
                    let (mut w, mut m) = (Vec::new(), Vec::new());
                    base.rows(rows, &mut w)?;
                    other.rows(theirs, &mut m)?;
                    Ok(sums_of(&w, &m))
                })?;
                found.iter().for_each(|sums| total.add(sums));
            }
            None => {
                for matrix in matrices {
                    let mut w = Vec::new();
                    base.rows(&matrix.rows, &mut w)?;
                    total.add(&sums_of(&w, &matrix.read(self.merged)?));
                }
            }
        }
        Ok(is_same(&total, claim, other))
    }

    /// Where rows of the one are columns of the other, the rows of each matrix in both: GPTQ stores inputs as rows, as GPT-2 does while it is plain, and gpt-oss and Llama 4 their stacks of experts.
    fn turned(&self, base: &dyn Weight, merged: &Claim) -> Option<Vec<(Range<usize>, Range<usize>)>> {
        let config = self.inputs.base.config.as_ref().and_then(|config| arch::language_model(config).ok());
        let arch = arch::find(config.as_ref().map_or("", |config| config.model_type()));
        let module = base.name().strip_suffix(".weight").unwrap_or(base.name());
        let (turns, matrices) = match base.shape() {
            [_, _] => (arch::leaf_in(module, arch.transposed), 1),
            [matrices, _, _] => {
                let is_stack = |experts: arch::Experts| experts.in_out && arch::leaf_in(module, &experts.stacked);
                (self.experts.is_some_and(is_stack), *matrices)
            }
            _ => return None,
        };
        let is_transposed = |weight: &dyn Weight| weight.is_transposed() || weight.has_family_order() && turns;
        let (own, other) = (base.geometry(), merged.weight.geometry());
        let [rows, others] = [own.rows, other.rows].map(|rows| rows.checked_div(matrices).unwrap_or(0));
        let fits = (rows, own.cols) == (other.cols, others) && own.rows == rows * matrices;
        let part = |number: usize, rows: usize| number * rows..(number + 1) * rows;
        (fits && is_transposed(base) != is_transposed(merged.weight.as_ref()))
            .then(|| (0..matrices).map(|number| (part(number, rows), part(number, others))).collect())
    }

    /// Some rows of a weight of the merge as the base stores them.
    fn turned_back(&self, claim: &Claim, rows: &Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        Reader::new(self.merged, claim)?.rows(rows, &mut values)?;
        Ok(transposed(&values, claim.weight.geometry().cols))
    }

    /// Adds up what `work` finds in each chunk of rows, in row order.
    fn summed(
        &self,
        rows: usize,
        cols: usize,
        step: usize,
        work: impl Fn(&std::ops::Range<usize>) -> Result<Sums> + Sync,
    ) -> Result<Sums> {
        let mut total = Sums::zero();
        for sums in parallel(&chunks(rows, cols, step), self.threads, self.progress, work)? {
            total.add(&sums);
        }
        Ok(total)
    }
}

/// A weight as the merge should have it, and what it is measured by.
struct Target<'a> {
    edited: Edited<'a>,
    cols: usize,
    /// Roundings on the way of a value that the merge stores as it is; `None` where it does not, or nothing edits it.
    times: Option<usize>,
}

impl<'a> Target<'a> {
    fn new(inputs: &'a Inputs, recode: &Recode, claim: &Claim) -> Result<Self> {
        // The base's values, and what each edit makes of them; what multiplies has factors, norms and products of its own.
        let multiplying = recode.edits.iter().filter(|(_, edit)| !edit.plan.is_additive()).count();
        let times = 1 + recode.edits.len() + 3 * multiplying;
        Ok(Self {
            edited: Edited::new(inputs, recode)?,
            cols: recode.from.weight.geometry().cols,
            times: (claim.weight.is_plain() && !recode.edits.is_empty()).then_some(times),
        })
    }

    /// Sums over some rows, whose values the merge has in some of a weight.
    fn chunk(&self, rows: &Range<usize>, other: &Reader<'_>, theirs: &Range<usize>) -> Result<(Sums, Option<Rounded>)> {
        let mut m = Vec::new();
        other.rows(theirs, &mut m)?;
        self.whole(rows, &m)
    }

    /// Sums over some rows, of which `m` are the merge's.
    fn whole(&self, rows: &Range<usize>, m: &[f32]) -> Result<(Sums, Option<Rounded>)> {
        let (mut w, mut t) = (Vec::new(), Vec::new());
        self.edited.rows(rows, &mut w, &mut t)?;
        let sums = Sums { elements: w.len() as u64, differences: differences(&w, &t, m) };
        Ok((sums, self.times.map(|times| Rounded::of(self.cols, times, &w, &t, m))))
    }

    fn added(&self, found: impl Iterator<Item = Result<(Sums, Option<Rounded>)>>) -> Result<(Sums, Option<Rounded>)> {
        let (mut total, mut rounded) = (Sums::zero(), self.times.map(|_| Rounded::zero()));
        for part in found {
            let (sums, part) = part?;
            total.add(&sums);
            if let (Some(rounded), Some(part)) = (&mut rounded, part) {
                rounded.add(&part);
            }
        }
        Ok((total, rounded))
    }
}

/// The runs of rows that matrices consist of, if all do.
fn runs<'m>(matrices: &[Matrix<'m>]) -> Option<Vec<Straight<'m>>> {
    let all: Option<Vec<_>> = matrices.iter().map(Matrix::straight).collect();
    Some(all?.into_iter().flatten().collect())
}

/// How many values of some rows a method chose.
fn chosen_in(target: &Edited<'_>, rows: &Range<usize>, other: &Reader<'_>, theirs: &Range<usize>) -> Result<usize> {
    let (mut w, mut t, mut m) = (Vec::new(), Vec::new(), Vec::new());
    target.rows(rows, &mut w, &mut t)?;
    other.rows(theirs, &mut m)?;
    let before = target.base().grid(rows)?;
    // What has no grid was rounded by nobody's choice.
    let Some(after) = other.grid(theirs)? else { return Ok(0) };
    let formats = [target.base().claim(), other.claim()].map(|claim| claim.weight.format());
    // Fresh scales differ from the base's, by as much as the delta changes a block's largest value: so in one format what the base has is told by its level,
    // and what rounding gives under either scales.
    let is_same = |before: &&Grid| formats[0] == formats[1] && before.run == after.run;
    let same = before.as_ref().filter(is_same);
    let slack = if matches!(after.levels, Levels::Table(_)) { NESTED } else { ROUNDED };
    let is_chosen = |&i: &usize| {
        let far = |x: f32| (m[i] - x).abs() > (after.nearest(i, x) - x).abs() + slack * x.abs();
        if let Some(before) = same {
            let level = after.level(i, m[i]);
            level != before.level(i, w[i]) && level != before.level(i, before.nearest(i, t[i])) && far(t[i])
        } else {
            far(t[i]) && far(w[i])
        }
    };
    Ok((0..m.len()).filter(is_chosen).count())
}

/// True if a weight that nothing edits has the same values in the merge, but for what another format leaves of them.
fn is_same(sums: &Sums, claim: &Claim, other: &Claim) -> bool {
    let loss = sums.loss();
    let recoded = claim.weight.format() != other.weight.format();
    let allowed = match (recoded, other.weight.is_plain()) {
        (false, _) => 0.0,
        // A cast between 16-bit types rounds once.
        (true, true) => 0.005,
        (true, false) => same_recoded(other.weight.as_ref()),
    };
    // No error is none of values whose squares overflow, too (what holds Gemma 4's pairs still).
    loss.error_rms == 0.0 || loss.error_rms <= allowed * loss.weight_rms
}

/// Elements of a chunk.
const CHUNK: usize = 1 << 17;

fn chunks(rows: usize, cols: usize, step: usize) -> Vec<std::ops::Range<usize>> {
    let per_chunk = (CHUNK / cols.max(1) / step * step).max(step);
    (0..rows).step_by(per_chunk).map(|start| start..(start + per_chunk).min(rows)).collect()
}
