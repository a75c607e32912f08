//! A weight of the model that lies in several tensors of a file, or otherwise than row by row.
//!
//! It is a few steps from the one to the other, any of which may be missing: the model's matrix is turned where it has inputs as rows; its columns take another order; its rows are cut into
//! groups, whose rows take another order; a group's rows are dealt out to the tensors, so many to each, one group's behind the other's; and what a tensor has of a group may be turned.
//! Rows of two tensors in alternation, heads whose parts lie apart and halves of a matrix are such groups of two rows, of a head's and of all.

use std::ops::Range;
use std::sync::Arc;

/// How a weight lies in tensors of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weave {
    /// Its dimensions in the model.
    shape: Vec<usize>,
    /// The tensors; of a stack those of each matrix in turn.
    pieces: Vec<Piece>,
    /// How many of them hold one matrix.
    each: usize,
    /// Rows of a group.
    group: usize,
    /// Rows of a matrix as the tensors see it.
    rows: usize,
    /// Columns of a row as the tensors see it.
    width: usize,
    order: Order,
    /// The model's rows are columns here.
    turned: bool,
    pub(crate) change: Change,
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) stored: String,
    pub(crate) shape: Vec<usize>,
    /// Its rows of each group.
    rows: usize,
    /// Those that lie in front of them.
    before: usize,
    /// What it has of a group has the model's columns as rows.
    turned: bool,
    /// How many of its rows are one of the tensor's, as of biases.
    fold: usize,
}

/// The order of what a file has in another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Order {
    /// The row of a group in the model that each row of the file's is.
    pub(crate) rows: Option<Arc<[usize]>>,
    /// The same of columns.
    pub(crate) columns: Option<Arc<[usize]>>,
}

/// What was done to values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Change {
    #[default]
    None,
    /// The model has the logarithm of what decays, the file what it is multiplied by: −exp(x).
    Decay,
}

impl Change {
    pub(crate) fn to_file(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Decay => values.iter_mut().for_each(|x| *x = -(libm::exp(f64::from(*x)) as f32)),
        }
    }

    pub(crate) fn to_model(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Decay => values.iter_mut().for_each(|x| *x = libm::log(f64::from(-*x)) as f32),
        }
    }
}

/// What the dimensions of tensors are among those of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dims {
    /// One tensor of the same.
    Same,
    /// One tensor of a row, which a file may have as a list.
    Row,
    /// One tensor, which lacks the dimension of one in the middle: (channels, 1, width).
    Convolution,
    /// Rows of a matrix.
    Rows,
    /// Rows of a matrix, by groups: (groups, rows of each, columns).
    Groups,
    /// Rows of each matrix of a stack, which are tensors of their own here.
    Stack,
    /// Parts of each row of a matrix, as biases of a stack are.
    Lists,
}

/// How rows are dealt out.
pub(crate) struct Split {
    /// Rows of a group, by tensor.
    pub(crate) rows: Vec<usize>,
    pub(crate) order: Order,
}

impl Split {
    /// One tensor has all.
    pub(super) fn whole() -> Self {
        Self { rows: vec![1], order: Order::default() }
    }
}

impl Weave {
    /// A weight of that shape in tensors of these names, of a stack those of its first matrix, in which `{}` is the number. `None` where the parts do not fit.
    pub(crate) fn new(
        shape: &[usize],
        names: impl Fn(usize) -> Vec<(String, bool)>,
        (dims, turned): (Dims, bool),
        split: Split,
        change: Change,
    ) -> Option<Self> {
        let Split { rows: dealt, order } = split;
        let elements = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n)).filter(|elements| *elements > 0)?;
        let (matrices, width) = match (dims, shape) {
            (Dims::Stack, [matrices, inputs, _]) if turned => (*matrices, *inputs),
            (Dims::Stack, [matrices, _, width]) => (*matrices, *width),
            (Dims::Lists, [_, _]) | (Dims::Same, [_]) => (1, 1),
            (_, [.., width]) if dims != Dims::Stack && dims != Dims::Lists => (1, *width),
            _ => return None,
        };
        let rows = elements.checked_div(matrices)?.checked_div(width)?;
        let group = dealt.iter().try_fold(0_usize, |all, n| all.checked_add(*n))?;
        let groups = rows.checked_div(group).filter(|groups| groups * group == rows)?;
        let is_order = |order: &Option<Arc<[usize]>>, len: usize| {
            order.as_ref().is_none_or(|order| {
                let mut met = vec![false; len];
                order.len() == len
                    && order.iter().all(|&i| met.get_mut(i).is_some_and(|met| !std::mem::replace(met, true)))
            })
        };
        if !is_order(&order.rows, group) || !is_order(&order.columns, width) {
            return None;
        }
        let mut pieces = Vec::new();
        for matrix in 0..matrices {
            let mut before = 0;
            for ((stored, piece_turned), rows_of) in names(matrix).into_iter().zip(&dealt) {
                let all = groups * rows_of;
                let own = match (dims, shape) {
                    (Dims::Same | Dims::Row, _) => shape.to_vec(),
                    (Dims::Convolution, [channels, 1, kernel]) => vec![*channels, *kernel],
                    (Dims::Rows | Dims::Stack, _) => vec![all, width],
                    (Dims::Groups, _) if piece_turned => vec![groups, width, *rows_of],
                    (Dims::Groups, _) => vec![groups, *rows_of, width],
                    (Dims::Lists, [lists, _]) => vec![*lists, all.checked_div(*lists)?],
                    _ => return None,
                };
                let fold = if dims == Dims::Lists { own.last().copied()? } else { 1 };
                pieces.push(Piece { stored, shape: own, rows: *rows_of, before, turned: piece_turned, fold });
                before += rows_of;
            }
        }
        let each = dealt.len();
        (pieces.len() == each * matrices).then_some(Self {
            shape: shape.to_vec(),
            pieces,
            each,
            group,
            rows,
            width,
            order,
            turned,
            change,
        })
    }

    /// A stack of matrices, (matrices, outputs, inputs), in a tensor of (matrices, inputs, outputs).
    pub(crate) fn turned_stack(name: &str, shape: &[usize]) -> Option<Self> {
        let &[_, outputs, _] = shape else { return None };
        let split = Split { rows: vec![outputs], order: Order::default() };
        Self::new(shape, |_| vec![(name.to_owned(), true)], (Dims::Groups, false), split, Change::None)
    }

    /// The weight's dimensions.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// A tensor's place among all, where those of a stack that belong to one tensor of the file follow each other.
    pub(crate) fn slot(&self, number: usize) -> usize {
        let each = self.each.max(1);
        number % each * (self.pieces.len() / each) + number / each
    }

    /// Rows and columns of the weight, and how many rows belong together.
    pub(crate) fn geometry(&self) -> (usize, usize, usize) {
        let cols = match self.shape.as_slice() {
            [.., _, cols] => *cols,
            _ => 1,
        };
        let rows = self.shape.iter().product::<usize>().checked_div(cols).unwrap_or(0);
        let step = if self.turned {
            self.width
        } else if self.order.rows.is_some() || self.pieces.iter().any(|piece| piece.turned) {
            let fold = self.fold(cols);
            crate::edit::common_step(self.group, fold) / fold
        } else {
            1
        };
        (rows, cols, step)
    }

    /// Rows of the tensors that a row of the model is.
    fn fold(&self, cols: usize) -> usize {
        cols.checked_div(self.width).unwrap_or(1).max(1)
    }

    /// True if the model's matrices are turned here.
    pub(crate) fn is_turned(&self) -> bool {
        self.turned
    }

    /// Columns as the tensors see them.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Rows of one matrix as the tensors see it.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows as the tensors see them of some rows of the model.
    pub(crate) fn own(&self, rows: &Range<usize>) -> Range<usize> {
        if self.turned {
            let width = self.width.max(1);
            return rows.start / width * self.rows..rows.end.div_ceil(width) * self.rows;
        }
        let fold = self.fold(self.geometry().1);
        rows.start * fold..rows.end * fold
    }

    /// The rows of a tensor that have something of those.
    pub(crate) fn rows_of(&self, number: usize, own: &Range<usize>) -> Range<usize> {
        let Some(piece) = self.pieces.get(number) else { return 0..0 };
        let first = number / self.each.max(1) * self.rows;
        let count = |row: usize| {
            let row = row.saturating_sub(first).min(self.rows);
            let (groups, rest) = (row / self.group.max(1), row % self.group.max(1));
            if piece.turned {
                groups * self.width
            } else {
                groups * piece.rows + rest.saturating_sub(piece.before).min(piece.rows)
            }
        };
        count(own.start)..count(own.end)
    }

    /// The same as the tensor's own dimensions count them.
    pub(crate) fn stored_rows(&self, number: usize, rows: &Range<usize>) -> Range<usize> {
        let fold = self.pieces.get(number).map_or(1, |piece| piece.fold).max(1);
        rows.start / fold..rows.end / fold
    }

    /// True if a row of the model is one of a tensor's, with its columns in their order.
    pub(crate) fn keeps_rows(&self) -> bool {
        let is_whole = |piece: &Piece| !piece.turned && piece.fold == 1;
        !self.turned
            && self.order.columns.is_none()
            && self.fold(self.geometry().1) == 1
            && self.pieces.iter().all(is_whole)
    }

    /// True of a matrix, or a stack of them, whose rows are those of its tensors, which are matrices themselves.
    pub(crate) fn deals_out_rows(&self) -> bool {
        self.keeps_rows() && self.shape.len() >= 2 && self.pieces.iter().all(|piece| piece.shape.len() == 2)
    }

    /// The row of the model, from the first of all, that a row of a tensor is.
    fn row_of(&self, number: usize, piece: &Piece, row: usize) -> usize {
        let (group, row) = (row / piece.rows.max(1), piece.before + row % piece.rows.max(1));
        let row = self.order.rows.as_ref().map_or(row, |order| order.get(row).copied().unwrap_or(row));
        number / self.each.max(1) * self.rows + group * self.group + row
    }

    /// Calls `f` for each of some rows of a tensor that [keeps](Self::keeps_rows) them: where it lies among them, and where among `own`.
    pub(crate) fn each_row(
        &self,
        number: usize,
        rows: &Range<usize>,
        own: &Range<usize>,
        mut f: impl FnMut(usize, usize),
    ) {
        let Some(piece) = self.pieces.get(number) else { return };
        for (at, row) in rows.clone().enumerate() {
            f(at, self.row_of(number, piece, row).wrapping_sub(own.start));
        }
    }

    /// Calls `f` for each value of some rows of a tensor: where it lies among them, and where among `own`.
    pub(crate) fn each_value(
        &self,
        number: usize,
        rows: &Range<usize>,
        own: &Range<usize>,
        mut f: impl FnMut(usize, usize),
    ) {
        let Some(piece) = self.pieces.get(number).filter(|piece| piece.rows > 0 && self.width > 0) else { return };
        let row_of = |row: usize| self.row_of(number, piece, row).wrapping_sub(own.start);
        let column =
            |col: usize| self.order.columns.as_ref().map_or(col, |order| order.get(col).copied().unwrap_or(col));
        let mut at = 0;
        for row in rows.clone() {
            if piece.turned {
                let (group, col) = (row / self.width, row % self.width);
                for i in 0..piece.rows {
                    f(at, row_of(group * piece.rows + i).wrapping_mul(self.width).wrapping_add(column(col)));
                    at += 1;
                }
            } else {
                let start = row_of(row).wrapping_mul(self.width);
                for col in 0..self.width {
                    f(at, start.wrapping_add(column(col)));
                    at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deal(weave: &Weave) -> Vec<Vec<usize>> {
        let own = 0..weave.rows * (weave.pieces.len() / weave.each);
        let piece = |number| {
            let mut values = Vec::new();
            weave.each_value(number, &weave.rows_of(number, &own), &own, |at, place| {
                assert_eq!(at, values.len());
                values.push(place);
            });
            values
        };
        (0..weave.pieces.len()).map(piece).collect()
    }

    fn names(names: &[(&str, bool)]) -> Vec<(String, bool)> {
        names.iter().map(|(name, turned)| ((*name).to_owned(), *turned)).collect()
    }

    #[test]
    fn heads_lie_apart_and_a_part_of_each_is_turned() {
        // Two heads of three rows, of which two are of keys.
        let split = Split { rows: vec![2, 1], order: Order::default() };
        let own = |_| names(&[("k", true), ("v", false)]);
        let weave = Weave::new(&[6, 4], own, (Dims::Groups, false), split, Change::None).unwrap();
        assert_eq!(weave.pieces[0].shape, [2, 4, 2]);
        assert_eq!(weave.pieces[1].shape, [2, 1, 4]);
        assert_eq!(weave.geometry(), (6, 4, 3));
        let dealt = deal(&weave);
        assert_eq!(dealt[0], [0, 4, 1, 5, 2, 6, 3, 7, 12, 16, 13, 17, 14, 18, 15, 19]);
        assert_eq!(dealt[1], [8, 9, 10, 11, 20, 21, 22, 23]);
        assert_eq!(weave.rows_of(0, &(3..6)), 4..8);
        assert_eq!(weave.rows_of(1, &(3..6)), 1..2);
    }

    #[test]
    fn rows_alternate_in_a_stack() {
        let split = Split { rows: vec![1, 1], order: Order::default() };
        let own = |matrix: usize| vec![(format!("g.{matrix}"), false), (format!("u.{matrix}"), false)];
        let weave = Weave::new(&[2, 4, 3], own, (Dims::Stack, false), split, Change::None).unwrap();
        assert_eq!((weave.geometry(), weave.pieces.len()), ((8, 3, 1), 4));
        assert_eq!(deal(&weave)[3], [15, 16, 17, 21, 22, 23]);
        // A cut within a matrix, and one across two.
        assert_eq!([0, 1, 2].map(|piece| weave.rows_of(piece, &(1..6))), [1..2, 0..2, 0..1]);
    }

    #[test]
    fn biases_are_dealt_out_within_a_row() {
        let split = Split { rows: vec![1, 1], order: Order::default() };
        let weave =
            Weave::new(&[2, 4], |_| names(&[("g", false), ("u", false)]), (Dims::Lists, false), split, Change::None)
                .unwrap();
        assert_eq!((weave.geometry(), weave.pieces[0].shape.as_slice()), ((2, 4, 1), &[2, 2][..]));
        assert_eq!(deal(&weave), [[0, 2, 4, 6], [1, 3, 5, 7]]);
        assert_eq!(weave.own(&(1..2)), 4..8);
    }

    #[test]
    fn what_does_not_fit_is_no_weave() {
        let of = |shape: &[usize], rows: Vec<usize>, order: Option<Vec<usize>>| {
            let order = Order { rows: order.map(Into::into), columns: None };
            Weave::new(shape, |_| names(&[("a", false)]), (Dims::Rows, false), Split { rows, order }, Change::None)
        };
        assert!(of(&[4, 2], vec![2], Some(vec![1, 0])).is_some());
        for (shape, rows, order) in [
            (&[5, 2][..], vec![2], None),
            (&[4, 2], vec![0], None),
            (&[4, 2], vec![2], Some(vec![0, 0])),
            (&[4, 2], vec![2], Some(vec![0, 2])),
            (&[4, 0], vec![2], None),
            (&[usize::MAX, 0], vec![1], None),
            (&[usize::MAX, 2], vec![1], None),
            (&[], vec![1], None),
        ] {
            assert_eq!(of(shape, rows, order), None, "{shape:?}");
        }
    }
}
