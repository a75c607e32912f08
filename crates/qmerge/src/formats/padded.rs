//! A table of which a file has more rows than the model: zeros behind the model's own.
//!
//! Only what is made has them (a file that is read has as many rows as it says), so that nothing is stored under scales that are there. They are written with the model's last row.

use std::ops::Range;
use std::sync::Arc;

use super::{Geometry, Part, Settings, Settled, Weight, Writer};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

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

    fn again(&self, stored: Arc<dyn Weight>) -> Arc<dyn Weight> {
        Arc::new(Self { stored, ..self.clone() })
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
        let own = |(number, part): (usize, &&'_ [u8])| {
            let bytes = self.stored.part_rows(number, &rows).map(|range| (range.end - range.start) as usize);
            bytes.and_then(|bytes| part.get(..bytes)).map_or(part.len(), <[u8]>::len)
        };
        let lengths: Vec<usize> = parts.iter().enumerate().map(own).collect();
        let parts: Vec<&[u8]> = parts.iter().zip(lengths).map(|(part, len)| part.get(..len).unwrap_or(part)).collect();
        self.stored.decode(&parts, rows, out);
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.stored.writer().map(|_| self as _)
    }
}

impl Writer for Padded {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        match self.stored.writer() {
            Some(writer) => writer.renewed(values, settings).map(|stored| self.again(stored)),
            None => Err(Error::new(Kind::Bug, "it cannot be stored").in_tensor(self.name())),
        }
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        match self.stored.writer() {
            Some(writer) => {
                let Settled { weight, parts } = writer.settle(held, stored);
                Settled { weight: self.again(weight), parts }
            }
            None => Settled { weight: Arc::new(self.clone()), parts: Vec::new() },
        }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let Some(writer) = self.stored.writer() else { return };
        let last = rows.end;
        writer.encode(decided, rows, values, out);
        if last == self.rows() {
            let zeros = vec![0.0; self.stored.geometry().cols];
            (last..last + self.padding).for_each(|row| writer.encode(decided, row..row + 1, &zeros, out));
        }
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
    }
}
