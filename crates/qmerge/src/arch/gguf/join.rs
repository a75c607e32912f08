//! Which weights of a layer lie in several tensors of a file, or turned there: names, and how their rows are dealt out.

use super::weave::{Change, Dims, Order, Split};
use super::{Layout, View, Weave};
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::Metadata;

/// A weight and its tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    /// Its name in the model, below the layer.
    name: &'static str,
    /// Their names below the layer, and whether each has the model's columns as rows, group by group. In those of a stack `{}` is a matrix's number.
    tensors: &'static [(&'static str, bool)],
    dims: Dims,
    split: fn(&Counts<'_>, usize) -> Option<Split>,
    change: Change,
    /// A file is made so of a folder that has it so; what is read has another form.
    only_made: bool,
}

/// No layer has more: their order takes memory.
const MOST_ROWS: usize = 1 << 22;

/// Numbers that a file's keys say.
pub(super) struct Counts<'m> {
    metadata: &'m Metadata,
    architecture: &'static str,
}

impl Counts<'_> {
    pub(super) fn get(&self, key: &str) -> Option<usize> {
        let count = self.metadata.integer(&format!("{}.{key}", self.architecture))?;
        usize::try_from(count).ok().filter(|count| *count > 0)
    }
}

impl Join {
    /// One tensor of the same dimensions, under another name than most have.
    pub(super) const fn renamed(name: &'static str, tensors: &'static [(&'static str, bool)]) -> Self {
        Self {
            name,
            tensors,
            dims: Dims::Same,
            split: |_, _| Some(Split::whole()),
            change: Change::None,
            only_made: false,
        }
    }

    pub(super) const fn split(
        name: &'static str,
        tensors: &'static [(&'static str, bool)],
        dims: Dims,
        split: fn(&Counts<'_>, usize) -> Option<Split>,
    ) -> Self {
        Self { name, tensors, dims, split, change: Change::None, only_made: false }
    }

    pub(super) const fn changed(self, change: Change) -> Self {
        Self { change, ..self }
    }

    pub(super) const fn only_made(self) -> Self {
        Self { only_made: true, ..self }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// True of a stack of experts.
    pub(super) fn is_stack(&self) -> bool {
        self.dims == Dims::Stack && !self.only_made
    }

    /// The matrix and the place among its tensors of the one of that name below a layer.
    pub(super) fn place_of(&self, part: &str) -> Option<(usize, usize)> {
        self.tensors.iter().enumerate().filter(|_| !self.only_made).find_map(|(at, (name, _))| {
            match name.split_once("{}") {
                None => (*name == part).then_some((0, at)),
                Some((before, behind)) => {
                    let number = part.strip_prefix(before)?.strip_suffix(behind)?;
                    let parsed = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
                    Some((parsed, at))
                }
            }
        })
    }

    /// True if all tensors of a matrix are there.
    pub(super) fn is_whole<'e>(
        &self,
        layer: &str,
        matrix: usize,
        shape_of: &dyn Fn(&str) -> Option<&'e [usize]>,
    ) -> bool {
        [0, matrix]
            .iter()
            .all(|matrix| self.tensors.iter().all(|(name, _)| shape_of(&named(layer, name, *matrix)).is_some()))
    }

    /// The weight's dimensions, by those of its tensors; `None` where one of them is missing.
    pub(super) fn shape<'e>(
        &self,
        layer: &str,
        shape_of: &dyn Fn(&str) -> Option<&'e [usize]>,
    ) -> Result<Option<Vec<usize>>> {
        let mut shapes = Vec::new();
        for (name, turned) in self.tensors {
            let Some(shape) = shape_of(&named(layer, name, 0)) else { return Ok(None) };
            shapes.push((shape, *turned));
        }
        let bad = || {
            malformed(format!(
                "dimensions {:?}, which are no part of `{}`",
                shapes.first().map(|(shape, _)| *shape),
                self.name
            ))
        };
        let sum = |of: fn(&[usize], bool) -> Option<usize>| {
            let all = shapes.iter().map(|(shape, turned)| of(shape, *turned));
            all.sum::<Option<usize>>().filter(|sum| *sum < 1 << 40).ok_or_else(bad)
        };
        let Some((first, first_turned)) = shapes.first() else { return Ok(None) };
        let shape = match (self.dims, *first) {
            (Dims::Same, shape) => shape.to_vec(),
            (Dims::Row, [width] | [1, width]) => vec![1, *width],
            (Dims::Convolution, [channels, kernel]) => vec![*channels, 1, *kernel],
            (Dims::Rows, [_, width]) => vec![sum(|shape, _| shape.first().copied())?, *width],
            (Dims::Groups, [groups, a, b]) => {
                let rows = sum(|shape, turned| if turned { shape.get(2).copied() } else { shape.get(1).copied() })?;
                vec![groups.checked_mul(rows).ok_or_else(bad)?, if *first_turned { *a } else { *b }]
            }
            (Dims::Stack, [_, width]) => {
                let (name, _) = self.tensors.first().ok_or_else(bad)?;
                let matrices = (0..).take_while(|matrix| shape_of(&named(layer, name, *matrix)).is_some()).count();
                vec![matrices, sum(|shape, _| shape.first().copied())?, *width]
            }
            (Dims::Lists, [lists, _]) => vec![*lists, sum(|shape, _| shape.get(1).copied())?],
            // ggml leaves out a last dimension of one.
            (Dims::Lists, [_]) => vec![1, sum(|shape, _| shape.first().copied())?],
            _ => return Err(bad()),
        };
        Ok(Some(shape))
    }

    /// How the weight of that name, of a layer, lies in the file. `is_turned` where matrices of a stack have inputs as rows.
    pub(super) fn view(
        &self,
        layout: &Layout,
        metadata: &Metadata,
        (layer, name): (&str, &str),
        shape: &[usize],
        is_turned: bool,
    ) -> Result<View> {
        let misfit = || -> Error {
            mismatch(format!(
                "shape {shape:?} does not fit the keys of a file of the architecture `{}`",
                layout.architecture()
            ))
            .in_tensor(name)
            .with_hint("config.json and the weights belong to different models: copy both again from where the model was published")
        };
        // One value may lie there without a dimension.
        let shape = if shape.is_empty() { &[1] } else { shape };
        let counts = Counts { metadata, architecture: layout.architecture() };
        let rows = match (self.dims, shape) {
            (Dims::Stack, [_, _, outputs]) if is_turned => *outputs,
            (Dims::Stack, [_, outputs, _]) => *outputs,
            (Dims::Lists, [_, outputs]) => *outputs,
            (_, [rows, ..]) => *rows,
            _ => return Err(misfit()),
        };
        if rows > MOST_ROWS {
            return Err(misfit());
        }
        let split = (self.split)(&counts, rows).ok_or_else(misfit)?;
        let names =
            |matrix: usize| self.tensors.iter().map(|(name, turned)| (named(layer, name, matrix), *turned)).collect();
        let turned = is_turned && self.dims == Dims::Stack;
        let weave = Weave::new(shape, names, (self.dims, turned), split, self.change).ok_or_else(misfit)?;
        let stored = weave.pieces().first().map(|piece| piece.stored.clone()).unwrap_or_default();
        Ok(View::woven(name, stored, weave))
    }
}

/// A tensor of a layer.
fn named(layer: &str, name: &str, matrix: usize) -> String {
    format!("blk.{layer}.{}", name.replace("{}", &matrix.to_string()))
}

impl Layout {
    /// The weight of that name below a layer that lies in several tensors, or turned.
    pub(super) fn joined(&self, name: &str) -> Option<&'static Join> {
        self.joins.iter().find(|join| join.name == name)
    }
}

/// One tensor has all.
pub(super) fn whole(_: &Counts<'_>, _: usize) -> Option<Split> {
    Some(Split::whole())
}

/// Gate and up follow each other.
pub(super) fn halves(_: &Counts<'_>, rows: usize) -> Option<Split> {
    rows.is_multiple_of(2).then(|| Split { rows: vec![rows / 2; 2], order: Order::default() })
}

/// Gate and up alternate.
pub(super) fn alternating(_: &Counts<'_>, _: usize) -> Option<Split> {
    Some(Split { rows: vec![1, 1], order: Order::default() })
}
