//! How the matrix that is stored lies to the one that the model multiplies with, (outputs, inputs), and to the one that rounding sees.

use std::borrow::Cow;

use crate::linalg::transposed;

/// How a rounding method's matrix lies to the stored one.
///
/// Methods see rows that are outputs, columns that are inputs, and scales that runs of a row share. GPTQ stores inputs as rows, and with act-order the
/// inputs of a group are spread over the matrix: such a weight is brought into order once, and brought back when it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Stored rows are inputs.
    pub transposed: bool,
    /// The input of each column, where columns are not in the order of the inputs. A permutation.
    pub inputs: Option<Vec<u32>>,
}

impl Order {
    /// Stored values (of rows with `cols` elements each) in the model's order.
    pub(crate) fn to_model(&self, values: Vec<f32>, cols: usize) -> Vec<f32> {
        if self.transposed { transposed(&values, cols) } else { values }
    }

    /// Values in the model's order, `inputs` in each row, in the order of columns.
    pub(crate) fn to_columns<'v>(&self, values: &'v [f32], inputs: usize) -> Cow<'v, [f32]> {
        let Some(order) = &self.inputs else { return Cow::Borrowed(values) };
        let picked =
            |row: &[f32]| order.iter().map(|&i| row.get(i as usize).copied().unwrap_or(f32::NAN)).collect::<Vec<_>>();
        Cow::Owned(values.chunks(inputs.max(1)).flat_map(picked).collect())
    }

    /// The same back again.
    pub(crate) fn undo_columns(&self, values: Vec<f32>, inputs: usize) -> Vec<f32> {
        let Some(order) = &self.inputs else { return values };
        let mut back = vec![0.0; values.len()];
        for (row, back) in values.chunks(inputs.max(1)).zip(back.chunks_mut(inputs.max(1))) {
            for (&value, &i) in row.iter().zip(order) {
                if let Some(back) = back.get_mut(i as usize) {
                    *back = value;
                }
            }
        }
        back
    }

    /// Values in the model's order, `inputs` in each row, as they are stored.
    pub(crate) fn to_stored(&self, values: Vec<f32>, inputs: usize) -> Vec<f32> {
        if self.transposed { transposed(&values, inputs) } else { values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_into_order_comes_back() {
        // Three inputs, two outputs, stored (in, out).
        let stored: Vec<f32> = vec![0.0, 10.0, 1.0, 11.0, 2.0, 12.0];
        let order = Order { transposed: true, inputs: Some(vec![2, 0, 1]) };
        let model = order.to_model(stored.clone(), 2);
        assert_eq!(model, [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
        let columns = order.to_columns(&model, 3).into_owned();
        assert_eq!(columns, [2.0, 0.0, 1.0, 12.0, 10.0, 11.0]);
        assert_eq!(order.undo_columns(columns, 3), model);
        assert_eq!(order.to_stored(model, 3), stored);
    }
}
