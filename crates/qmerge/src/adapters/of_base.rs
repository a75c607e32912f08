//! Sums over the base's values, for changes that are made of them.

use std::ops::Range;

use super::Loader;
use crate::error::Result;

/// Values of the base that are read at once. Where it is stored turned, each time reads all of it.
const AT_ONCE: usize = 1 << 20;

/// Bytes that a walk over a matrix of so many inputs holds.
pub(super) fn memory(inputs: usize) -> u64 {
    4 * AT_ONCE.max(inputs) as u64
}

/// Shows the rows of the module's matrix before any adapter, in order, some at a time.
pub(super) fn each(
    loader: &Loader<'_>,
    (outputs, inputs): (usize, usize),
    mut see: impl FnMut(Range<usize>, &[f32]),
) -> Result<()> {
    let rows = (AT_ONCE / inputs.max(1)).max(1);
    for first in (0..outputs).step_by(rows) {
        let rows = first..(first + rows).min(outputs);
        see(rows.clone(), &loader.base(0, rows)?);
    }
    Ok(())
}

/// Xᵀ · W (count, inputs), X (outputs, count).
pub(super) fn product(loader: &Loader<'_>, shape: (usize, usize), x: &[f64], count: usize) -> Result<Vec<f64>> {
    let inputs = shape.1.max(1);
    let mut sums = vec![0.0; count * inputs];
    each(loader, shape, |rows, values| {
        let x = x.chunks_exact(count.max(1)).skip(rows.start);
        for (x, row) in x.zip(values.chunks_exact(inputs)) {
            for (x, sums) in x.iter().zip(sums.chunks_exact_mut(inputs)).filter(|(x, _)| **x != 0.0) {
                sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * f64::from(*w));
            }
        }
    })?;
    Ok(sums)
}
