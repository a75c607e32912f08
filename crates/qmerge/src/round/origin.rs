//! What a file of moments belongs to.
//!
//! `qmerge calibrate` reads the base itself, and stores a hash of it. A live model in torch may have been quantized as it was loaded, or lie in other files, so
//! it is known by values: the first of some of its tensors that no format quantizes (norms, embeddings), and of the adapter's factors. Values say no more than
//! that two models are one and the same, whatever their linear layers are stored as: what layers are given is the same for all of these.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use std::collections::BTreeMap;

use half::{bf16, f16};
use sha2::{Digest, Sha256};

use crate::adapters::{Adapter, Names};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::formats::Reader;
use crate::open::{Checkpoint, Entry, hex};

/// The first values of some tensors, by name.
pub(super) type Marks = BTreeMap<String, Vec<f32>>;

/// Most values of a tensor that are looked at.
const MARKS: usize = 64;

/// Tells bases apart without reading all of them: a hash over names, types, shapes and the first bytes of each tensor.
pub(crate) fn identity(base: &Checkpoint) -> Result<String> {
    let mut order: Vec<&Entry> = base.entries.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    // As many at a time as make a mebibyte.
    for entries in order.chunks(256) {
        for (entry, first) in entries.iter().zip(base.read_starts(entries, 4096)?) {
            hash.update(format!("{} {:?} {:?}\n", entry.name, entry.dtype, entry.shape));
            hash.update(&first);
        }
    }
    Ok(hex(hash.finalize()))
}

/// Errors if the base is not the model that these values were taken of, or holds none of the tensors.
pub(super) fn check_base(marks: &Marks, names: &Names<'_>) -> Result<()> {
    // As the model has them: a file may store them otherwise.
    let first = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(claim) = names.find(name).ok().flatten().filter(|claim| claim.weight.is_plain()) else {
            return Ok(None);
        };
        let geometry = claim.weight.geometry();
        let mut values = Vec::new();
        let rows = 0..MARKS.div_ceil(geometry.cols.max(1)).min(geometry.rows);
        Reader::new(names.checkpoint, claim)?.rows(&rows, &mut values)?;
        values.truncate(MARKS);
        Ok(Some(values))
    };
    check(marks, names.checkpoint, first, "model")
}

/// The same of an adapter's tensors.
pub(super) fn check_adapter(marks: &Marks, adapter: &Adapter) -> Result<()> {
    let first = |name: &str| match adapter.tensors.get(name) {
        Some(entry) => first_values(&adapter.tensors, entry),
        None => Ok(None),
    };
    check(marks, &adapter.tensors, first, "adapter")
}

fn check(marks: &Marks, file: &Checkpoint, first: impl Fn(&str) -> Result<Option<Vec<f32>>>, what: &str) -> Result<()> {
    let mut compared = 0;
    for (name, values) in marks {
        let Some(stored) = first(name)? else { continue };
        compared += 1;
        if values.iter().zip(&stored).any(|(a, b)| differ(*a, *b)) {
            return Err(mismatch(format!(
                "the calibration belongs to another {what}: `{name}` has other values there"
            )));
        }
    }
    if compared == 0 {
        return Err(mismatch(format!(
            "the calibration belongs to another {what}: none of the tensors that it is known by is in {}",
            file.path.display()
        )));
    }
    Ok(())
}

/// The first values of a tensor of floats; `None` for any other.
fn first_values(file: &Checkpoint, entry: &Entry) -> Result<Option<Vec<f32>>> {
    let bytes = file.read_starts(&[entry], 4 * MARKS as u64)?.concat();
    Ok(match entry.dtype {
        Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()),
        Dtype::BF16 => Some(bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()),
        Dtype::F16 => Some(bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()),
        _ => None,
    })
}

/// True for values that no two 16-bit types make of one.
fn differ(a: f32, b: f32) -> bool {
    // A half has steps of 6e-8 near zero, a bfloat16 of one part in 128.
    (a - b).abs() > a.abs().max(b.abs()) / 64.0 + 1e-6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_do_not_matter_and_values_do() {
        for x in [1.0, -0.731, 3.3e-4, 5e-7, 0.0, 90.25] {
            assert!(!differ(x, bf16::from_f32(x).to_f32()), "{x}");
            assert!(!differ(bf16::from_f32(x).to_f32(), f16::from_f32(x).to_f32()), "{x}");
            assert!(differ(x, x + 0.03 * x.abs() + 2e-6), "{x}");
        }
    }
}
