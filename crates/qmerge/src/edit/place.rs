//! Where a change lies in a stored weight.

use std::ops::Range;

use super::{Reach, Tile};

/// Where the matrices of a change lie in one stored weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// One per matrix, in the order of the change's and of the weight's rows.
    pub spots: Vec<Spot>,
}

/// One matrix of a change, or some of its outputs, in one stored matrix: the whole weight or one of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The weight's rows that the stored matrix has.
    pub rows: Range<usize>,
    /// True if they are inputs, its columns outputs.
    pub transposed: bool,
    /// Outputs of the stored matrix, among which the change's may be a part (gate or up of both).
    pub width: usize,
    /// Outputs of the change that lie here.
    pub take: Stride,
    /// Which outputs of the stored matrix they are.
    pub put: Stride,
}

/// Equally spaced indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// The first.
    pub start: usize,
    /// From one to the next.
    pub step: usize,
    /// How many.
    pub len: usize,
}

impl Stride {
    /// The first `len` indices.
    pub const fn first(len: usize) -> Self {
        Self { start: 0, step: 1, len }
    }

    /// The indices.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| self.at(i))
    }

    /// The index of that number.
    pub fn at(self, i: usize) -> usize {
        self.start + i * self.step
    }

    /// Which of them lie in a range.
    fn within(self, range: &Range<usize>) -> Range<usize> {
        let step = self.step.max(1);
        let to = |at: usize| at.saturating_sub(self.start).div_ceil(step).min(self.len);
        to(range.start)..to(range.end)
    }
}

impl Place {
    /// One matrix (outputs, inputs) that is the whole weight, or its transpose.
    pub fn of_matrix(outputs: usize, inputs: usize, transposed: bool) -> Self {
        let rows = 0..if transposed { inputs } else { outputs };
        let all = Stride::first(outputs);
        Self { spots: vec![Spot { rows, transposed, width: outputs, take: all, put: all }] }
    }

    /// Stored rows that have to be edited together; [`super::ALL`] where it is all of them.
    pub fn row_step(&self, reach: Reach) -> usize {
        let Reach::Block { outputs, inputs } = reach else { return 1 };
        self.spots.iter().map(|spot| spot.row_step(outputs, inputs)).fold(1, super::common_step)
    }

    /// True if the sums that a change needs are over rows of the weight.
    pub fn needs_survey(&self, reach: Reach) -> bool {
        reach == Reach::Sums && self.spots.iter().any(|spot| spot.transposed)
    }

    /// True if outputs that go together lie in several weights.
    pub fn parts(&self, reach: Reach, outputs: usize) -> bool {
        matches!(reach, Reach::Block { outputs: 2.., .. })
            && self.spots.iter().any(|spot| spot.take != Stride::first(outputs))
    }
}

impl Spot {
    fn row_step(&self, outputs: usize, inputs: usize) -> usize {
        let (together, first, len) = if self.transposed {
            (inputs, self.rows.start, self.rows.len())
        } else {
            (outputs, self.rows.start + self.put.start, self.put.len)
        };
        let together = together.min(len);
        match together {
            0 | 1 => 1,
            _ if first.is_multiple_of(together) && (self.transposed || self.put.step == 1) => together,
            _ => super::ALL,
        }
    }

    /// True for a matrix (outputs, inputs) that is a whole weight of so many rows.
    pub(super) fn covers(&self, rows: usize) -> bool {
        let all = Stride::first(rows);
        !self.transposed && self.rows == (0..rows) && self.take == all && self.put == all
    }

    /// What of the matrix is in a chunk: one run, or one of each output where those taken are not next to each other.
    pub(super) fn runs(&self, rows: &Range<usize>, cols: usize) -> impl Iterator<Item = Run> + use<> {
        let found = overlap(&self.rows, rows);
        let within = found.start - self.rows.start.min(found.start)..found.end - self.rows.start.min(found.end);
        let (outputs, inputs) =
            if self.transposed { (0..self.put.len, within) } else { (self.put.within(&within), 0..cols) };
        let Self { transposed, take, put, .. } = *self;
        let (matrix, chunk) = (self.rows.start, rows.start);
        let (output_step, input_step) = if transposed { (put.step, cols) } else { (put.step * cols, 1) };
        let each = if take.step == 1 { outputs.len() } else { 1 };
        outputs.clone().step_by(each.max(1)).filter(move |_| !found.is_empty()).map(move |i| {
            let own = i..(i + each).min(outputs.end);
            let first = if transposed {
                (matrix + inputs.start - chunk) * cols + put.at(i)
            } else {
                (matrix + put.at(i) - chunk) * cols
            };
            let tile = Tile { outputs: take.at(i)..take.at(i) + own.len(), inputs: inputs.clone() };
            Run { tile, first, output_step, input_step }
        })
    }
}

/// A tile of a change's matrix, and where its values lie in a chunk of stored rows.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) tile: Tile,
    /// Index of its first value.
    first: usize,
    /// From one output to the next, and from one input to the next.
    output_step: usize,
    input_step: usize,
}

impl Run {
    /// Its values in the chunk, where they lie there as in the tile.
    pub(super) fn contiguous(&self) -> Option<Range<usize>> {
        let as_they_are = self.input_step == 1 && self.output_step == self.tile.inputs.len();
        as_they_are.then(|| self.first..self.first + self.tile.len())
    }

    /// Calls `f` with each value's index in the chunk, row by row of the tile.
    fn each(&self, mut f: impl FnMut(usize)) {
        for o in 0..self.tile.outputs.len() {
            let row = self.first + o * self.output_step;
            for i in 0..self.tile.inputs.len() {
                f(row + i * self.input_step);
            }
        }
    }

    /// The tile's values out of a chunk.
    pub(super) fn gather(&self, chunk: &[f32]) -> Vec<f32> {
        match self.contiguous() {
            Some(range) => chunk[range].to_vec(),
            None => {
                let mut tile = Vec::with_capacity(self.tile.len());
                self.each(|at| tile.push(chunk[at]));
                tile
            }
        }
    }

    /// Puts the tile's values into a chunk.
    pub(super) fn scatter(&self, tile: &[f32], chunk: &mut [f32]) {
        let mut values = tile.iter();
        self.each(|at| chunk[at] = values.next().copied().unwrap_or_default());
    }

    /// Adds the tile's values to a chunk's.
    pub(super) fn add(&self, tile: &[f32], chunk: &mut [f32]) {
        let mut values = tile.iter();
        self.each(|at| chunk[at] += values.next().copied().unwrap_or_default());
    }
}

pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
