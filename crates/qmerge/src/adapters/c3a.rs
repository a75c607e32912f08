//! C3A: a matrix of circulant blocks is added.
//!
//! D[m·b + k, n·b + j] = kernel[m, n, (j − k) mod b] / inputs. Source: PEFT 0.21, `tuners/c3a`.

use std::sync::Arc;

use super::patterns::Patterns;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::dtype::Dtype;
use crate::edit::{Change, Delta, Tile};
use crate::error::{Result, mismatch};
use crate::simd::floats::round_to;

/// C3A.
pub(super) struct C3a;

const KERNEL: &str = "c3a_kernel";

impl PeftMethod for C3a {
    fn peft_type(&self) -> &'static str {
        "C3A"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[KERNEL], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["block_size", "block_size_pattern"])?;
        let fields = config.fields();
        Ok(Box::new(Circulants {
            size: fields.count("block_size", 1, 256)?,
            pattern: Patterns::new(fields.numbers("block_size_pattern")?),
        }))
    }
}

#[derive(Debug)]
struct Circulants {
    size: usize,
    pattern: Patterns,
}

impl Layers for Circulants {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("C3A")?;
        let size = self.pattern.lookup(module.name())?.map_or(self.size, |size| size as usize);
        if size == 0 || !outputs.is_multiple_of(size) || !inputs.is_multiple_of(size) {
            return Err(mismatch(format!(
                "`{}` is {outputs} × {inputs}, which blocks of {size} (`block_size`) do not fill",
                module.base_name()
            ))
            .in_file(&module.adapter().config.path));
        }
        let tensor = module.sized(KERNEL, &[outputs / size, inputs / size, size])?.to_owned();
        let change = CirculantPlan {
            tensor: tensor.clone(),
            size,
            outputs,
            inputs,
            weight: module.weight(),
            round: module.sixteen_bits(),
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors: vec![tensor] }])
    }
}

#[derive(Debug)]
struct CirculantPlan {
    tensor: String,
    size: usize,
    outputs: usize,
    inputs: usize,
    weight: f64,
    /// PEFT rounds kernels to the weight's type, divides, and rounds again.
    round: Option<Dtype>,
}

impl ChangePlan for CirculantPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let mut kernels = loader.floats(&self.tensor)?;
        if let Some(dtype) = self.round {
            round_to(dtype, &mut kernels);
        }
        kernels.iter_mut().for_each(|x| *x /= self.inputs as f32);
        if let Some(dtype) = self.round {
            round_to(dtype, &mut kernels);
        }
        if self.weight != 1.0 {
            kernels.iter_mut().for_each(|x| *x *= self.weight as f32);
        }
        Ok(Change::add(Circulant { kernels, size: self.size, inputs: self.inputs }))
    }

    fn memory(&self) -> u64 {
        4 * (self.outputs * self.inputs / self.size.max(1)) as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}

#[derive(Debug)]
struct Circulant {
    /// (outputs / size, inputs / size, size).
    kernels: Vec<f32>,
    size: usize,
    inputs: usize,
}

impl Delta for Circulant {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let b = self.size.max(1);
        for (o, out) in tile.outputs.clone().zip(out.chunks_exact_mut(tile.inputs.len().max(1))) {
            let (row, k) = (o / b * self.inputs, o % b);
            for (i, out) in tile.inputs.clone().zip(out) {
                let at = row + i / b * b + (i % b + b - k) % b;
                *out = self.kernels.get(at).copied().unwrap_or(f32::NAN);
            }
        }
    }
}
