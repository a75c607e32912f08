//! How the matrix that is stored lies to the matrix that the model multiplies with.

/// (rows, cols) to (cols, rows).
pub(crate) fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    let mut turned = vec![0.0; values.len()];
    for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
        let column = turned.iter_mut().skip(r).step_by(rows.max(1));
        column.zip(row).for_each(|(to, &value)| *to = value);
    }
    turned
}
