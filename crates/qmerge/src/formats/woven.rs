//! A weight of the model that lies in several tensors of a GGUF file, or turned there.
//!
//! The way between the two is [`Weave`]'s. What tensors decode to is put together as the model has it, and what the model has is taken apart where it is stored, so that all else sees
//! one weight: its edits, the moments of its inputs, its figures.

use std::ops::Range;
use std::sync::Arc;

use super::{Choices, Geometry, Grid, OnGrid, Part, Settings, Settled, Weight, Writer, wrapper};
use crate::arch::gguf::{View, Weave};
use crate::dtype::Dtype;
use crate::error::Result;

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

    /// The grid of the model's rows, in the order of the tensors: with their runs where rows stay whole, else with a scale for each value.
    fn grid_of(&self, parts: &[&[u8]], own: &Range<usize>) -> Option<Grid> {
        let width = self.weave.width();
        let mut woven: Option<Grid> = None;
        for (number, piece, rows, at) in self.each(own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            let grid = piece.on_grid()?.grid(parts.get(at).unwrap_or_default(), self.weave.stored_rows(number, &rows));
            let by_row = self.runs_of_row(&grid);
            let count = by_row.map_or(own.len() * width, |runs| own.len() * runs);
            let all = woven.get_or_insert_with(|| Grid {
                run: if by_row.is_some() { grid.run } else { 1 },
                line: if by_row.is_some() { grid.line } else { 0 },
                scales: if grid.scales.is_empty() { Vec::new() } else { vec![f32::NAN; count] },
                zeros: if grid.zeros.is_empty() { Vec::new() } else { vec![0.0; count] },
                offsets: if grid.offsets.is_empty() { Vec::new() } else { vec![0.0; count] },
                choices: self.no_choices(by_row, own, &grid.choices),
                offset_choices: self.no_choices(by_row, own, &grid.offset_choices),
                ..grid.clone()
            });
            let lists =
                [(&mut all.scales, &grid.scales), (&mut all.zeros, &grid.zeros), (&mut all.offsets, &grid.offsets)];
            for (to, from) in lists {
                match by_row {
                    Some(runs) => self.weave.each_row(number, &rows, own, |at, place| copy(from, at, to, place, runs)),
                    None => self.weave.each_value(number, &rows, own, |at, place| {
                        if let (Some(to), Some(x)) = (to.get_mut(place), from.get(grid.run_of(at))) {
                            *to = *x;
                        }
                    }),
                }
            }
            for (to, from) in [(&mut all.choices, &grid.choices), (&mut all.offset_choices, &grid.offset_choices)] {
                let Choices::Listed { lists: from, first: 0, .. } = from else {
                    if to != from {
                        *to = Choices::Fixed;
                    }
                    continue;
                };
                let each = from.len() / rows.len();
                match to {
                    Choices::Listed { lists, .. } if lists.len() == own.len() * each => {
                        self.weave.each_row(number, &rows, own, |at, place| copy(from, at, lists, place, each));
                    }
                    _ => *to = Choices::Fixed,
                }
            }
        }
        woven
    }

    /// Runs of a row, where the model's rows are rows of the tensors and begin with a run.
    fn runs_of_row(&self, grid: &Grid) -> Option<usize> {
        let (width, run) = (self.weave.width(), grid.run.max(1));
        let fits = if grid.line == 0 { width.is_multiple_of(run) } else { grid.line == width };
        (self.weave.keeps_rows() && fits).then(|| width.div_ceil(run))
    }

    /// Choices of rows of which nothing is known yet.
    fn no_choices(&self, by_row: Option<usize>, own: &Range<usize>, like: &Choices) -> Choices {
        match (by_row, like) {
            (Some(each), Choices::Listed { runs, .. }) if each.is_multiple_of((*runs).max(1)) => {
                let lists = vec![Vec::new(); own.len() * each / (*runs).max(1)];
                Choices::Listed { lists, runs: *runs, first: 0 }
            }
            (None, _) | (_, Choices::Listed { .. }) => Choices::Fixed,
            _ => like.clone(),
        }
    }

    /// A piece's grid with the scales and offsets that its rows have in that of all, where rows stay whole.
    fn moved(
        &self,
        number: usize,
        rows: &Range<usize>,
        own: &Range<usize>,
        all: &Grid,
        mut grid: Grid,
    ) -> Option<Grid> {
        let runs = self.runs_of_row(&grid)?;
        for (to, from) in [(&mut grid.scales, &all.scales), (&mut grid.offsets, &all.offsets)] {
            self.weave.each_row(number, rows, own, |at, place| copy(from, place, to, at, runs));
        }
        Some(grid)
    }
}

/// Copies the items of a row, so many of each, to another's place.
fn copy<T: Clone>(from: &[T], at: usize, to: &mut [T], place: usize, each: usize) {
    let span = |row: usize| row.wrapping_mul(each)..row.wrapping_mul(each).saturating_add(each);
    if let (Some(from), Some(to)) = (from.get(span(at)), to.get_mut(span(place))) {
        to.clone_from_slice(from);
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

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let own = self.weave.own(&rows);
        let values = self.to_file(values);
        for (number, piece, rows, at) in self.each(&own).filter(|(_, _, rows, _)| !rows.is_empty()) {
            let taken = self.taken(number, &rows, &own, &values);
            if let (Some(on_grid), Some(out)) = (piece.on_grid(), out.get_mut(at.clone())) {
                let (stored, parts) = (self.weave.stored_rows(number, &rows), parts.get(at).unwrap_or_default());
                let grid = || on_grid.grid(parts, stored.clone());
                let moved = moved.and_then(|all| self.moved(number, &rows, &own, all, grid()));
                on_grid.store(parts, stored, &taken, moved.as_ref(), out);
            }
        }
    }
}

impl Writer for Woven {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let renewed = |piece: &Arc<dyn Weight>| wrapper::writer(piece.as_ref())?.renewed(values, settings);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::gguf::{Dims, Order, Split};
    use crate::formats::by_id;

    const WIDTH: usize = 256;

    /// Two matrices of six rows, each dealt out to two tensors: row by row, or half by half.
    fn woven(format: &str, dealt: usize) -> (Woven, Vec<Vec<u8>>) {
        let names = |matrix: usize| vec![(format!("gate.{matrix}"), false), (format!("up.{matrix}"), false)];
        let split = Split { rows: vec![dealt; 2], order: Order::default() };
        let weave =
            Arc::new(Weave::new(&[2, 6, WIDTH], names, (Dims::Stack, false), split, Default::default()).unwrap());
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.3
        };
        let (mut pieces, mut stored) = (Vec::new(), Vec::new());
        for piece in weave.pieces() {
            let dtype = Dtype::F32;
            let weight =
                by_id(format).unwrap().create(&piece.stored, &piece.shape, dtype, &Settings::default()).unwrap();
            let values: Vec<f32> = (0..piece.shape.iter().product()).map(|_| next()).collect();
            let mut bytes = vec![Vec::new()];
            weight.writer().unwrap().encode(&[None], 0..piece.shape[0], &values, &mut bytes);
            stored.append(&mut bytes);
            pieces.push(weight);
        }
        let view = View {
            name: "gate_up".into(),
            stored: "gate.0".into(),
            order: None,
            added: 0.0,
            is_row: false,
            padding: 0,
            weave: Some(Arc::clone(&weave)),
        };
        (Woven::new(pieces, view, weave), stored)
    }

    /// Where rows stay whole, scales and offsets can be moved as in a tensor by itself, and what is stored under them decodes to the grid's values.
    #[test]
    fn scales_of_whole_rows_are_moved() {
        for format in ["q8_0", "q4_0", "q4_k", "q6_k", "q2_k", "iq4_xs"] {
            for dealt in [1, 3] {
                let (weight, stored) = woven(format, dealt);
                // One matrix: the tensors of the other have no bytes of it.
                for rows in [0..6, 6..12] {
                    let range = |part: usize| weight.part_rows(part, &rows).unwrap();
                    let parts: Vec<&[u8]> = (stored.iter().enumerate())
                        .map(|(part, bytes)| &bytes[range(part).start as usize..range(part).end as usize])
                        .collect();
                    let mut values = vec![0.0; 6 * WIDTH];
                    weight.decode(&parts, rows.clone(), &mut values);
                    let on_grid = weight.on_grid().unwrap();
                    let mut grid = on_grid.grid(&parts, rows.clone());
                    assert!(grid.run > 1 && values.iter().enumerate().all(|(i, x)| grid.nearest(i, *x) == *x));
                    let mut wanted = values.clone();
                    let mut moved = 0;
                    for run in 0..grid.scales.len() {
                        let scale = grid.choice(run, 1.3 * grid.scales[run]);
                        let offset = grid.offset_choice(run, 0.8 * grid.offset(run));
                        let elements = run * grid.run..(run + 1) * grid.run;
                        grid.moved(run, &values[elements.clone()], scale, offset, &mut wanted[elements]);
                        moved += usize::from(scale != grid.scales[run] || offset != grid.offset(run));
                        grid.scales[run] = scale;
                        if !grid.offsets.is_empty() {
                            grid.offsets[run] = offset;
                        }
                    }
                    assert!(2 * moved > grid.scales.len(), "{format} {dealt}: {moved}");
                    let mut written = vec![Vec::new(); parts.len()];
                    on_grid.store(&parts, rows.clone(), &wanted, Some(&grid), &mut written);
                    let written: Vec<&[u8]> = written.iter().map(Vec::as_slice).collect();
                    weight.decode(&written, rows.clone(), &mut values);
                    assert!(values == wanted, "{format} {dealt} {rows:?}");
                }
            }
        }
    }
}
