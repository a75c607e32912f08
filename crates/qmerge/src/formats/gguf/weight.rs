//! One weight in a type of ggml: its tensor, row after row of whole blocks.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Coder, Gguf};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::{Geometry, Grid, OnGrid, Part, Settings, Settled, Weight, Writer, grow, part};

/// One weight.
#[derive(Clone, Debug)]
pub(super) struct GgufWeight {
    format: &'static Gguf,
    parts: [Part; 1],
    rows: usize,
    cols: usize,
    importance: Option<Importance>,
}

/// How large the inputs of each column are. What it is shown as tells it from any other.
#[derive(Clone)]
struct Importance(Arc<[f32]>);

impl fmt::Debug for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hash = Sha256::new();
        self.0.iter().for_each(|x| hash.update(x.to_le_bytes()));
        write!(f, "Importance({:x?})", hash.finalize())
    }
}

impl GgufWeight {
    /// Rows of whole blocks: the caller has checked the shape.
    pub(super) fn new(format: &'static Gguf, name: &str, shape: &[usize]) -> Self {
        let (cols, leading) = shape.split_last().map_or((0, &[][..]), |(cols, leading)| (*cols, leading));
        let rows = leading.iter().product();
        Self { format, parts: [Part::new(name.to_owned(), format.dtype, shape.to_vec())], rows, cols, importance: None }
    }

    /// Bytes of a row.
    fn row(&self) -> u64 {
        self.bytes(self.cols) as u64
    }

    /// Bytes of so many elements in whole blocks.
    fn bytes(&self, elements: usize) -> usize {
        let (block, bytes) = self.format.dtype.block();
        elements / block as usize * bytes as usize
    }

    fn coder(&self) -> Option<&'static Coder> {
        self.format.kernels.coder.as_ref()
    }
}

impl Weight for GgufWeight {
    fn format(&self) -> &'static str {
        self.format.id
    }

    fn name(&self) -> &str {
        &self.parts[0].name
    }

    fn shape(&self) -> &[usize] {
        self.parts[0].shape.as_deref().unwrap_or_default()
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.rows, cols: self.cols, row_step: 1 }
    }

    fn value_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn details(&self) -> String {
        format!("block {}", self.format.block())
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        (part == 0).then(|| rows.start as u64 * self.row()..rows.end as u64 * self.row())
    }

    fn decode(&self, parts: &[&[u8]], _: Range<usize>, out: &mut [f32]) {
        (self.format.kernels.decode)(part(parts, 0), out);
    }

    fn reshaped(&self, rows: usize, cols: usize) -> Option<Arc<dyn Weight>> {
        let fits = rows.checked_mul(cols) == Some(self.rows * self.cols) && cols.is_multiple_of(self.format.block());
        fits.then(|| Arc::new(Self { rows, cols, ..self.clone() }) as _)
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        self.coder().map(|_| self as _)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.coder().map(|_| self as _)
    }
}

impl OnGrid for GgufWeight {
    fn grid(&self, parts: &[&[u8]], _: Range<usize>) -> Grid {
        // Types that are only read are not on a grid.
        self.coder().map_or_else(|| Grid::floats(Dtype::F32), |coder| (coder.grid)(part(parts, 0)))
    }

    fn store(&self, parts: &[&[u8]], _: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        if let (Some(coder), [out, ..]) = (self.coder(), out) {
            (coder.store)(part(parts, 0), values, moved, grow(out, self.bytes(values.len())));
        }
    }
}

impl Writer for GgufWeight {
    fn weighted(&self, importance: &Arc<[f32]>) -> Option<Arc<dyn Weight>> {
        let fits = importance.len() == self.cols;
        fits.then(|| Arc::new(Self { importance: Some(Importance(Arc::clone(importance))), ..self.clone() }) as _)
    }

    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn settle(&self, _: &[f32], _: &[Option<Vec<u8>>]) -> Settled {
        Settled { weight: Arc::new(self.clone()), parts: vec![None] }
    }

    fn encode(&self, _: &[Option<Vec<u8>>], _: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        if let (Some(coder), [out, ..]) = (self.coder(), out) {
            let importance = self.importance.as_ref().map(|importance| &*importance.0);
            (coder.encode)(values, importance, grow(out, self.bytes(values.len())));
        }
    }
}
