//! A weight as it is stored: what it is read by, and how other values are put in its place.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::{Grid, Order, Settings};
use crate::arch::gguf::View;
use crate::dtype::Dtype;
use crate::error::Result;

/// A weight seen as a matrix in the order it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows; all leading dimensions taken together.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
    /// Chunks start at multiples of this many rows (the last chunk may be shorter).
    pub row_step: usize,
}

impl Geometry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// One stored tensor of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Full tensor name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; `None` where the length is known only once the weight is encoded (a JSON state).
    pub shape: Option<Vec<usize>>,
    /// Bytes, or the most it can take where the length is not known.
    pub bytes: u64,
}

impl Part {
    pub(crate) fn new(name: String, dtype: Dtype, shape: Vec<usize>) -> Self {
        let bytes = crate::open::byte_size(dtype, &shape).unwrap_or(u64::MAX);
        Self { name, dtype, shape: Some(shape), bytes }
    }
}

/// One weight in one storage format, as it is read.
pub trait Weight: Debug + Send + Sync {
    /// The format's id.
    fn format(&self) -> &'static str;

    /// The name that the model has for it (`….q_proj.weight`), whatever its stored tensors are called.
    fn name(&self) -> &str;

    /// Logical dimensions, as the model sees them.
    fn shape(&self) -> &[usize];

    /// The matrix view that chunks are cut from.
    fn geometry(&self) -> Geometry;

    /// True if the stored rows are the layer's inputs.
    fn is_transposed(&self) -> bool {
        false
    }

    /// Type that decoded values are rounded to.
    fn value_dtype(&self) -> Dtype;

    /// True if values are stored as they are, not as codes.
    fn is_plain(&self) -> bool {
        false
    }

    /// True if a matrix or a stack of them lies as its family has it where it is plain, be that with inputs as rows: codes do not, nor does what another container has.
    fn has_family_order(&self) -> bool {
        self.is_plain()
    }

    /// Bytes per value that stand beside a chunk while its values are brought into another order.
    fn moved_bytes(&self) -> u64 {
        0
    }

    /// Settings in words, for `inspect` ("block 64, double quantized").
    fn details(&self) -> String {
        String::new()
    }

    /// The stored tensors, lead first.
    fn parts(&self) -> &[Part];

    /// The bytes of a part that belong to `rows`; `None` if the part belongs to the weight as a whole.
    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>>;

    /// Decodes `rows` into `out` (row-major, `rows.len() · cols`). `parts` holds, per part, the bytes of these rows, or
    /// all bytes of a part that is not cut by rows.
    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]);

    /// `out += rows · x` for one column `x`, straight from the stored bytes, with the bits of [`Weight::decode`] followed by
    /// [`matmul`](crate::simd::matmul::matmul). False, and nothing done, where the format has no kernel for it.
    fn dots(&self, _parts: &[&[u8]], _rows: Range<usize>, _x: &[f32], _out: &mut [f32]) -> bool {
        false
    }

    /// The same bytes seen with other rows; `None` where the format's blocks forbid it.
    fn reshaped(&self, _rows: usize, _cols: usize) -> Option<Arc<dyn Weight>> {
        None
    }

    /// How other values are stored under the scales that it has; `None` for a type that is only read.
    fn on_grid(&self) -> Option<&dyn OnGrid> {
        None
    }

    /// How values are stored with fresh scales; `None` for a type that is only read.
    fn writer(&self) -> Option<&dyn Writer> {
        None
    }

    /// What the file has in another way than the model, where it is GGUF.
    #[doc(hidden)]
    fn view(&self) -> Option<&View> {
        None
    }
}

/// Values under the scales that are stored.
#[doc(hidden)]
pub trait OnGrid {
    /// The grid of stored `rows` under the stored scales.
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid;

    /// Where scales are not shared by runs of stored rows: an order in which runs of outputs' rows do, and the grid of the whole weight in it.
    fn ordered(&self, _parts: &[&[u8]]) -> Option<(Order, Grid)> {
        None
    }

    /// Stores the level nearest to each value of stored `rows`, under the scales in `parts` or those of `moved`: the grid of the same rows, or of all in
    /// the order of [`OnGrid::ordered`], with others of its choices. Appends to every part that is cut by rows. A part of the whole weight stays what it is, and its buffer empty, unless `moved` has
    /// all rows and changes it.
    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]);
}

/// Values under fresh scales, as the format's reference quantizer chooses them.
#[doc(hidden)]
pub trait Writer {
    /// The weight for values of type `values`, as the reference library would make it of them under the same block size and, of the
    /// settings, on as many threads.
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>>;

    /// The same, where an error in a column counts as much as its inputs are large: by column, their mean square. `None` for a format that has no such encoder.
    fn weighted(&self, _importance: &Arc<[f32]>) -> Option<Arc<dyn Weight>> {
        None
    }

    /// True if scales depend on the whole weight: then every chunk goes through [`Writer::survey`] first.
    fn needs_survey(&self) -> bool {
        false
    }

    /// Appends to `held` what scales need of these rows (their block maxima).
    fn survey(&self, _rows: Range<usize>, _values: &[f32], _held: &mut Vec<f32>) {}

    /// Decides the scales from all that [`Writer::survey`] held, in row order. `stored` are the parts of the whole weight that it was read from, by part, where
    /// it was stored in the same format: what a rounding does not choose anew (GPTQ's `g_idx`) is taken from there.
    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled;

    /// Encodes `rows` and appends to each part that `settle` left open; `decided` are the parts that it returned. Called on the weight that it returned.
    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]);
}

/// A weight whose scales are decided: what [`Writer::settle`] returns.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Settled {
    /// The weight to encode and decode with.
    pub weight: Arc<dyn Weight>,
    /// Bytes of the parts that are complete now, by part; `None` for parts that [`Writer::encode`] fills.
    pub parts: Vec<Option<Vec<u8>>>,
}
