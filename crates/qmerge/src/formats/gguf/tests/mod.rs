//! Types of ggml: against ggml, against their own grids, and under every rounding method.

mod golden;
mod grids;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::*;

/// Tensors of a file of test data, as bytes.
fn golden(name: &str) -> HashMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/gguf").join(name);
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    crate::formats::floats(bytes).collect()
}

/// Bits, where any NaN is the same.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
}

fn decoded(format: &Gguf, bytes: &[u8]) -> Vec<f32> {
    let (elements, size) = format.dtype.block();
    let mut out = vec![f32::NAN; bytes.len() / size as usize * elements as usize];
    (format.kernels.decode)(bytes, &mut out);
    out
}

/// Blocks with fresh scales, with the importance of columns or without.
fn encoded(format: &Gguf, values: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let (elements, size) = format.dtype.block();
    let mut out = vec![0xaa; values.len() / elements as usize * size as usize];
    (format.kernels.coder.as_ref().unwrap().encode)(values, importance, &mut out);
    out
}

/// Types that can be written.
fn written() -> impl Iterator<Item = &'static Gguf> {
    TYPES.iter().copied().filter(|format| format.kernels.coder.is_some())
}

/// Numbers between −1 and 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A weight of a type.
fn weight(format: &Gguf, rows: usize, cols: usize) -> Arc<dyn Weight> {
    format.create("w.weight", &[rows, cols], Dtype::F32, &Settings::default()).unwrap()
}

/// 2^exponent.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// A weight that is made anew is made by its format's name.
#[test]
fn names_of_formats_are_names_of_one() {
    let formats = crate::formats::FORMATS;
    let names: std::collections::BTreeSet<&str> = formats.iter().map(|format| format.id()).collect();
    assert_eq!(names.len(), formats.len());
}
