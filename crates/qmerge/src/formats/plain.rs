//! Plain tensors: f32, f16, bf16. Little endian, row-major, rounded to nearest even.

use std::ops::Range;
use std::sync::Arc;

use super::{Claim, Format, Geometry, Grid, Module, OnGrid, Part, Settings, Settled, Weight, Writer, grow, part};
use serde_json::Value;

use crate::arch::Role;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::open::{Entry, ModelConfig};
use crate::simd::dots::bf16_dots;
use crate::simd::floats;

/// One of the three plain types as a format.
#[derive(Debug)]
pub(super) struct Plain {
    id: &'static str,
    about: &'static str,
    aliases: &'static [&'static str],
    dtype: Dtype,
}

/// 32-bit floats.
pub(super) static F32: Plain =
    Plain { id: "f32", about: "plain 32-bit floats", aliases: &["fp32", "float32"], dtype: Dtype::F32 };
/// 16-bit IEEE floats.
pub(super) static F16: Plain =
    Plain { id: "f16", about: "plain 16-bit IEEE floats", aliases: &["fp16", "float16", "half"], dtype: Dtype::F16 };
/// bfloat16.
pub(super) static BF16: Plain =
    Plain { id: "bf16", about: "plain bfloat16", aliases: &["bfloat16", "merged_16bit"], dtype: Dtype::BF16 };

pub(super) fn format_of(dtype: Dtype) -> &'static Plain {
    match dtype {
        Dtype::F16 => &F16,
        Dtype::BF16 => &BF16,
        _ => &F32,
    }
}

impl Format for Plain {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let own = module.free().map(|(_, entry)| entry).filter(|entry| entry.dtype == self.dtype);
        let claim = |entry: &Entry| Claim {
            weight: Arc::new(PlainWeight::new(&entry.name, &entry.shape, entry.dtype)),
            entries: vec![entry.clone()],
        };
        Ok(own.map(claim).collect())
    }

    fn create(&self, name: &str, shape: &[usize], _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(PlainWeight::new(name, shape, self.dtype)))
    }

    fn quantizes(&self) -> bool {
        false
    }

    fn takes(&self, _: Role, _: &[usize]) -> bool {
        true
    }

    fn describe(&self, config: &mut ModelConfig, _: &Settings, _: Option<&[String]>) -> Result<()> {
        config.remove_everywhere("quantization_config");
        for key in ["dtype", "torch_dtype"] {
            if config.find(key).is_some() {
                config.set_everywhere(key, &Value::from(self.dtype.torch_name()));
            }
        }
        Ok(())
    }
}

/// A plain tensor of any number of dimensions.
#[derive(Clone, Debug)]
pub(crate) struct PlainWeight {
    dtype: Dtype,
    parts: [Part; 1],
    rows: usize,
    cols: usize,
}

impl PlainWeight {
    pub(crate) fn new(name: &str, shape: &[usize], dtype: Dtype) -> Self {
        let (rows, cols) = match shape {
            [] => (1, 1),
            [n] => (*n, 1),
            [leading @ .., last] => (leading.iter().product(), *last),
        };
        Self { dtype, parts: [Part::new(name.to_owned(), dtype, shape.to_vec())], rows, cols }
    }

    fn width(&self) -> usize {
        self.dtype.block().1 as usize
    }
}

impl Weight for PlainWeight {
    fn format(&self) -> &'static str {
        format_of(self.dtype).id
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
        self.dtype
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, _: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        let row = (self.cols * self.width()) as u64;
        Some(rows.start as u64 * row..rows.end as u64 * row)
    }

    fn decode(&self, parts: &[&[u8]], _: Range<usize>, out: &mut [f32]) {
        floats::decode(self.dtype, part(parts, 0), out);
    }

    fn dots(&self, parts: &[&[u8]], _: Range<usize>, x: &[f32], out: &mut [f32]) -> bool {
        if self.dtype != Dtype::BF16 || x.is_empty() {
            return false;
        }
        bf16_dots(part(parts, 0), x, out);
        true
    }

    fn reshaped(&self, rows: usize, cols: usize) -> Option<Arc<dyn Weight>> {
        (rows.checked_mul(cols) == Some(self.rows * self.cols))
            .then(|| Arc::new(Self { rows, cols, ..self.clone() }) as _)
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl OnGrid for PlainWeight {
    fn grid(&self, _: &[&[u8]], _: Range<usize>) -> Grid {
        Grid::floats(self.dtype)
    }

    fn store(&self, _: &[&[u8]], rows: Range<usize>, values: &[f32], _: Option<&Grid>, out: &mut [Vec<u8>]) {
        self.encode(&[], rows, values, out);
    }
}

impl Writer for PlainWeight {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn settle(&self, _: &[f32], _: &[Option<Vec<u8>>]) -> Settled {
        Settled { weight: Arc::new(self.clone()), parts: vec![None] }
    }

    fn encode(&self, _: &[Option<Vec<u8>>], _: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        if let [out, ..] = out {
            floats::encode(self.dtype, values, grow(out, values.len() * self.width()));
        }
    }
}
