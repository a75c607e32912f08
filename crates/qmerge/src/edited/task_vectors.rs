//! What tuned models differ from a weight by, joined and added to it as its rows are decoded.

use std::ops::Range;

use crate::adapters::TaskVector;
use crate::edit::{Joining, Kept, join};
use crate::error::{Error, Kind, Result};
use crate::formats::{Order, Reader};
use crate::open::Checkpoint;
use crate::round::seed_of;
use crate::simd::differences::first_nonfinite;

/// Values of each model that are made at a time.
const CHUNK: usize = 1 << 15;

/// The task vectors of one weight.
#[derive(Debug)]
pub(super) struct TaskVectors<'a> {
    joining: Joining,
    members: Vec<Member<'a>>,
    /// Factors, by member.
    weights: Vec<f32>,
    cols: usize,
}

/// One tuned model's weight.
#[derive(Debug)]
struct Member<'a> {
    tuned: Tuned<'a>,
    kept: Kept,
}

/// Tuned values by the base's rows.
#[derive(Debug)]
enum Tuned<'a> {
    Stored(Reader<'a>),
    /// All of them, where they are stored turned.
    Turned(Vec<f32>),
}

impl<'a> TaskVectors<'a> {
    /// Opens the tuned weights, and finds which of their differences stay, where that depends on all of them. Members come with the numbers of their
    /// adapters, so that what is drawn does not depend on the others.
    pub(super) fn new(base: &Reader<'_>, members: &[(usize, &'a Checkpoint, &TaskVector)]) -> Result<Self> {
        let geometry = base.claim().weight.geometry();
        let joining = members.first().map_or(Joining::default(), |(.., vector)| vector.joining);
        let mut found = Vec::new();
        for (number, checkpoint, vector) in members {
            let reader = Reader::new(checkpoint, &vector.claim)?;
            let tuned = if vector.is_turned {
                let own = vector.claim.weight.geometry();
                let mut values = Vec::new();
                reader.rows(&(0..own.rows), &mut values)?;
                finite(&reader, &values, 0)?;
                Tuned::Turned(Order { transposed: true, inputs: None }.to_model(values, own.cols))
            } else {
                Tuned::Stored(reader.reshaped(geometry.rows, geometry.cols)?)
            };
            let seed = seed_of(&format!("{}.{number}", vector.claim.weight.name()), joining.seed);
            let density = joining.density.unwrap_or(1.0);
            let kept = Kept::of(joining.operator, density, seed, |each| {
                let (mut own, mut values) = (Vec::new(), Vec::new());
                for rows in base.chunks(CHUNK) {
                    base.rows(&rows, &mut own)?;
                    tuned.difference(&rows, &own, &mut values)?;
                    each(&values);
                }
                Ok(())
            })?;
            found.push(Member { tuned, kept });
        }
        let weights = members.iter().map(|(.., vector)| vector.weight as f32).collect();
        Ok(Self { joining, members: found, weights, cols: geometry.cols })
    }

    /// Adds what there is for some rows of `base`, which are before any edit, to `values`.
    pub(super) fn add(&self, rows: &Range<usize>, base: &[f32], values: &mut [f32]) -> Result<()> {
        let height = (CHUNK / self.cols.max(1)).max(1);
        let mut own = vec![Vec::new(); self.members.len()];
        let mut sum = Vec::new();
        let chunks = base.chunks(height * self.cols.max(1)).zip(values.chunks_mut(height * self.cols.max(1)));
        for (first, (base, values)) in rows.clone().step_by(height).zip(chunks) {
            let rows = first..(first + height).min(rows.end);
            for (member, own) in self.members.iter().zip(&mut own) {
                member.tuned.difference(&rows, base, own)?;
                member.kept.prune((first * self.cols) as u64, own);
            }
            sum.resize(values.len(), 0.0);
            join(self.joining.operator, self.joining.majority, &self.weights, &own, &mut sum);
            values.iter_mut().zip(&sum).for_each(|(value, sum)| *value += sum);
        }
        Ok(())
    }

    /// Reads everything that is stored now, so that later calls need no file.
    pub(super) fn hold(&self) -> Result<()> {
        self.members.iter().try_for_each(|member| match &member.tuned {
            Tuned::Stored(reader) => reader.hold(),
            Tuned::Turned(_) => Ok(()),
        })
    }

    /// Bytes that [`TaskVectors::hold`] adds.
    pub(super) fn bytes(&self) -> u64 {
        let of = |member: &Member<'_>| match &member.tuned {
            Tuned::Stored(reader) => reader.bytes(),
            // They are there in any case.
            Tuned::Turned(_) => 0,
        };
        self.members.iter().map(of).sum()
    }
}

impl Tuned<'_> {
    /// tuned − base of some rows.
    fn difference(&self, rows: &Range<usize>, base: &[f32], values: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Stored(reader) => {
                reader.rows(rows, values)?;
                finite(reader, values, rows.start)?;
            }
            Self::Turned(all) => {
                let cols = base.len() / rows.len().max(1);
                values.clear();
                values.extend_from_slice(all.get(rows.start * cols..rows.end * cols).unwrap_or_default());
            }
        }
        values.iter_mut().zip(base).for_each(|(x, base)| *x -= base);
        Ok(())
    }
}

fn finite(reader: &Reader<'_>, values: &[f32], first_row: usize) -> Result<()> {
    let Some(at) = first_nonfinite(values) else { return Ok(()) };
    let cols = reader.claim().weight.geometry().cols.max(1);
    let error: Error = reader.error(
        Kind::NotFinite,
        format!("the tuned model holds {} at [{}, {}]", values[at], first_row + at / cols, at % cols),
    );
    Err(error.with_hint("training diverged or the file is damaged: use an earlier checkpoint"))
}
