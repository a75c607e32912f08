//! One weight that is stored as a whole: what rounding sees of it, and what is written.
//!
//! A weight lies in up to three ways: as it is stored, as the model has it (outputs, inputs), and with its inputs in the order in which they share scales.
//! Rounding sees the last, so that methods know nothing of the others.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::Run;
use super::places::Places;
use super::residual::is_cut;
use super::step::explain;
use super::target::{Target, of_matrix, on_grid, ordered, writer};
use crate::edit;
use crate::edited::Edited;
use crate::error::Result;
use crate::formats::{Order, Weight};
use crate::measure::Sums;
use crate::plan::{Recode, Step};
use crate::round::{Matrix, Metric, Whole};
use crate::simd::differences::differences;
use crate::write::Finished;

/// A weight before it is rounded.
struct Start {
    weight: Arc<dyn Weight>,
    /// Its stored bytes.
    parts: Vec<Vec<u8>>,
    /// What they decode to, as the model has it.
    values: Vec<f32>,
}

/// Values as the model has them.
struct Wanted {
    base: Vec<f32>,
    target: Vec<f32>,
}

impl Run<'_> {
    /// Does all of a step to what the output's format makes of it.
    pub(super) fn whole(&self, number: usize, step: &Step, recode: &Recode) -> Result<Finished> {
        let edited = Edited::new(self.inputs, recode)?;
        let stored = Order { transposed: recode.is_stored_transposed(), inputs: None };
        let mut all = Finished { step: number, sums: None, kept: None, late: Vec::new() };
        // A stack matrix by matrix, each of which is turned by itself.
        for rows in recode.matrices() {
            let wanted = Wanted::of(recode, &edited, &rows)?;
            let Start { parts, values, .. } = self.start(recode, &edited, (&wanted, &rows), &stored)?;
            let one = self.finish((number, step, recode), (&stored, &rows), (&wanted, &values), parts)?;
            match (&mut all.sums, one.sums) {
                (Some(sums), Some(own)) => sums.add(&own),
                (sums, own) => *sums = own,
            }
            all.late.extend(one.late);
        }
        Ok(all)
    }

    /// Does all of a step, or one matrix of a stack, with a method and the moments of its inputs. Says too how large the adapter's output was.
    pub(super) fn rounded(
        &self,
        (number, step, recode): (usize, &Step, &Recode),
        edited: &Edited<'_>,
        matrix: Option<usize>,
        (method, metric): (&dyn Whole, &Metric),
    ) -> Result<(Finished, f64)> {
        let (inputs, rows) = (recode.inputs(), recode.rows_of(matrix));
        let wanted = Wanted::of(recode, edited, &rows)?;
        let stored = Order { transposed: recode.is_stored_transposed(), inputs: None };
        let Start { weight, parts, values } = self.start(recode, edited, (&wanted, &rows), &stored)?;
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let (order, grid) = match matrix {
            None => ordered(weight.as_ref(), &stored, &views)?,
            Some(_) => (stored.clone(), of_matrix(weight.as_ref(), &stored, &views, &rows)?),
        };
        let own = order.inputs.as_deref().map(|order| {
            let mut metric = metric.in_order(order);
            method.prepare(&mut metric, recode.begins_at_base());
            metric
        });
        let (base, target) = (order.to_columns(&wanted.base, inputs), order.to_columns(&wanted.target, inputs));
        let mut matrix = Matrix {
            rows: recode.outputs(),
            cols: inputs,
            base: &base,
            target: &target,
            values: if order.inputs.is_some() { order.to_columns(&values, inputs).into_owned() } else { values },
            grid,
            rank: edited.edits().and_then(|edits| edit::rank(edits, &rows)),
            metric: own.as_ref().unwrap_or(metric),
        };
        let judged = method.round(&mut matrix);
        let Matrix { values, grid, .. } = matrix;
        drop((base, target));
        let values = stored.to_stored(order.undo_columns(values, inputs), inputs);
        // What is written has as many rows, but for one whose rows become columns.
        let all = recode.written_rows(&rows);
        let mut written = vec![Vec::new(); parts.len()];
        on_grid(weight.as_ref())?.store(&views, all.clone(), &values, Some(&grid), &mut written);
        // What belongs to the weight as a whole and did not change.
        for ((part, written), own) in written.iter_mut().enumerate().zip(parts) {
            if written.is_empty() && weight.part_rows(part, &all).is_none() {
                *written = own;
            }
        }
        let mut output = values;
        weight.decode(&written.iter().map(Vec::as_slice).collect::<Vec<_>>(), all, &mut output);
        let output = stored.to_model(output, weight.geometry().cols);
        if is_cut(recode) {
            self.stash_residual(number, (&wanted.target, &output), metric, judged.error())?;
        }
        let finished = self.finish((number, step, recode), (&stored, &rows), (&wanted, &output), written)?;
        Ok((Finished { kept: Some(judged.kept), ..finished }, judged.delta))
    }

    /// Measures what was stored and writes it to its place.
    fn finish(
        &self,
        (number, step, recode): (usize, &Step, &Recode),
        (stored, rows): (&Order, &Range<usize>),
        (Wanted { base, target }, output): (&Wanted, &[f32]),
        parts: Vec<Vec<u8>>,
    ) -> Result<Finished> {
        let differences = differences(base, target, output);
        if !differences.sound() {
            // The place that is named is the one in the file.
            let [base, target, output] =
                [base, target, output].map(|values| stored.to_stored(values.to_vec(), recode.inputs()));
            return Err(explain(recode, step, rows.start, recode.to.geometry().cols, (&base, &target, &output)));
        }
        let places = Places { plan: self.plan, output: self.output };
        let late = if recode.stack.is_none() && rows.len() == recode.from.weight.geometry().rows {
            places.put_uncut(step, parts.into_iter().enumerate())?
        } else {
            let written = recode.written_rows(rows);
            for (part, mut bytes) in parts.into_iter().enumerate() {
                match recode.to.part_rows(part, &written) {
                    Some(at) => places.put(step, part, at.start, &mut bytes)?,
                    // What all matrices share stays what it is: the first brings it.
                    None if rows.start == 0 => places.put(step, part, 0, &mut bytes)?,
                    None => {}
                }
            }
            Vec::new()
        };
        let sums = Sums { elements: output.len() as u64, differences };
        Ok(Finished { step: number, sums: Some(sums), kept: None, late })
    }

    /// Where rounding begins: the codes of the base, or what a format makes of the target afresh.
    fn start(
        &self,
        recode: &Recode,
        edited: &Edited<'_>,
        (wanted, rows): (&Wanted, &Range<usize>),
        stored: &Order,
    ) -> Result<Start> {
        if recode.begins_at_base() {
            let parts = edited.base().stored(rows)?;
            return Ok(Start { weight: Arc::clone(&recode.to), parts, values: wanted.base.clone() });
        }
        let (geometry, fresh) = (recode.to.geometry(), writer(recode.to.as_ref())?);
        let all = recode.written_rows(rows);
        let target = match stored.transposed {
            true => Cow::Owned(stored.to_stored(wanted.target.clone(), recode.inputs())),
            false => Cow::Borrowed(&wanted.target),
        };
        let mut held = Vec::new();
        if fresh.needs_survey() {
            fresh.survey(all.clone(), &target, &mut held);
        }
        let Target { weight, parts: settled } = Target::settled(recode, &held, edited.base().uncut())?;
        let mut encoded = vec![Vec::new(); settled.len()];
        writer(weight.as_ref())?.encode(&settled, all.clone(), &target, &mut encoded);
        let parts: Vec<Vec<u8>> =
            settled.into_iter().zip(encoded).map(|(settled, encoded)| settled.unwrap_or(encoded)).collect();
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut values = vec![0.0; target.len()];
        weight.decode(&views, all, &mut values);
        Ok(Start { weight, parts, values: stored.to_model(values, geometry.cols) })
    }
}

impl Wanted {
    fn of(recode: &Recode, edited: &Edited<'_>, rows: &Range<usize>) -> Result<Self> {
        let geometry = recode.from.weight.geometry();
        let read = Order { transposed: recode.transposed, inputs: None };
        let (mut base, mut target) = (Vec::new(), Vec::new());
        edited.rows(rows, &mut base, &mut target)?;
        Ok(Self { base: read.to_model(base, geometry.cols), target: read.to_model(target, geometry.cols) })
    }
}
