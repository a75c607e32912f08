//! Matrices that lie one behind another in one weight.

use std::sync::Arc;

use qmerge::edited::Edited;
use qmerge::error::Result;
use qmerge::round::matrix_name;

use super::Linear;
use crate::tensors::Tensors;

/// Matrices of as many linear layers, one behind another in one weight.
#[derive(Debug)]
pub struct Stack<'a> {
    name: String,
    weight: Arc<Edited<'a>>,
    biases: Option<Vec<f32>>,
    outputs: usize,
    inputs: usize,
    in_out: bool,
}

impl<'a> Stack<'a> {
    /// The weight of that name, of (matrices, outputs, inputs), or of (matrices, inputs, outputs) where it is `in_out`, with its biases if there are any.
    pub fn new(
        tensors: &Tensors<'a>,
        name: &str,
        (matrices, outputs, inputs): (usize, usize, usize),
        in_out: bool,
    ) -> Result<Self> {
        let weight = tensors.get(name)?;
        let geometry = weight.base().claim().weight.geometry();
        // What is quantized lies as a linear layer does.
        let in_out = in_out && weight.base().claim().weight.has_family_order();
        let (rows, cols) = if in_out { (inputs, outputs) } else { (outputs, inputs) };
        if (geometry.rows, geometry.cols) != (matrices * rows, cols) {
            let shape = weight.base().claim().weight.shape();
            let problem = format!("shape {shape:?}, but the configuration wants {matrices} × {rows} × {cols}");
            return Err(tensors.misfit(name, problem));
        }
        let biases = tensors.vector(&format!("{name}_bias"), matrices * outputs)?;
        Ok(Self { name: name.to_owned(), weight: Arc::new(weight), biases, outputs, inputs, in_out })
    }

    /// One of them.
    pub fn linear(&self, number: usize) -> Linear<'a> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let rows = if self.in_out { inputs } else { outputs };
        Linear {
            name: matrix_name(&self.name, number),
            weight: Arc::clone(&self.weight),
            bytes: if number == 0 { self.weight.bytes() } else { 0 },
            rows: rows * number..rows * (number + 1),
            bias: self.biases.as_ref().map(|biases| biases[outputs * number..outputs * (number + 1)].to_vec()),
            inputs,
            outputs,
            transposed: self.in_out,
            apart: false,
        }
    }
}
