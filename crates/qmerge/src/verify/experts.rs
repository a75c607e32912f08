//! Experts that lie in a stack in one of the two and one by one in the other, as in a folder and in the GGUF file that is made of it.
//!
//! Both are matrices of one parameter in memory. A weight of the base is cut where another weight of the merge goes on, and each run of rows is compared with its own; where
//! outputs are columns in one of them, or alternate, a matrix is compared as a whole, one at a time.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::adapters::{Names, Piece, Stack};
use crate::edit::Stride;
use crate::error::Result;
use crate::formats::{Claim, Reader};
use crate::linalg::transposed;
use crate::open::Checkpoint;

/// The experts of base and merge.
pub(super) struct Experts<'v, 'm> {
    names: Names<'v>,
    found: &'v Names<'m>,
    twins: OnceCell<Twins<'m>>,
}

#[derive(Default)]
struct Twins<'m> {
    /// By weights of the base.
    all: HashMap<String, Vec<Matrix<'m>>>,
    /// Weights of the base whose experts the merge has not, or with other dimensions.
    lacking: HashSet<String>,
}

/// What the merge has of the experts in a weight of the base.
pub(super) enum Twin<'t, 'm> {
    Found(&'t [Matrix<'m>]),
    Lacking,
    /// It holds no experts that are known.
    Unknown,
}

/// A matrix of an expert, or some of its outputs, which a weight of the base has in some of its rows.
pub(super) struct Matrix<'m> {
    /// Those rows.
    pub(super) rows: Range<usize>,
    /// They are inputs.
    is_turned: bool,
    /// Outputs of the whole matrix that they are.
    outputs: Stride,
    /// Outputs and inputs of the whole matrix.
    shape: (usize, usize),
    /// Where the merge has it.
    others: Vec<Piece<'m>>,
}

/// Rows of a weight of the base that follow each other in one of the merge, too.
pub(super) struct Straight<'t> {
    pub(super) rows: Range<usize>,
    pub(super) claim: &'t Claim,
    /// The first there.
    pub(super) first: usize,
}

impl<'v, 'm> Experts<'v, 'm> {
    pub(super) fn new(names: Names<'v>, found: &'v Names<'m>) -> Self {
        Self { names, found, twins: OnceCell::new() }
    }

    /// What the merge has in place of a weight of the base that it has not under any name.
    pub(super) fn twin(&self, name: &str) -> Twin<'_, 'm> {
        let twins = self.twins.get_or_init(|| self.pair());
        match twins.all.get(name) {
            Some(matrices) => Twin::Found(matrices),
            None if twins.lacking.contains(name) => Twin::Lacking,
            None => Twin::Unknown,
        }
    }

    fn pair(&self) -> Twins<'m> {
        let mut twins = Twins::default();
        // Of a base whose experts are incomplete nothing is known.
        for own in Stack::all(&self.names, true).unwrap_or_default() {
            // A stack that lacks an expert, or a part of one, is told of as missing.
            let other = Stack::find(self.found, &own.module, own.parameter).ok().flatten();
            twins.add(own, other);
        }
        for own in Stack::of_mlx(&self.names) {
            let other = Stack::each(self.found, &own);
            twins.add(own, other);
        }
        for other in Stack::of_mlx(self.found) {
            if let Some(own) = Stack::each(&self.names, &other) {
                twins.add(own, Some(other));
            }
        }
        twins
    }
}

impl<'m> Twins<'m> {
    /// Takes a stack of the base, and what the merge has in its place.
    fn add(&mut self, own: Stack<'_>, other: Option<Stack<'m>>) {
        let other = other.filter(|other| {
            (own.shape, own.experts.len()) == (other.shape, other.experts.len())
                && other.experts.iter().all(|pieces| holds_all(pieces, other.shape))
        });
        for (number, pieces) in own.experts.into_iter().enumerate() {
            let others = other.as_ref().and_then(|other| other.experts.get(number));
            for piece in pieces {
                let name = piece.claim.weight.name().to_owned();
                let Some(others) = others else {
                    self.lacking.insert(name);
                    continue;
                };
                self.all.entry(name).or_default().push(Matrix {
                    rows: piece.spot.rows,
                    is_turned: piece.spot.transposed,
                    outputs: piece.spot.take,
                    shape: own.shape,
                    others: others.clone(),
                });
            }
        }
    }
}

/// True if each output of a matrix lies in one of the pieces, and in the rows that it says.
fn holds_all(pieces: &[Piece<'_>], (outputs, inputs): (usize, usize)) -> bool {
    let fits = |piece: &Piece<'_>| {
        let (geometry, spot) = (piece.claim.weight.geometry(), &piece.spot);
        let [rows, cols] = if spot.transposed { [inputs, spot.put.len] } else { [spot.put.len, inputs] };
        (spot.rows.len(), geometry.cols) == (rows, cols)
            && spot.rows.end <= geometry.rows
            && spot.put == Stride::first(spot.take.len)
    };
    let held: usize = pieces.iter().map(|piece| piece.spot.take.len).sum();
    let last = |piece: &Piece<'_>| piece.spot.take.len.checked_sub(1).map_or(0, |last| piece.spot.take.at(last));
    pieces.iter().all(|piece| fits(piece) && last(piece) < outputs.max(1)) && held == outputs
}

impl<'m> Matrix<'m> {
    /// The weight of the merge that holds it; of several one of codes, if there is one: its values are the least exact.
    pub(super) fn claim(&self) -> Option<&'m Claim> {
        let claims = || self.others.iter().map(|piece| piece.claim);
        claims().find(|claim| !claim.weight.is_plain()).or_else(|| claims().next())
    }

    /// The runs of rows that it consists of; `None` where a row is no row there, or none that follows another.
    pub(super) fn straight(&self) -> Option<Vec<Straight<'m>>> {
        let is_straight = |spot: &crate::edit::Spot| !spot.transposed && spot.take.step == 1;
        if self.is_turned || self.outputs.step != 1 || !self.others.iter().all(|piece| is_straight(&piece.spot)) {
            return None;
        }
        let own = self.outputs.start..self.outputs.start + self.outputs.len;
        let run = |piece: &Piece<'m>| {
            let take = piece.spot.take;
            let (start, end) = (own.start.max(take.start), own.end.min(take.start + take.len));
            let first = self.rows.start + start.saturating_sub(own.start);
            (start < end).then(|| Straight {
                rows: first..first + (end - start),
                claim: piece.claim,
                first: piece.spot.rows.start + (start - take.start),
            })
        };
        Some(self.others.iter().filter_map(run).collect())
    }

    /// Its values in the merge, as the base has them.
    pub(super) fn read(&self, merged: &Checkpoint) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.shape;
        let mut all = vec![0.0; outputs * inputs];
        let mut values = Vec::new();
        for piece in &self.others {
            Reader::new(merged, piece.claim)?.rows(&piece.spot.rows, &mut values)?;
            if piece.spot.transposed {
                values = transposed(&values, piece.spot.put.len);
            }
            for (row, output) in values.chunks(inputs.max(1)).zip(piece.spot.take.iter()) {
                if let Some(to) = all.get_mut(output * inputs..(output + 1) * inputs) {
                    to.copy_from_slice(row);
                }
            }
        }
        if self.outputs != Stride::first(outputs) {
            let rows = |output: usize| all.get(output * inputs..(output + 1) * inputs).unwrap_or_default();
            all = self.outputs.iter().flat_map(rows).copied().collect();
        }
        Ok(if self.is_turned { transposed(&all, inputs) } else { all })
    }
}
