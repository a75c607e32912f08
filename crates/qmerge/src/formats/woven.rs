//! A weight of the model that lies in several tensors of a GGUF file, or turned there.
//!
//! The way between the two is [`Weave`]'s. What tensors decode to is put together as the model has it, and what the model has is taken apart where it is stored, so that all else sees
//! one weight: its edits, the moments of its inputs, its figures.

use std::ops::Range;
use std::sync::Arc;

use super::{Choices, Geometry, Grid, OnGrid, Part, Settings, Settled, Weight, Writer};
use crate::arch::gguf::{View, Weave};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

/// A weight in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Woven {
    pieces: Vec<Arc<dyn Weight>>,
    view: View,
    weave: Arc<Weave>,
    parts: Vec<Part>,
    /// By part, its piece and its number there.
    places: Vec<(usize, usize)>,
}

impl Woven {
    /// `pieces` are in the weave's order, and have its dimensions.
    pub(crate) fn new(pieces: Vec<Arc<dyn Weight>>, view: View, weave: Arc<Weave>) -> Self {
        let of = |(number, piece): (usize, &Arc<dyn Weight>)| {
            (0..piece.parts().len()).map(move |part| (number, part)).collect::<Vec<_>>()
        };
        let places = pieces.iter().enumerate().flat_map(of).collect();
        let parts = pieces.iter().flat_map(|piece| piece.parts().to_vec()).collect();
        Self { pieces, view, weave, parts, places }
    }

    fn again(&self, pieces: Vec<Arc<dyn Weight>>) -> Arc<dyn Weight> {
        Arc::new(Self::new(pieces, self.view.clone(), Arc::clone(&self.weave)))
    }

    /// What is done piece by piece: the piece, its number, its rows, and where its parts lie among all.
    fn each(&self, own: &Range<usize>) -> impl Iterator<Item = (usize, &Arc<dyn Weight>, Range<usize>, Range<usize>)> {
        let mut first = 0;
        let own = own.clone();
        self.pieces.iter().enumerate().map(move |(number, piece)| {
            let parts = first..first + piece.parts().len();
            first = parts.end;
            (number, piece, self.weave.rows_of(number, &own), parts)
        })
    }

    /// Elements of the model's rows in the order of the tensors, and back.
    fn turn<T: Clone>(&self, values: Vec<T>, to_file: bool) -> Vec<T> {
        if !self.weave.is_turned() {
            return values;
        }
        let (rows, width) = (self.weave.rows(), self.weave.width());
        let (rows, cols) = if to_file { (width, rows) } else { (rows, width) };
        let mut turned = Vec::with_capacity(values.len());
        for matrix in values.chunks((rows * cols).max(1)) {
            for col in 0..cols {
                turned.extend((0..rows).filter_map(|row| matrix.get(row * cols + col).cloned()));
            }
        }
        turned
    }

    /// A piece's values out of those of all.
    fn taken(&self, number: usize, rows: &Range<usize>, own: &Range<usize>, values: &[f32]) -> Vec<f32> {
        let mut taken = Vec::with_capacity(rows.len() * self.weave.width());
        self.weave.each_value(number, rows, own, |_, place| taken.push(values.get(place).copied().unwrap_or(f32::NAN)));
        taken
    }

    /// Values as the tensors have them.
    fn to_file(&self, values: &[f32]) -> Vec<f32> {
        let mut values = self.turn(values.to_vec(), true);
        self.weave.change.to_file(&mut values);
        values
    }

    /// A grid of one scale for each value, in the order of the tensors.
    fn grid_of(&self, parts: &[&[u8]], own: &Range<usize>) -> Option<Grid> {
        let count = own.len() * self.weave.width();
        let mut woven: Option<Grid> = None;
        for (number, piece, rows, at) in self.each(own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            let grid = piece.on_grid()?.grid(parts.get(at).unwrap_or_default(), self.weave.stored_rows(number, &rows));
            let all = woven.get_or_insert_with(|| Grid {
                run: 1,
                line: 0,
                scales: if grid.scales.is_empty() { Vec::new() } else { vec![f32::NAN; count] },
                zeros: if grid.zeros.is_empty() { Vec::new() } else { vec![0.0; count] },
                offsets: if grid.offsets.is_empty() { Vec::new() } else { vec![0.0; count] },
                choices: Choices::Fixed,
                offset_choices: Choices::Fixed,
                ..grid.clone()
            });
            let lists =
                [(&mut all.scales, &grid.scales), (&mut all.zeros, &grid.zeros), (&mut all.offsets, &grid.offsets)];
            for (to, from) in lists {
                self.weave.each_value(number, &rows, own, |at, place| {
                    if let (Some(to), Some(x)) = (to.get_mut(place), from.get(grid.run_of(at))) {
                        *to = *x;
                    }
                });
            }
        }
        woven
    }
}

impl Weight for Woven {
    fn format(&self) -> &'static str {
        self.pieces.first().map_or("", |piece| piece.format())
    }

    fn name(&self) -> &str {
        &self.view.name
    }

    fn shape(&self) -> &[usize] {
        self.weave.shape()
    }

    fn geometry(&self) -> Geometry {
        let (rows, cols, row_step) = self.weave.geometry();
        Geometry { rows, cols, row_step }
    }

    fn value_dtype(&self) -> Dtype {
        self.pieces.first().map_or(Dtype::F32, |piece| piece.value_dtype())
    }

    fn is_plain(&self) -> bool {
        self.pieces.iter().all(|piece| piece.is_plain())
    }

    fn moved_bytes(&self) -> u64 {
        // What its tensors have, all of it in the file's order, and a scale and a level's place for each value.
        3 * 4
    }

    fn has_family_order(&self) -> bool {
        self.weave.is_turned()
    }

    fn details(&self) -> String {
        self.pieces.first().map_or(String::new(), |piece| piece.details())
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        let (number, part) = *self.places.get(part)?;
        let rows = self.weave.rows_of(number, &self.weave.own(rows));
        self.pieces.get(number)?.part_rows(part, &self.weave.stored_rows(number, &rows))
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let own = self.weave.own(&rows);
        let mut values = vec![f32::NAN; own.len() * self.weave.width()];
        let mut piece_values = Vec::new();
        for (number, piece, rows, at) in self.each(&own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            piece_values.clear();
            let stored = self.weave.stored_rows(number, &rows);
            piece_values.resize(stored.len() * piece.geometry().cols, f32::NAN);
            piece.decode(parts.get(at).unwrap_or_default(), stored, &mut piece_values);
            self.weave.each_value(number, &rows, &own, |at, place| {
                if let (Some(to), Some(x)) = (values.get_mut(place), piece_values.get(at)) {
                    *to = *x;
                }
            });
        }
        self.weave.change.to_model(&mut values);
        out.iter_mut().zip(self.turn(values, false)).for_each(|(out, x)| *out = x);
    }

    fn reshaped(&self, rows: usize, cols: usize) -> Option<Arc<dyn Weight>> {
        let own = self.geometry();
        ((rows, cols) == (own.rows, own.cols)).then(|| Arc::new(self.clone()) as _)
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        // Levels are one and the same for all elements of a grid.
        let same = |piece: &Arc<dyn Weight>| piece.on_grid().is_some() && piece.format() == self.format();
        self.pieces.iter().all(same).then_some(self as _)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.pieces.iter().all(|piece| piece.writer().is_some_and(|writer| !writer.needs_survey())).then_some(self as _)
    }

    fn view(&self) -> Option<&View> {
        Some(&self.view)
    }
}

impl OnGrid for Woven {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let own = self.weave.own(&rows);
        let Some(grid) = self.grid_of(parts, &own) else { return Grid::floats(self.value_dtype()) };
        let turn = |list: Vec<f32>| self.turn(list, false);
        Grid { scales: turn(grid.scales), zeros: turn(grid.zeros), offsets: turn(grid.offsets), ..grid }
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], _: Option<&Grid>, out: &mut [Vec<u8>]) {
        let own = self.weave.own(&rows);
        let values = self.to_file(values);
        for (number, piece, rows, at) in self.each(&own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            let taken = self.taken(number, &rows, &own, &values);
            if let (Some(on_grid), Some(out)) = (piece.on_grid(), out.get_mut(at.clone())) {
                let stored = self.weave.stored_rows(number, &rows);
                on_grid.store(parts.get(at).unwrap_or_default(), stored, &taken, None, out);
            }
        }
    }
}

impl Writer for Woven {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let renewed = |piece: &Arc<dyn Weight>| match piece.writer() {
            Some(writer) => writer.renewed(values, settings),
            None => Err(Error::new(Kind::Bug, "it cannot be stored").in_tensor(self.name())),
        };
        Ok(self.again(self.pieces.iter().map(renewed).collect::<Result<_>>()?))
    }

    fn settle(&self, _: &[f32], _: &[Option<Vec<u8>>]) -> Settled {
        let (mut pieces, mut parts) = (Vec::new(), Vec::new());
        for piece in &self.pieces {
            match piece.writer().map(|writer| writer.settle(&[], &[])) {
                Some(settled) => {
                    pieces.push(settled.weight);
                    parts.extend(settled.parts);
                }
                None => {
                    pieces.push(Arc::clone(piece));
                    parts.extend(piece.parts().iter().map(|_| None));
                }
            }
        }
        Settled { weight: self.again(pieces), parts }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let own = self.weave.own(&rows);
        let values = self.to_file(values);
        for (number, piece, rows, at) in self.each(&own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            let taken = self.taken(number, &rows, &own, &values);
            if let (Some(writer), Some(out)) = (piece.writer(), out.get_mut(at.clone())) {
                let stored = self.weave.stored_rows(number, &rows);
                writer.encode(decided.get(at).unwrap_or_default(), stored, &taken, out);
            }
        }
    }
}
