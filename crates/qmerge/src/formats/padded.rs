//! A table of which a file has more rows than the model: zeros behind the model's own.
//!
//! Only what is made has them: a file that is read has as many rows as it says. They are written with the model's last row.

use std::ops::Range;
use std::sync::Arc;

use super::wrapper::{self, Wrapper};
use super::{Geometry, Grid, OnGrid, Part, Settings, Settled, Weight, Writer};
use crate::dtype::Dtype;
use crate::error::Result;

/// A weight without the last rows of what is stored.
#[derive(Clone, Debug)]
pub(crate) struct Padded {
    stored: Arc<dyn Weight>,
    padding: usize,
    /// Dimensions in the model.
    shape: Vec<usize>,
}

impl Padded {
    /// So many of the stored rows are zeros.
    pub(crate) fn new(stored: Arc<dyn Weight>, padding: usize) -> Self {
        let mut shape = stored.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = rows.saturating_sub(padding);
        }
        Self { stored, padding, shape }
    }

    /// The bytes of the model's rows alone.
    fn without_padding<'b>(&self, parts: &[&'b [u8]], rows: &Range<usize>) -> Vec<&'b [u8]> {
        let own = |(number, part): (usize, &&'b [u8])| {
            let range = self.stored.part_rows(number, rows);
            range.and_then(|range| part.get(..(range.end - range.start) as usize)).unwrap_or(part)
        };
        parts.iter().enumerate().map(own).collect()
    }

    /// Calls `f` for each row of zeros that is written with some of the model's.
    fn behind(&self, rows: &Range<usize>, mut f: impl FnMut(Range<usize>, &[f32])) {
        if rows.end == self.rows() {
            let zeros = vec![0.0; self.stored.geometry().cols];
            (rows.end..rows.end + self.padding).for_each(|row| f(row..row + 1, &zeros));
        }
    }

    /// The model's rows.
    fn rows(&self) -> usize {
        self.stored.geometry().rows.saturating_sub(self.padding)
    }
}

impl Weight for Padded {
    fn format(&self) -> &'static str {
        self.stored.format()
    }

    fn name(&self) -> &str {
        self.stored.name()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.rows(), ..self.stored.geometry() }
    }

    fn value_dtype(&self) -> Dtype {
        self.stored.value_dtype()
    }

    fn is_plain(&self) -> bool {
        self.stored.is_plain()
    }

    fn details(&self) -> String {
        self.stored.details()
    }

    fn parts(&self) -> &[Part] {
        self.stored.parts()
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        let is_last = !rows.is_empty() && rows.end == self.rows();
        let end = if is_last { rows.end + self.padding } else { rows.end };
        self.stored.part_rows(part, &(rows.start..end))
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        self.stored.decode(&self.without_padding(parts, &rows), rows, out);
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        self.stored.on_grid().map(|_| self as _)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.stored.writer().map(|_| self as _)
    }
}

impl Wrapper for Padded {
    fn stored(&self) -> &Arc<dyn Weight> {
        &self.stored
    }

    fn around(&self, stored: Arc<dyn Weight>) -> Arc<dyn Weight> {
        Arc::new(Self { stored, ..self.clone() })
    }
}

impl OnGrid for Padded {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        match self.stored.on_grid() {
            Some(on_grid) => on_grid.grid(&self.without_padding(parts, &rows), rows),
            None => Grid::floats(self.value_dtype()),
        }
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let (Some(on_grid), Some(writer)) = (self.stored.on_grid(), self.stored.writer()) else { return };
        on_grid.store(&self.without_padding(parts, &rows), rows.clone(), values, moved, out);
        let decided = vec![None; self.parts().len()];
        self.behind(&rows, |row, zeros| writer.encode(&decided, row, zeros, out));
    }
}

impl Writer for Padded {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        wrapper::renewed(self, values, settings)
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        wrapper::settle(self, held, stored)
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let Some(writer) = self.stored.writer() else { return };
        writer.encode(decided, rows.clone(), values, out);
        self.behind(&rows, |row, zeros| writer.encode(decided, row, zeros, out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::plain::PlainWeight;

    #[test]
    fn zeros_lie_behind_the_last_row() {
        let stored = Arc::new(PlainWeight::new("table", &[5, 2], Dtype::F32));
        let weight = Padded::new(stored, 2);
        assert_eq!((weight.shape(), weight.geometry().rows), (&[3, 2][..], 3));
        assert_eq!([0..2, 2..3].map(|rows| weight.part_rows(0, &rows).unwrap()), [0..16, 16..40]);
        let mut out = vec![Vec::new()];
        weight.encode(&[None], 0..2, &[1.0; 4], &mut out);
        weight.encode(&[None], 2..3, &[1.0; 2], &mut out);
        assert_eq!(out[0].len(), 40);
        assert!(out[0][24..].iter().all(|byte| *byte == 0));
        let mut values = vec![0.0; 2];
        weight.decode(&[&out[0][16..]], 2..3, &mut values);
        assert_eq!(values, [1.0; 2]);
        // A method that moves values sees the model's rows alone.
        let on_grid = weight.on_grid().unwrap();
        assert!(on_grid.grid(&[&out[0][16..]], 2..3).scales.is_empty());
        let mut stored = vec![Vec::new()];
        on_grid.store(&[&out[0][16..]], 2..3, &values, None, &mut stored);
        assert_eq!(stored[0], out[0][16..]);
    }
}
