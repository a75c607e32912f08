//! A linear layer: `y = W x + b`, with W decoded while it is used, and adapters beside it.

mod given;
mod stack;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use qmerge::arch::leaf_in;
use qmerge::edit::{Applied, Aside, Edit, Side};
use qmerge::edited::Edited;
use qmerge::error::Result;
use qmerge::simd::matmul::{FEW, HEIGHT, matmul};
use rayon::prelude::*;

pub use given::{Input, Manner, Precision, Unwatched, Watch};
pub use stack::Stack;

use crate::tensors::Tensors;

/// Elements that are decoded at a time, which stay in a second-level cache.
const CHUNK: usize = 1 << 16;
/// Rows that are decoded at a time for many columns: each then reads the columns, which no cache holds, once.
const ROWS: usize = 16 * HEIGHT;

thread_local! {
    /// A worker's decoded rows, before and after the edits, or rows of an adapter's factor: used again for the next chunk, of this layer or another, since fresh
    /// memory costs more than decoding into it.
    static DECODED: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A linear layer, or some of its outputs.
#[derive(Debug)]
pub struct Linear<'a> {
    name: String,
    weight: Arc<Edited<'a>>,
    /// Bytes that holding this layer takes: of a stack, all are its first matrix's.
    bytes: u64,
    /// The weight's rows that are this layer's outputs (its inputs, where it is transposed).
    rows: Range<usize>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    /// Stored (in, out).
    transposed: bool,
    /// Adapters act on activations; else on decoded rows, which is the same up to the rounding of sums.
    apart: bool,
}

impl<'a> Linear<'a> {
    /// The layer at a module path, with its bias if it has one.
    pub fn new(tensors: &Tensors<'a>, path: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let weight = tensors.get(&format!("{path}.weight"))?;
        let bias = tensors.vector(&format!("{path}.bias"), outputs)?;
        Self::from_weight(tensors, path, weight, outputs, inputs).map(|linear| Self { bias, ..linear })
    }

    /// A layer without a bias from its weight.
    pub fn from_weight(
        tensors: &Tensors<'a>,
        path: &str,
        weight: Edited<'a>,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self> {
        let geometry = weight.base().claim().weight.geometry();
        // Conv1D is stored (in, out) where it lies as the family has it; others say for themselves.
        let stored = &weight.base().claim().weight;
        let conv1d = leaf_in(path, tensors.arch().transposed);
        let transposed = stored.is_transposed() || conv1d && stored.has_family_order();
        let want = if transposed { (inputs, outputs) } else { (outputs, inputs) };
        if (geometry.rows, geometry.cols) != want {
            let shape = weight.base().claim().weight.shape();
            return Err(tensors.misfit(
                weight.base().claim().weight.name(),
                format!("shape {shape:?}, but the configuration wants {} × {}", want.0, want.1),
            ));
        }
        // Sums stand beside each other, and maps act one after the other; both at once would have to act on the weight.
        let is_apart = |edits: &[Edit]| {
            edits.iter().all(|edit| edit.aside(geometry.rows).is_some())
                && (edits.iter().all(Edit::is_additive) || !edits.iter().any(Edit::is_additive))
        };
        let apart = !transposed && weight.edits().is_some_and(is_apart);
        let rows = 0..geometry.rows;
        let (name, bytes, weight) = (path.to_owned(), weight.bytes(), Arc::new(weight));
        Ok(Self { name, weight, bytes, rows, bias: None, inputs, outputs, transposed, apart })
    }

    /// Module path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The weight, with its edits.
    pub(crate) fn weight(&self) -> &Edited<'a> {
        &self.weight
    }

    /// Shows `watch` what some layers are given.
    pub(crate) fn show(linears: &[Self], x: &Input<'_>, watch: &mut dyn Watch) -> Result<()> {
        let paths: Vec<&str> = linears.iter().map(Self::name).collect();
        watch.input(&paths, x)
    }

    /// Values of the layer's matrix.
    pub fn values(&self) -> usize {
        self.inputs * self.outputs
    }

    /// Bytes as stored.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds the stored bytes in memory.
    pub fn hold(&mut self) -> Result<()> {
        if self.bytes == 0 { Ok(()) } else { self.weight.hold().map_err(|error| error.in_tensor(&self.name)) }
    }

    /// `W x + b`: (outputs, tokens).
    pub fn forward(&self, x: &Input<'_>) -> Result<Vec<f32>> {
        let mut y = vec![0.0; self.outputs * x.tokens()];
        self.forward_into(x, &mut y)?;
        Ok(y)
    }

    /// The same into `y`, which holds zeros.
    pub fn forward_into(&self, x: &Input<'_>, y: &mut [f32]) -> Result<()> {
        let (tokens, strength) = (x.tokens(), x.manner.strength);
        let apart = self.weight.edits().unwrap_or_default().iter().filter(|_| self.apart);
        let asides: Vec<Aside<'_>> = apart.filter_map(|edit| edit.aside(self.rows.end)).collect();
        let mut turned = Vec::new();
        let other;
        // W · R₁ · R₂ is given R₁ · (R₂ · x): the last edit acts first.
        for aside in asides.iter().rev() {
            if let Aside::Map(map, Side::Inputs) = aside {
                if turned.is_empty() {
                    turned.extend_from_slice(x.values);
                }
                map.forward(&mut turned, tokens);
            }
        }
        strengthen(&mut turned, x.values, strength);
        let x = if turned.is_empty() {
            x
        } else {
            other = x.like(&turned, self.inputs);
            &other
        };
        let done = if self.transposed { self.transposed(x, y) } else { self.straight(x, y) };
        done.map_err(|error| error.in_tensor(&self.name))?;
        let mut before = Vec::new();
        for aside in &asides {
            match aside {
                Aside::Product(product) => add_product(product, x, y),
                Aside::Delta(_) if strength == 0.0 => {}
                Aside::Delta(delta) => {
                    scale(y, 1.0 / strength);
                    delta.forward(x.values, tokens, y);
                    scale(y, strength);
                }
                Aside::Map(map, Side::Outputs) => {
                    if strength != 1.0 && before.is_empty() {
                        before.extend_from_slice(y);
                    }
                    map.forward(y, tokens);
                }
                Aside::Map(_, Side::Inputs) => {}
            }
        }
        if !before.is_empty() {
            strengthen(y, &before, strength);
        }
        if let Some(bias) = &self.bias {
            for (y, bias) in y.chunks_exact_mut(tokens.max(1)).zip(bias) {
                y.iter_mut().for_each(|y| *y += bias);
            }
        }
        Ok(())
    }

    /// True if rows are used as they are stored.
    fn undisturbed(&self) -> bool {
        self.apart || !self.weight.is_edited()
    }

    fn decode(&self, rows: &Range<usize>, base: &mut Vec<f32>, values: &mut Vec<f32>, strength: f32) -> Result<()> {
        if self.undisturbed() {
            return self.weight.base().rows(rows, values);
        }
        self.weight.rows(rows, base, values)?;
        // Rows that are replaced, as those of trained tokens, are not made stronger.
        if self.weight.edits().unwrap_or_default().iter().all(|edit| edit.is_additive() || edit.side().is_some()) {
            strengthen(values, base, strength);
        }
        Ok(())
    }

    fn straight(&self, x: &Input<'_>, y: &mut [f32]) -> Result<()> {
        let step = self.weight.row_step();
        // Enough chunks for all threads, of whole steps, which stay in a cache: their bytes too, which may have to be read from the file.
        let share = self.outputs.div_ceil(4 * rayon::current_num_threads());
        let most = if x.manner.precision == Precision::Full && x.tokens() <= FEW {
            share.min(CHUNK / self.inputs.max(1))
        } else {
            share.min(ROWS).next_multiple_of(HEIGHT)
        };
        let rows = most.max(1).next_multiple_of(step);
        y.par_chunks_mut((rows * x.tokens()).max(1)).enumerate().try_for_each(|(number, y)| {
            let first = self.rows.start + number * rows;
            let rows = first..(first + rows).min(self.rows.end);
            let one = x.tokens() == 1 && x.manner.precision == Precision::Full;
            if one && self.undisturbed() && self.weight.base().dots(&rows, x.values, y)? {
                return Ok(());
            }
            // Nothing below waits for other workers, so none comes by here with the cell taken.
            DECODED.with_borrow_mut(|(base, values)| {
                self.decode(&rows, base, values, x.manner.strength)?;
                matmul(values, &x.columns, true, y);
                Ok(())
            })
        })
    }

    /// Rows of the weight are inputs: some are decoded, turned over, and their share is added to all outputs.
    fn transposed(&self, x: &Input<'_>, y: &mut [f32]) -> Result<()> {
        let tokens = x.tokens();
        let (mut base, mut values, mut turned) = (Vec::new(), Vec::new(), Vec::new());
        let some = (4 * CHUNK / self.outputs.max(1)).max(1).next_multiple_of(self.weight.row_step());
        for start in self.rows.clone().step_by(some) {
            let rows = start..(start + some).min(self.rows.end);
            self.decode(&rows, &mut base, &mut values, x.manner.strength)?;
            let depth = rows.len();
            turned.resize(values.len(), 0.0);
            for (k, row) in values.chunks_exact(self.outputs).enumerate() {
                for (o, &value) in row.iter().enumerate() {
                    turned[o * depth + k] = value;
                }
            }
            let place = rows.start - self.rows.start..rows.end - self.rows.start;
            let columns = x.manner.precision.pack(&x.values[place.start * tokens..place.end * tokens], depth, tokens);
            let some = self.outputs.div_ceil(4 * rayon::current_num_threads()).max(1);
            y.par_chunks_mut((some * tokens).max(1))
                .zip(turned.par_chunks(some * depth))
                .for_each(|(y, turned)| matmul(turned, &columns, true, y));
        }
        Ok(())
    }

    /// Rows of the weight by number, each a column of the result (inputs, numbers): an embedding's lookup.
    pub fn lookup(&self, numbers: &[u32]) -> Result<Vec<f32>> {
        let tokens = numbers.len();
        let (mut base, mut values) = (Vec::new(), Vec::new());
        let mut x = vec![0.0; self.inputs * tokens];
        for (t, &number) in numbers.iter().enumerate() {
            let row = number as usize;
            self.weight.rows(&(row..row + 1), &mut base, &mut values).map_err(|error| error.in_tensor(&self.name))?;
            for (i, &value) in values.iter().enumerate() {
                x[i * tokens + t] = value;
            }
        }
        Ok(x)
    }
}

/// What an adapter of another strength makes of the values `before` it, where one as it is makes `values`.
fn strengthen(values: &mut [f32], before: &[f32], strength: f32) {
    if strength != 1.0 {
        values.iter_mut().zip(before).for_each(|(value, before)| *value = before + strength * (*value - before));
    }
}

fn scale(values: &mut [f32], factor: f32) {
    if factor != 1.0 {
        values.iter_mut().for_each(|value| *value *= factor);
    }
}

/// `y += strength · scale · left · right · x`.
fn add_product(product: &Applied<'_>, x: &Input<'_>, y: &mut [f32]) {
    let tokens = x.tokens();
    let mut inner = vec![0.0; product.rank * tokens];
    inner.par_chunks_mut((HEIGHT * tokens).max(1)).enumerate().for_each(|(number, inner)| {
        let first = number * HEIGHT;
        // Nothing below waits for other workers, so none comes by here with the cell taken.
        DECODED.with_borrow_mut(|(_, right)| {
            product.right(first..(first + HEIGHT).min(product.rank), right);
            matmul(right, &x.columns, false, inner);
        });
    });
    scale(&mut inner, x.manner.strength * product.scale);
    let inner = x.manner.precision.pack(&inner, product.rank, tokens);
    let left = product.left.par_chunks((ROWS * product.rank).max(1));
    y.par_chunks_mut((ROWS * tokens).max(1)).zip(left).for_each(|(y, left)| matmul(left, &inner, true, y));
}
