//! HRA: a layer's inputs go through a chain of reflections.
//!
//! W' = W · H₁ · H₂ ⋯ with H = I − 2uuᵀ for each column u of unit length, which `apply_GS` makes orthogonal first. A reflection has no half, so these adapters
//! take no weight. Source: PEFT 0.21, `tuners/hra/layer.py`.

use std::sync::Arc;

use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned, ReadOptions};
use crate::edit::{ALL, Change, Map, Reach, Side, Tile};
use crate::error::{Result, malformed, unsupported};
use crate::linalg::dot;

/// HRA.
pub(super) struct Hra;

const U: &str = "hra_u";

impl PeftMethod for Hra {
    fn peft_type(&self) -> &'static str {
        "HRA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[U], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "apply_GS"])?;
        let fields = config.fields();
        Ok(Box::new(Reflections { rank: fields.count("r", 1, 8)?, orthogonal: fields.flag("apply_GS")? }))
    }
}

#[derive(Debug)]
struct Reflections {
    rank: usize,
    orthogonal: bool,
}

impl Layers for Reflections {
    fn refuse(&self, _: &ReadOptions, weight: f64) -> Result<()> {
        if weight == 1.0 {
            return Ok(());
        }
        Err(unsupported(format!("an HRA adapter reflects, and a reflection cannot be taken {weight} times")).with_hint(
            "leave out the factor: behind the adapter's name, or of --lora-scale where it is found in a module",
        ))
    }

    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("HRA")?;
        let tensor = module.sized(U, &[inputs, self.rank])?.to_owned();
        let change = ReflectionsPlan { tensor: tensor.clone(), rank: self.rank, inputs, orthogonal: self.orthogonal };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors: vec![tensor] }])
    }
}

#[derive(Debug)]
struct ReflectionsPlan {
    tensor: String,
    rank: usize,
    inputs: usize,
    orthogonal: bool,
}

impl ChangePlan for ReflectionsPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let stored = loader.floats(&self.tensor)?;
        let mut directions: Vec<Vec<f64>> = Vec::with_capacity(self.rank);
        for column in 0..self.rank {
            let mut u: Vec<f64> = stored.iter().skip(column).step_by(self.rank).map(|x| f64::from(*x)).collect();
            for other in directions.iter().filter(|_| self.orthogonal) {
                let along = dot(&u, other);
                u.iter_mut().zip(other).for_each(|(u, other)| *u -= along * other);
            }
            let length = dot(&u, &u).sqrt();
            if length == 0.0 {
                return Err(malformed(format!("column {column} has no direction to reflect along: its length is 0"))
                    .in_tensor(&self.tensor)
                    .with_hint("the training went wrong: PEFT would write NaN"));
            }
            u.iter_mut().for_each(|u| *u /= length);
            directions.push(u);
        }
        Ok(Change::map(Chain { directions }))
    }

    fn memory(&self) -> u64 {
        12 * (self.rank * self.inputs) as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: ALL }
    }
}

#[derive(Debug)]
struct Chain {
    /// Of unit length.
    directions: Vec<Vec<f64>>,
}

impl Map for Chain {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        for row in values.chunks_exact_mut(tile.inputs.len().max(1)) {
            let mut x: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            for u in &self.directions {
                let along = 2.0 * dot(&x, u);
                x.iter_mut().zip(u).for_each(|(x, u)| *x -= along * u);
            }
            row.iter_mut().zip(x).for_each(|(to, x)| *to = x as f32);
        }
    }

    fn side(&self) -> Option<Side> {
        Some(Side::Inputs)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        let mut along = vec![0.0_f32; tokens];
        for u in self.directions.iter().rev() {
            along.fill(0.0);
            for (row, u) in activations.chunks_exact(tokens.max(1)).zip(u) {
                along.iter_mut().zip(row).for_each(|(along, x)| *along += 2.0 * *u as f32 * x);
            }
            for (row, u) in activations.chunks_exact_mut(tokens.max(1)).zip(u) {
                row.iter_mut().zip(&along).for_each(|(x, along)| *x -= *u as f32 * along);
            }
        }
    }
}
