//! Against bytes and values of ggml.

use std::collections::HashMap;
use std::path::Path;

use super::{Gguf, TYPES};

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

#[test]
fn random_blocks_decode_as_in_ggml_at_every_vector_level() {
    let random = golden("decode.safetensors");
    for format in TYPES {
        let want = bits(&floats(&random[&format!("{}.values", format.id)]));
        let blocks = &random[&format!("{}.blocks", format.id)];
        for (level, have) in crate::simd::forced::at_every_level(|| bits(&decoded(format, blocks))) {
            assert_eq!(have, want, "{} at {level:?}", format.id);
        }
    }
    // None is left out.
    assert!(TYPES.len() <= 25 && random.len() == 2 * 25);
}
