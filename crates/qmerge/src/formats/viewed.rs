//! A weight of a GGUF file as the model has it: under the model's name, with its rows in the model's order.
//!
//! What a converter changed is undone where rows are decoded and done again where they are stored, so that all else, whether it edits, rounds, compares or runs a
//! model, sees one and the same weight in any file. Rows only change places within a head, or within all of a matrix, so a chunk is a whole number of those.

use std::ops::Range;
use std::sync::Arc;

use super::wrapper::{self, Wrapper};
use super::{Choices, Geometry, Grid, OnGrid, Part, Settings, Settled, Weight, Writer};
use crate::arch::gguf::{To, View};
use crate::dtype::Dtype;
use crate::error::Result;

/// A weight behind a view.
#[derive(Clone, Debug)]
pub(crate) struct Viewed {
    stored: Arc<dyn Weight>,
    view: View,
    /// Dimensions in the model, where the file has others.
    shape: Option<[usize; 2]>,
}

impl Viewed {
    pub(crate) fn new(stored: Arc<dyn Weight>, view: View) -> Self {
        if let (true, &[cols]) = (view.is_row, stored.shape())
            && let Some(stored) = stored.reshaped(1, cols)
        {
            return Self { stored, view, shape: Some([1, cols]) };
        }
        Self { stored, view, shape: None }
    }

    /// Items of whole steps of the order, `each` of them for a row, in the other order; `None` where both are one.
    fn permuted<T: Clone>(&self, items: &[T], each: usize, to: To) -> Option<Vec<T>> {
        self.view.order.map(|order| order.permuted(items, each, to))
    }

    fn cols(&self) -> usize {
        self.stored.geometry().cols
    }

    /// Values as the file has them.
    fn to_file(&self, values: &[f32]) -> Option<Vec<f32>> {
        if self.view.added != 0.0 {
            return Some(values.iter().map(|x| x + self.view.added).collect());
        }
        self.permuted(values, self.cols(), To::File)
    }

    /// A grid of whole steps in the other order.
    fn turn(&self, grid: &mut Grid, to: To) {
        let runs = if grid.line == 0 { self.cols() / grid.run.max(1) } else { grid.line.div_ceil(grid.run.max(1)) };
        for list in [&mut grid.scales, &mut grid.zeros, &mut grid.offsets] {
            if let Some(permuted) = self.permuted(list, runs, to) {
                *list = permuted;
            }
        }
        for choices in [&mut grid.choices, &mut grid.offset_choices] {
            let Choices::Listed { lists, runs: shared, first } = choices else { continue };
            // One list for all rows stays where it is.
            if lists.len() > 1 && self.view.order.is_some() {
                let in_rows = runs.is_multiple_of((*shared).max(1)) && *first == 0;
                match self.permuted(lists, runs / (*shared).max(1), to).filter(|_| in_rows) {
                    Some(permuted) => *lists = permuted,
                    None => *choices = Choices::Fixed,
                }
            }
        }
    }
}

impl Weight for Viewed {
    fn format(&self) -> &'static str {
        self.stored.format()
    }

    fn name(&self) -> &str {
        &self.view.name
    }

    fn shape(&self) -> &[usize] {
        self.shape.as_ref().map_or(self.stored.shape(), |shape| shape)
    }

    fn geometry(&self) -> Geometry {
        let geometry = self.stored.geometry();
        Geometry {
            row_step: crate::edit::common_step(geometry.row_step, self.view.order.map_or(1, |order| order.step())),
            ..geometry
        }
    }

    fn is_transposed(&self) -> bool {
        self.stored.is_transposed()
    }

    fn value_dtype(&self) -> Dtype {
        self.stored.value_dtype()
    }

    fn is_plain(&self) -> bool {
        self.stored.is_plain()
    }

    /// No file has inputs as rows.
    fn has_family_order(&self) -> bool {
        false
    }

    fn moved_bytes(&self) -> u64 {
        // A copy in f32.
        if self.view.order.is_some() { 4 } else { 0 }
    }

    fn details(&self) -> String {
        self.stored.details()
    }

    fn parts(&self) -> &[Part] {
        self.stored.parts()
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        self.stored.part_rows(part, rows)
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        self.stored.decode(parts, rows, out);
        if self.view.added != 0.0 {
            out.iter_mut().for_each(|x| *x -= self.view.added);
        }
        if let Some(permuted) = self.permuted(out, self.cols(), To::Model) {
            out.iter_mut().zip(permuted).for_each(|(out, x)| *out = x);
        }
    }

    fn dots(&self, parts: &[&[u8]], rows: Range<usize>, x: &[f32], out: &mut [f32]) -> bool {
        if self.view.added != 0.0 {
            return false;
        }
        let Some(mut stored) = self.permuted(out, 1, To::File) else { return self.stored.dots(parts, rows, x, out) };
        if !self.stored.dots(parts, rows, x, &mut stored) {
            return false;
        }
        let sums = self.permuted(&stored, 1, To::Model).unwrap_or_default();
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
        true
    }

    fn reshaped(&self, rows: usize, cols: usize) -> Option<Arc<dyn Weight>> {
        if self.view.order.is_some() && cols != self.cols() {
            return None;
        }
        self.stored.reshaped(rows, cols).map(|stored| self.around(stored))
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        self.stored.on_grid().map(|_| self as _)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.stored.writer().map(|_| self as _)
    }

    fn view(&self) -> Option<&View> {
        Some(&self.view)
    }
}

impl Wrapper for Viewed {
    fn stored(&self) -> &Arc<dyn Weight> {
        &self.stored
    }

    fn around(&self, stored: Arc<dyn Weight>) -> Arc<dyn Weight> {
        Arc::new(Self { stored, view: self.view.clone(), shape: self.shape })
    }
}

impl OnGrid for Viewed {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let Some(on_grid) = self.stored.on_grid() else { return Grid::floats(self.value_dtype()) };
        let mut grid = on_grid.grid(parts, rows);
        self.turn(&mut grid, To::Model);
        grid
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let Some(on_grid) = self.stored.on_grid() else { return };
        let own = self.to_file(values);
        let moved = moved.map(|grid| {
            let mut grid = grid.clone();
            self.turn(&mut grid, To::File);
            grid
        });
        on_grid.store(parts, rows, own.as_deref().unwrap_or(values), moved.as_ref(), out);
    }
}

impl Writer for Viewed {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        wrapper::renewed(self, values, settings)
    }

    fn needs_survey(&self) -> bool {
        self.stored.writer().is_some_and(Writer::needs_survey)
    }

    fn survey(&self, rows: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        let own = self.to_file(values);
        if let Some(writer) = self.stored.writer() {
            writer.survey(rows, own.as_deref().unwrap_or(values), held);
        }
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        wrapper::settle(self, held, stored)
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let own = self.to_file(values);
        if let Some(writer) = self.stored.writer() {
            writer.encode(decided, rows, own.as_deref().unwrap_or(values), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::gguf::RowOrder;
    use crate::formats::plain::PlainWeight;
    use crate::simd::floats;

    fn viewed(shape: &[usize], head: Option<usize>, added: f32) -> Viewed {
        let stored = Arc::new(PlainWeight::new("blk.0.attn_q.weight", shape, Dtype::F32));
        let order = head.map(|head| RowOrder::Pairs { head });
        let view = View {
            name: "q".into(),
            stored: "blk.0.attn_q.weight".into(),
            order,
            added,
            is_row: false,
            padding: 0,
            weave: None,
        };
        Viewed::new(stored, view)
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; 4 * values.len()];
        floats::encode(Dtype::F32, values, &mut bytes);
        bytes
    }

    /// transformers' rotate_half pairs row i with i + d / 2, llama.cpp 2i with 2i + 1: the converter reshapes to (heads, 2, d / 2) and swaps the last two.
    #[test]
    fn rows_come_in_the_models_order_and_go_back() {
        let weight = viewed(&[12, 2], Some(6), 0.0);
        let model: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut file = Vec::new();
        for head in 0..2 {
            for pair in 0..3 {
                for half in 0..2 {
                    let row = head * 6 + half * 3 + pair;
                    file.extend_from_slice(&model[2 * row..2 * row + 2]);
                }
            }
        }
        let (stored, mut out) = (bytes(&file), vec![0.0; 24]);
        weight.decode(&[&stored], 0..12, &mut out);
        assert_eq!(out, model);
        let mut encoded = vec![Vec::new()];
        weight.encode(&[None], 0..12, &model, &mut encoded);
        assert_eq!(encoded[0], stored);
        let mut on_grid = vec![Vec::new()];
        weight.store(&[&stored], 0..12, &model, None, &mut on_grid);
        assert_eq!(on_grid, encoded);
        assert_eq!(weight.geometry(), Geometry { rows: 12, cols: 2, row_step: 6 });
        assert!(weight.reshaped(6, 4).is_none());
    }

    #[test]
    fn a_bias_is_permuted_too_and_a_norm_has_one_more() {
        let bias = viewed(&[4], Some(4), 0.0);
        let mut out = vec![0.0; 4];
        bias.decode(&[&bytes(&[0.0, 2.0, 1.0, 3.0])], 0..4, &mut out);
        assert_eq!(out, [0.0, 1.0, 2.0, 3.0]);
        let norm = viewed(&[2], None, 1.0);
        let mut out = vec![0.0; 2];
        norm.decode(&[&bytes(&[1.5, -0.25])], 0..2, &mut out);
        assert_eq!(out, [0.5, -1.25]);
        let mut encoded = vec![Vec::new()];
        norm.encode(&[None], 0..2, &out, &mut encoded);
        assert_eq!(encoded[0], bytes(&[1.5, -0.25]));
    }

    /// A grid follows its rows: values on it are those that are stored.
    #[test]
    fn a_grid_follows_its_rows() {
        let weight = viewed(&[8, 4], Some(4), 0.0);
        let grid = |scales: Vec<f32>| {
            let mut grid = Grid::scaled(super::super::Levels::Integers(-8, 7), 2, scales.clone(), Dtype::F32);
            let lists = (0..8).map(|row| vec![row as f32]).collect();
            grid.choices = Choices::Listed { lists, runs: 2, first: 0 };
            grid.offsets = scales;
            grid
        };
        let file: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let mut turned = grid(file.clone());
        weight.turn(&mut turned, To::Model);
        assert_eq!(turned.scales[..8], [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!(turned.offsets, turned.scales);
        let Choices::Listed { lists, .. } = &turned.choices else { panic!("a list") };
        assert_eq!(lists.concat(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        weight.turn(&mut turned, To::File);
        assert_eq!(turned.scales, file);
    }
}
