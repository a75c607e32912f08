//! The types of ggml, which the tensors of a GGUF file have: blocks of 32 to 256 elements of a row, with scales of their own inside.
//!
//! A weight is one part, its tensor, and blocks do not cross rows, so chunks are any rows. One file per family of types has how blocks are packed; `block.rs`
//! has what all share. Arithmetic is ggml's, in f32, without contraction of products and sums, as its builds for x86-64 have it.

mod block;
mod fit;
mod fp4;
mod iq;
mod iq4;
mod k;
mod legacy;
mod packing;
mod ternary;
#[cfg(test)]
mod tests;
mod weight;

use std::fmt;
use std::sync::Arc;

use super::{Claim, Format, Grid, Module, Settings, Weight, grow};
use crate::arch::Role;
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::open::{Entry, byte_size};
use crate::simd::versions;
use weight::GgufWeight;

/// One type as a format.
pub(super) struct Gguf {
    id: &'static str,
    about: &'static str,
    dtype: Dtype,
    kernels: &'static Kernels,
}

/// What it is called tells it from any other, to whom goes on with a merge too; where its kernels lie changes with each process.
impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// What a type does with its blocks.
struct Kernels {
    /// Whole blocks into as many elements.
    decode: fn(&[u8], &mut [f32]),
    /// `None` for types that are only read.
    coder: Option<Coder>,
}

/// How other values are stored.
struct Coder {
    /// Whole rows with fresh scales; with the importance of each column, where that is known.
    encode: fn(&[f32], Option<&[f32]>, &mut [u8]),
    /// The grid of whole blocks.
    grid: fn(&[u8]) -> Grid,
    /// Values under the scales of stored blocks, or under others of their grid.
    store: Store,
}

/// Stored blocks, values, another grid of theirs, and where it all goes.
type Store = fn(&[u8], &[f32], Option<&Grid>, &mut [u8]);

/// The kernels of a type, at every vector level.
macro_rules! kernels {
    ($type:ty) => {{
        versions! { fn decode(bytes: &[u8], out: &mut [f32]) = block::decode::<$type, _, _, _>; }
        versions! {
            fn encode(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) = block::encode::<$type, _, _, _>;
        }
        versions! {
            fn store(bytes: &[u8], values: &[f32], moved: Option<&Grid>, out: &mut [u8]) = block::store::<$type, _, _, _>;
        }
        &Kernels { decode, coder: Some(Coder { encode, grid: block::grid::<$type, _, _, _>, store }) }
    }};
}

/// The kernel of a type that is only read.
macro_rules! read {
    ($body:path) => {{
        versions! { fn decode(bytes: &[u8], out: &mut [f32]) = $body; }
        &Kernels { decode, coder: None }
    }};
}

macro_rules! types {
    ($($name:ident, $id:literal, $dtype:ident, $about:literal, $kernels:expr;)*) => {
        $(
            #[doc = $about]
            pub(super) static $name: Gguf = Gguf { id: $id, about: $about, dtype: Dtype::$dtype, kernels: $kernels };
        )*

        /// Every type.
        static TYPES: &[&Gguf] = &[$(&$name),*];
    };
}

types! {
    Q4_0, "q4_0", Q4_0, "GGUF Q4_0, 4 bits, a scale for 32 values", kernels!(legacy::Q4_0);
    Q4_1, "q4_1", Q4_1, "GGUF Q4_1, 4 bits, a scale and a minimum for 32 values", kernels!(legacy::Q4_1);
    Q5_0, "q5_0", Q5_0, "GGUF Q5_0, 5 bits, a scale for 32 values", kernels!(legacy::Q5_0);
    Q5_1, "q5_1", Q5_1, "GGUF Q5_1, 5 bits, a scale and a minimum for 32 values", kernels!(legacy::Q5_1);
    Q8_0, "q8_0", Q8_0, "GGUF Q8_0, 8 bits, a scale for 32 values", kernels!(legacy::Q8_0);
    Q2_K, "q2_k", Q2K, "GGUF Q2_K, 2 bits, scales and minima of 4 bits", kernels!(k::Q2K);
    Q3_K, "q3_k", Q3K, "GGUF Q3_K, 3 bits, scales of 6 bits", kernels!(k::Q3K);
    Q4_K, "q4_k", Q4K, "GGUF Q4_K, 4 bits, scales and minima of 6 bits", kernels!(k::Q4K);
    Q5_K, "q5_k", Q5K, "GGUF Q5_K, 5 bits, scales and minima of 6 bits", kernels!(k::Q5K);
    Q6_K, "q6_k", Q6K, "GGUF Q6_K, 6 bits, scales of 8 bits", kernels!(k::Q6K);
    IQ4_NL, "iq4_nl", IQ4NL, "GGUF IQ4_NL, 16 uneven levels, a scale for 32 values", kernels!(iq4::Iq4Nl);
    IQ4_XS, "iq4_xs", IQ4XS, "GGUF IQ4_XS, 16 uneven levels, scales of 6 bits", kernels!(iq4::Iq4Xs);
    MXFP4, "gguf-mxfp4", MXFP4, "GGUF MXFP4, 4-bit floats, a power of two for 32 values", kernels!(fp4::Mxfp4);
    NVFP4, "gguf-nvfp4", NVFP4, "GGUF NVFP4, 4-bit floats, an 8-bit float for 16 values", kernels!(fp4::Nvfp4);
    TQ1_0, "tq1_0", TQ1_0, "GGUF TQ1_0, three levels, a scale for 256 values", kernels!(ternary::TQ1_0);
    TQ2_0, "tq2_0", TQ2_0, "GGUF TQ2_0, three levels in 2 bits, a scale for 256 values", kernels!(ternary::TQ2_0);
    Q1_0, "q1_0", Q1_0, "GGUF Q1_0, a sign, and a scale for 128 values", kernels!(ternary::Q1_0);
    Q2_0, "q2_0", Q2_0, "GGUF Q2_0, 2 bits, a scale for 64 values", kernels!(ternary::Q2_0);
    IQ3_S, "iq3_s", IQ3S, "GGUF IQ3_S, read only", read!(iq::iq3_s);
    IQ3_XXS, "iq3_xxs", IQ3XXS, "GGUF IQ3_XXS, read only", read!(iq::iq3_xxs);
    IQ2_S, "iq2_s", IQ2S, "GGUF IQ2_S, read only", read!(iq::iq2_s);
    IQ2_XS, "iq2_xs", IQ2XS, "GGUF IQ2_XS, read only", read!(iq::iq2_xs);
    IQ2_XXS, "iq2_xxs", IQ2XXS, "GGUF IQ2_XXS, read only", read!(iq::iq2_xxs);
    IQ1_M, "iq1_m", IQ1M, "GGUF IQ1_M, read only", read!(iq::iq1_m);
    IQ1_S, "iq1_s", IQ1S, "GGUF IQ1_S, read only", read!(iq::iq1_s);
}

impl Gguf {
    /// Elements of a block.
    fn block(&self) -> usize {
        self.dtype.block().0 as usize
    }
}

impl Format for Gguf {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let own = module.free().map(|(_, entry)| entry).filter(|entry| entry.dtype == self.dtype);
        let claim = |entry: &Entry| Claim {
            weight: Arc::new(GgufWeight::new(of(self.dtype), &entry.name, &entry.shape)),
            entries: vec![entry.clone()],
        };
        Ok(own.map(claim).collect())
    }

    fn create(&self, name: &str, shape: &[usize], _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        if self.kernels.coder.is_none() {
            return Err(unsupported(format!("{} can be read but not written", self.id))
                .in_tensor(name)
                .with_hint(OTHER_TYPES));
        }
        let (block, cols) = (self.block(), shape.last().copied().unwrap_or(1));
        if shape.is_empty() || !cols.is_multiple_of(block) {
            return Err(
                mismatch(format!("{} has blocks of {block} values, but a row has {cols}", self.id)).in_tensor(name)
            );
        }
        if byte_size(self.dtype, shape).is_none() {
            return Err(mismatch(format!("shape {shape:?} is too large")).in_tensor(name));
        }
        Ok(Arc::new(GgufWeight::new(of(self.dtype), name, shape)))
    }

    /// Rows have to be whole blocks, of a type that can be written.
    fn takes(&self, role: Role, shape: &[usize]) -> bool {
        role == Role::Linear
            && self.kernels.coder.is_some()
            && shape.len() >= 2
            && shape.last().is_some_and(|cols| cols.is_multiple_of(self.block()))
    }

    /// Of the K-quants and IQ4_XS each block has lists of its own: of 256 scales for 256 values, of 64, or two of them.
    fn listed_bytes(&self) -> u64 {
        match self.dtype {
            Dtype::Q6K => 5,
            Dtype::Q4K | Dtype::Q5K => 3,
            Dtype::Q2K | Dtype::Q3K | Dtype::IQ4XS => 2,
            _ => 0,
        }
    }

    fn is_made(&self) -> bool {
        false
    }

    fn is_of_gguf(&self) -> bool {
        true
    }

    fn is_written(&self) -> bool {
        self.kernels.coder.is_some()
    }
}

/// What to do where a file has types that are only read.
pub(crate) const OTHER_TYPES: &str = "--promote q4_k, or auto, gives such weights and what shares their tensors a type that is written, and leaves the others; --to, as --to q2_k, gives all of them one; or merge into the checkpoint that it was made from";

/// A row of a type, for fuzzing.
#[cfg(feature = "internals")]
pub(crate) fn row_of(id: &str, cols: usize) -> Option<Arc<dyn Weight>> {
    let format = TYPES.iter().find(|format| format.id == id)?;
    Some(Arc::new(GgufWeight::new(format, "w", &[1, cols])))
}

/// The format of an element type. Only called with those of `TYPES`.
fn of(dtype: Dtype) -> &'static Gguf {
    TYPES.iter().copied().find(|format| format.dtype == dtype).unwrap_or(&Q8_0)
}

/// Encodes whole rows of `importance.len()` values with fresh scales, as ggml does it with an importance matrix: what weighs an error is how large the inputs of
/// its column are (their mean square: `in_sum2 / counts` of llama.cpp's file). Appends to `out`; false, and nothing done, where the type is only read or rows are not whole blocks.
/// Q8_0, the 4-bit floats and the types of few levels take no account of it. Without an importance matrix there is [`Writer::encode`](super::Writer::encode), which chooses otherwise even
/// where all columns count the same.
#[doc(hidden)]
pub fn encode_weighted(dtype: Dtype, values: &[f32], importance: &[f32], out: &mut Vec<u8>) -> bool {
    let format = TYPES.iter().find(|format| format.dtype == dtype);
    let Some((format, coder)) = format.and_then(|format| Some((format, format.kernels.coder.as_ref()?))) else {
        return false;
    };
    let (elements, bytes) = format.dtype.block();
    let cols = importance.len();
    let fits = cols > 0 && cols.is_multiple_of(elements as usize) && values.len().is_multiple_of(cols);
    if fits {
        (coder.encode)(values, Some(importance), grow(out, values.len() / elements as usize * bytes as usize));
    }
    fits
}
