//! Finding NaN and infinity, and saying where and why.
//!
//! PEFT's `safe_merge` is optional, sees only the sum, and names no place. Here every adapter value, delta, merged value and
//! decoded output value is checked, always; the fast path is a flag in the measured sums, and this module is the slow path
//! that finds the culprit.

use crate::error::{Error, Kind, Result};
use crate::open::{Checkpoint, Entry};
use crate::simd::differences::{all_finite, first_nonfinite};

/// Checks an adapter tensor that was read whole.
pub(crate) fn adapter_tensor(tensors: &Checkpoint, entry: &Entry, values: &[f32]) -> Result<()> {
    if all_finite(values) {
        return Ok(());
    }
    let at = first_nonfinite(values).unwrap_or(0);
    let bad = values.iter().filter(|x| !x.is_finite()).count();
    let place = position(&entry.shape, at);
    Err(tensors
        .error(
            entry,
            Kind::NotFinite,
            format!("{} at index {place} of the adapter ({bad} of {} values are not finite)", values[at], values.len()),
        )
        .with_hint("training diverged or the file is damaged: use an earlier checkpoint of the adapter"))
}

/// What one chunk of rows held when something in it was not finite.
pub(crate) struct Chunk<'a> {
    /// Weight name.
    pub(crate) name: &'a str,
    /// First row of the chunk, and columns.
    pub(crate) first_row: usize,
    pub(crate) cols: usize,
    /// Decoded base, merged target and decoded output.
    pub(crate) base: &'a [f32],
    pub(crate) target: &'a [f32],
    pub(crate) output: &'a [f32],
    /// Output format.
    pub(crate) format: &'a str,
    /// True if the base, not an adapter's tensor, is the source.
    pub(crate) from_base: bool,
}

/// The error for a chunk that holds a value that is not finite, named by the earliest stage that shows it.
pub(crate) fn explain(chunk: &Chunk<'_>) -> Error {
    let find = |values: &[f32]| first_nonfinite(values).map(|at| (at, values[at]));
    let place = |at: usize| format!("[{}, {}]", chunk.first_row + at / chunk.cols.max(1), at % chunk.cols.max(1));
    let (message, hint) = if let Some((at, x)) = find(chunk.base) {
        let whose = if chunk.from_base { "the base itself" } else { "the tensor that the adapter brings" };
        (
            format!("{whose} holds {x} at {}", place(at)),
            "the checkpoint is damaged or was saved after a divergence: get another copy",
        )
    } else if let Some((at, x)) = find(chunk.target) {
        (
            format!(
                "the merged value is {x} at {} (base {:e}): the adapter's delta overflows, or a DoRA norm is zero",
                place(at),
                chunk.base[at]
            ),
            "lower the adapter's weight, or use an earlier checkpoint of the adapter",
        )
    } else if let Some((at, x)) = find(chunk.output) {
        (
            format!(
                "the merged value {:e} at {} overflows in {}: it would become {x}",
                chunk.target[at],
                place(at),
                chunk.format
            ),
            "choose an output type with more range (--to bf16), or lower the adapter's weight",
        )
    } else {
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        (
            format!(
                "values are so large that their squares overflow: base {:e}, merged {:e}",
                largest(chunk.base),
                largest(chunk.target)
            ),
            "no trained weight is that large: training diverged or a file is damaged",
        )
    };
    Error::new(Kind::NotFinite, message).in_tensor(chunk.name).with_hint(hint)
}

/// A flat index as an index of the shape.
fn position(shape: &[usize], flat: usize) -> String {
    let mut rest = flat;
    let mut index = Vec::new();
    for &dim in shape.iter().rev() {
        index.push((rest % dim.max(1)).to_string());
        rest /= dim.max(1);
    }
    index.reverse();
    format!("[{}]", index.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_indices_become_places() {
        assert_eq!(position(&[3, 4, 5], 33), "[1, 2, 3]");
        assert_eq!(position(&[7], 6), "[6]");
        assert_eq!(position(&[], 0), "[]");
    }
}
