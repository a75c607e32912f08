//! What most quantized checkpoints have in common: codes in rows, and scales that runs of a row or tiles of a matrix share.
//!
//! `value = (level − zero) · scale`, computed in f32 and rounded to the type that the reference decodes to. What a format adds is the names of its
//! tensors, how codes are packed ([`Codes`]), how scales lie ([`Tiles`]) and how its library chooses them ([`Fresh`]). Scales that lie in rows are cut
//! with the rows; those that several rows share belong to the weight as a whole, so that a chunk may be of any number of rows.

mod blocks;
mod claimed;
mod codes;
mod fresh;
mod on_grid;
mod tiles;

use std::ops::Range;
use std::sync::Arc;

pub(super) use blocks::Blocks;
pub(super) use claimed::{Companions, dimensions, groups, misfit};
pub(super) use codes::{Codes, E4M3_LEVELS};
pub(super) use fresh::Fresh;
pub(super) use tiles::{Tiles, number_bytes, numbers};

use super::{Geometry, OnGrid, Part, Rounds, Weight, Writer, part};
use crate::dtype::Dtype;
use crate::simd::codes as kernels;
use crate::simd::floats::round_to;

/// Values of several rows that are decoded together.
const TOGETHER: usize = 4096;

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Codes,
    Scales,
    /// Levels that stand for nothing.
    Zeros,
    /// What is added to scaled levels.
    Offsets,
    /// One scale of the scales, or one for each matrix of a stack.
    Second,
    /// What is neither needed nor changed: scales of activations, a shape, an index.
    Kept,
}

/// What a scale of scales does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Second {
    /// There is none.
    None,
    /// Scales are divided by it.
    Divides,
    /// Scales are multiplied by it.
    Multiplies,
}

/// How zeros are stored, where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// There are none.
    None,
    /// As numbers of their part's type, as scales lie.
    Numbers,
    /// The same, and they need not be whole: what they leave of a level is rounded before it is scaled.
    Fractional,
    /// In fields of so many bits packed along the rows: (words, groups).
    Packed {
        /// Bits of a field.
        bits: usize,
        /// Fields cross words.
        dense: bool,
    },
}

/// A weight of codes with scales.
#[derive(Clone, Debug)]
pub(super) struct Scaled {
    pub(super) format: &'static str,
    pub(super) name: String,
    /// Dimensions as the model has them.
    pub(super) shape: Vec<usize>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) codes: Codes,
    pub(super) tiles: Tiles,
    pub(super) second: Second,
    /// Scales that are stored as bytes are 8-bit floats, not exponents.
    pub(super) eights: bool,
    pub(super) zeros: Zeros,
    /// The group of each column, where groups are no runs.
    pub(super) groups: Option<Arc<[u32]>>,
    /// What decoded values are rounded to.
    pub(super) values: Dtype,
    pub(super) fresh: Fresh,
    /// Settings in words.
    pub(super) about: String,
    pub(super) parts: Vec<Part>,
    pub(super) roles: Vec<Role>,
    /// What values are multiplied with to become levels, where the reference does not divide by what it stores.
    pub(super) multipliers: Option<Arc<[f32]>>,
    /// Scales and offsets (or zeros) that codes are chosen under, where the reference does so before it rounds them.
    pub(super) unrounded: Option<Arc<(Vec<f32>, Vec<f32>)>>,
    /// Bytes of parts that are [`Role::Kept`], where the weight is new: its settings.
    pub(super) told: Vec<(usize, Vec<u8>)>,
}

impl Scaled {
    fn find(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|&have| have == role)
    }

    fn bytes<'b>(&self, parts: &[&'b [u8]], role: Role) -> &'b [u8] {
        self.find(role).map_or(&[], |at| part(parts, at))
    }

    fn dtype(&self, role: Role) -> Dtype {
        if self.eights && role == Role::Scales {
            return Dtype::F8E4M3;
        }
        self.find(role).and_then(|at| self.parts.get(at)).map_or(Dtype::F32, |part| part.dtype)
    }

    /// Groups of a row.
    fn groups(&self) -> usize {
        self.tiles.groups(self.cols)
    }

    /// The numbers of a role for the groups of some rows, row by row, of a part that lies as scales do.
    fn by_rows(&self, parts: &[&[u8]], role: Role, rows: &Range<usize>) -> Vec<f32> {
        let (dtype, bytes, groups) = (self.dtype(role), self.bytes(parts, role), self.groups());
        if self.tiles.rows == 1 {
            return numbers(dtype, bytes);
        }
        // Of a table for the whole weight, the lines of tiles that these rows lie in.
        let (lines, width) = (self.tiles.lines(rows), groups * dtype.block().1 as usize);
        let of_lines = bytes.get(lines.start * width..lines.end * width).unwrap_or_default();
        self.tiles.of_rows(&numbers(dtype, of_lines), lines.start, groups, rows)
    }

    /// The scales of some rows' groups.
    fn scales(&self, parts: &[&[u8]], rows: &Range<usize>) -> Vec<f32> {
        let mut scales = match self.find(Role::Scales) {
            Some(_) => self.by_rows(parts, Role::Scales, rows),
            // The scale of scales is the only one.
            None => vec![1.0; rows.len() * self.groups()],
        };
        if self.second != Second::None && self.groups() > 0 {
            let seconds = self.seconds(parts);
            for (row, scales) in rows.clone().zip(scales.chunks_mut(self.groups())) {
                let second = self.second_of(&seconds, row);
                scales.iter_mut().for_each(|scale| *scale = self.under_second(*scale, second));
            }
        }
        scales
    }

    fn under_second(&self, scale: f32, second: f32) -> f32 {
        match self.second {
            Second::None => scale,
            Second::Divides => scale / second,
            Second::Multiplies => scale * second,
        }
    }

    /// The scales of scales: one, or one for each matrix of a stack.
    fn seconds(&self, parts: &[&[u8]]) -> Vec<f32> {
        numbers(self.dtype(Role::Second), self.bytes(parts, Role::Second))
    }

    /// The scale of a row's scales.
    fn second_of(&self, seconds: &[f32], row: usize) -> f32 {
        let matrix = if seconds.len() > 1 { row / self.tiles.matrix.max(1) } else { 0 };
        seconds.get(matrix).copied().unwrap_or(f32::NAN)
    }

    /// The zeros of some rows' groups; none where there are none.
    fn zeros(&self, parts: &[&[u8]], rows: &Range<usize>) -> Vec<f32> {
        match self.zeros {
            Zeros::None => Vec::new(),
            Zeros::Numbers | Zeros::Fractional => self.by_rows(parts, Role::Zeros, rows),
            Zeros::Packed { bits, dense } => {
                tiles::packed_zeros((bits, dense), self.bytes(parts, Role::Zeros), self.groups(), rows)
            }
        }
    }

    /// When values are rounded.
    fn rounds(&self) -> Rounds {
        match (self.find(Role::Offsets), self.zeros) {
            (Some(_), _) => Rounds::BeforeOffset,
            (None, Zeros::Fractional) => Rounds::BeforeScale,
            (None, _) => Rounds::Once,
        }
    }

    /// The group of a column.
    fn group_of(&self, column: usize) -> usize {
        match &self.groups {
            Some(groups) => groups.get(column).map_or(0, |&group| group as usize),
            None => column / self.tiles.cols,
        }
    }

    /// Columns next to each other that share what stands for their group.
    fn run(&self) -> usize {
        if self.groups.is_some() { 1 } else { self.tiles.cols.min(self.cols).max(1) }
    }

    /// What stands for groups, row by row, for each such run.
    fn by_runs(&self, of_groups: Vec<f32>) -> Vec<f32> {
        match self.groups {
            None => of_groups,
            Some(_) => of_groups.chunks(self.groups().max(1)).flat_map(|row| self.by_column(row)).collect(),
        }
    }

    /// What stands for each group, by column.
    fn by_column(&self, of_groups: &[f32]) -> Vec<f32> {
        (0..self.cols).map(|column| of_groups.get(self.group_of(column)).copied().unwrap_or(f32::NAN)).collect()
    }
}

impl Weight for Scaled {
    fn format(&self) -> &'static str {
        self.format
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn geometry(&self) -> Geometry {
        // Words hold codes of rows that lie far from each other.
        let row_step = if matches!(self.codes, Codes::Blocks(_)) { self.rows.max(1) } else { 1 };
        Geometry { rows: self.rows, cols: self.cols, row_step }
    }

    fn value_dtype(&self) -> Dtype {
        self.values
    }

    fn details(&self) -> String {
        self.about.clone()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        let of = |row_bytes: usize| Some((rows.start * row_bytes) as u64..(rows.end * row_bytes) as u64);
        match self.roles.get(part)? {
            Role::Codes => match self.codes {
                Codes::Blocks(blocks) => {
                    let at = |row: usize| if row == 0 { 0 } else { blocks.bytes() as u64 };
                    Some(at(rows.start)..at(rows.end))
                }
                codes => of(codes.row_bytes(self.cols)),
            },
            Role::Zeros if matches!(self.zeros, Zeros::Packed { .. }) => None,
            Role::Scales | Role::Zeros | Role::Offsets if self.tiles.rows == 1 => {
                of(self.groups() * self.parts.get(part)?.dtype.block().1 as usize)
            }
            _ => None,
        }
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let (cols, groups, row_bytes) = (self.cols, self.groups(), self.codes.row_bytes(self.cols));
        if cols == 0 {
            return;
        }
        let (scales, zeros) = (self.scales(parts, &rows), self.zeros(parts, &rows));
        let unpacked;
        let codes = match self.codes {
            Codes::Blocks(blocks) => {
                unpacked = blocks.unpack(part(parts, 0), out.len());
                &unpacked
            }
            _ => part(parts, 0),
        };
        // Rows whose runs and words follow each other without a gap are done together, as far as the first-level cache goes.
        let follow = self.groups.is_none() && cols.is_multiple_of(self.run()) && self.codes.fills_words(cols);
        let many = if follow { (TOGETHER / cols).max(1) } else { 1 };
        let parts_of = out.chunks_mut(many * cols).zip(codes.chunks((many * row_bytes).max(1)));
        for (k, (out, codes)) in parts_of.enumerate() {
            let groups = k * many * groups..(k * many + out.len() / cols) * groups;
            let [scales, zeros] = [&scales, &zeros].map(|of| of.get(groups.clone()).unwrap_or_default());
            let run = self.run();
            if self.zeros == Zeros::None
                && self.groups.is_none()
                && self.codes.decode_row(codes, run, scales, self.values, out)
            {
                continue;
            }
            self.codes.levels(codes, out);
            if self.zeros == Zeros::Fractional {
                let (scales, zeros) = (self.by_runs(scales.to_vec()), self.by_runs(zeros.to_vec()));
                kernels::scale(out, run, &vec![1.0; scales.len()], &zeros);
                round_to(self.values, out);
                kernels::scale(out, run, &scales, &[]);
            } else if self.groups.is_some() {
                kernels::scale(out, run, &self.by_runs(scales.to_vec()), &self.by_runs(zeros.to_vec()));
            } else {
                kernels::scale(out, run, scales, zeros);
            }
            round_to(self.values, out);
        }
        if self.find(Role::Offsets).is_some() {
            let offsets = self.by_rows(parts, Role::Offsets, &rows);
            let runs = out.chunks_mut(cols).flat_map(|row| row.chunks_mut(self.tiles.cols));
            for (run, offset) in runs.zip(offsets) {
                run.iter_mut().for_each(|x| *x += offset);
            }
            round_to(self.values, out);
        }
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}
