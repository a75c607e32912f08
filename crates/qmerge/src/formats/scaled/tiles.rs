//! How scales lie, and the types that they are stored in.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::formats::grow;
use crate::simd::codes as kernels;
use crate::simd::{fields, floats};

/// Rows and columns that share a scale, cut off at the edges of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::formats) struct Tiles {
    pub(in crate::formats) rows: usize,
    pub(in crate::formats) cols: usize,
    /// Rows of a matrix of a stack: no tile reaches further.
    pub(in crate::formats) matrix: usize,
    /// Rows of a tile are not next to each other, but as far apart as there are tiles: HQQ's groups of columns.
    spread: bool,
}

impl Tiles {
    /// So many columns of a row; nothing is divided by the width of an empty weight.
    pub(in crate::formats) fn runs(cols: usize, matrix: usize) -> Self {
        Self::blocks(1, cols, matrix)
    }

    /// So many rows by so many columns.
    pub(in crate::formats) fn blocks(rows: usize, cols: usize, matrix: usize) -> Self {
        Self { rows: rows.max(1), cols: cols.max(1), matrix: matrix.max(1), spread: false }
    }

    /// So many values of a column, which are spread over all of it.
    pub(in crate::formats) fn spread(rows: usize, matrix: usize) -> Self {
        Self { spread: true, ..Self::blocks(rows, 1, matrix) }
    }

    /// Tiles of a row.
    pub(in crate::formats) fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.cols.max(1))
    }

    /// Which row of tiles a row lies in.
    pub(super) fn line(&self, row: usize) -> usize {
        let matrix = self.matrix.max(1);
        if self.spread {
            return row % (matrix / self.rows).max(1);
        }
        row / matrix * matrix.div_ceil(self.rows.max(1)) + row % matrix / self.rows.max(1)
    }

    /// The rows of tiles that some rows lie in.
    pub(super) fn lines(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        if self.spread {
            0..(self.matrix / self.rows).max(1)
        } else {
            self.line(rows.start)..self.line(rows.end - 1) + 1
        }
    }

    /// What stands for tiles from a row of them on, for the tiles of each row.
    pub(super) fn of_rows(&self, of_tiles: &[f32], first: usize, groups: usize, rows: &Range<usize>) -> Vec<f32> {
        let mut all = Vec::with_capacity(rows.len() * groups);
        let mut row = rows.start;
        while row < rows.end {
            let line = self.line(row) - first;
            let of_line = of_tiles.get(line * groups..(line + 1) * groups).unwrap_or_default();
            let next = rows.end.min(row + self.left(row));
            (row..next).for_each(|_| all.extend_from_slice(of_line));
            row = next;
        }
        all
    }

    /// Rows from one on that lie next to each other in one row of tiles.
    fn left(&self, row: usize) -> usize {
        if self.spread {
            return 1;
        }
        let inside = row % self.matrix;
        (self.rows - inside % self.rows).min(self.matrix - inside)
    }
}

/// Reads numbers of a type that scales and zeros have. Of bytes without a sign that are no floats, the powers of two.
pub(in crate::formats) fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::U8 | Dtype::F8E8M0 => bytes.iter().map(|&code| kernels::e8m0(code)).collect(),
        Dtype::F8E4M3 => bytes.iter().map(|&code| kernels::e4m3(code)).collect(),
        Dtype::I8 => bytes.iter().map(|&byte| f32::from(byte as i8)).collect(),
        _ => {
            let mut numbers = vec![0.0; bytes.len() / dtype.block().1 as usize];
            floats::decode(dtype, bytes, &mut numbers);
            numbers
        }
    }
}

/// Numbers in a type that scales and zeros have, each the nearest.
pub(in crate::formats) fn number_bytes(dtype: Dtype, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::U8 | Dtype::F8E8M0 => numbers.iter().map(|&x| kernels::to_e8m0(x)).collect(),
        Dtype::F8E4M3 => numbers.iter().map(|&x| kernels::to_e4m3(x)).collect(),
        Dtype::I8 => numbers.iter().map(|&x| x as i8 as u8).collect(),
        _ => {
            let mut bytes = Vec::new();
            floats::encode(dtype, numbers, grow(&mut bytes, numbers.len() * dtype.block().1 as usize));
            bytes
        }
    }
}

/// Zeros that are packed along the rows, for the groups of each of some rows.
pub(super) fn packed_zeros((bits, dense): (usize, bool), bytes: &[u8], groups: usize, rows: &Range<usize>) -> Vec<f32> {
    let word = |at: usize, group: usize| {
        let start = 4 * (at * groups + group);
        let quad = bytes.get(start..start + 4).and_then(|quad| quad.first_chunk::<4>());
        u64::from(quad.map_or(0, |quad| u32::from_le_bytes(*quad)))
    };
    let low = (1 << bits) >> 1;
    let zero = |row: usize, group: usize| {
        let (at, shift) =
            if dense { (row * bits / 32, row * bits % 32) } else { (row / (32 / bits), row % (32 / bits) * bits) };
        let pair = word(at, group) | if shift + bits > 32 { word(at + 1, group) << 32 } else { 0 };
        ((pair >> shift) as i32 & ((1 << bits) - 1)) as f32 - low as f32
    };
    rows.clone()
        .flat_map(|row| (0..groups).map(move |group| (row, group)))
        .map(|(row, group)| zero(row, group))
        .collect()
}

/// The same back: zeros of all rows, row by row, as they are stored.
pub(super) fn pack_zeros((bits, dense): (usize, bool), zeros: &[f32], groups: usize) -> Vec<u8> {
    let rows = zeros.len() / groups.max(1);
    let words = if dense { (rows * bits).div_ceil(32) } else { rows.div_ceil(32 / bits) };
    let mut bytes = vec![0; 4 * words * groups];
    let low = -((1 << bits >> 1) as f32);
    for group in 0..groups {
        let column: Vec<f32> = zeros.iter().skip(group).step_by(groups).copied().collect();
        let mut packed = vec![0; 4 * words];
        fields::pack_fields(bits, dense, &column, low, &mut packed);
        for (to, from) in bytes.chunks_exact_mut(4).skip(group).step_by(groups).zip(packed.chunks_exact(4)) {
            to.copy_from_slice(from);
        }
    }
    bytes
}
