//! GLoRA: weight and bias are scaled and shifted, and the bias takes something of the weight.
//!
//! W' = W + W ∘ A + B and b' = b + b ∘ D + E + W·C, W and b being those before any adapter. Each of the five is a product of low rank, a value per output, one value,
//! or nothing, as configured. Source: PEFT 0.21, `tuners/glora/layer.py`.

use std::sync::Arc;

use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned, of_base};
use crate::dtype::Dtype;
use crate::edit::{Change, Map, Product, Reach, Tile};
use crate::error::{Result, malformed};
use crate::simd::floats::round_to;

/// GLoRA.
pub(super) struct Glora;

/// Markers of one of the five: the two factors, and what is no product.
type Names = [&'static str; 3];

const A: Names = ["glora_A.Xd", "glora_A.Xu", "glora_A.X"];
const B: Names = ["glora_B.Xd", "glora_B.Xu", "glora_B.X"];
const C: Names = ["glora_C.Xd", "glora_C.Xu", "glora_C.X"];
const D: Names = ["glora_D.X", "glora_D.X", "glora_D.X"];
const E: Names = ["glora_E.X", "glora_E.X", "glora_E.X"];

const OWN: &[&str] = &[A[0], A[1], A[2], B[0], B[1], B[2], C[0], C[1], C[2], D[0], E[0]];

impl PeftMethod for Glora {
    fn peft_type(&self) -> &'static str {
        "GLORA"
    }

    fn markers(&self) -> Markers {
        // What is configured to be nothing PEFT saves as zeros.
        let none = &["glora_A.zeros", "glora_B.zeros", "glora_C.zeros", "glora_D.zeros", "glora_E.zeros"];
        Markers { own: OWN, training_only: none, ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "config_A_B", "config_C", "config_D_E"])?;
        let fields = config.fields();
        let kind = |field: &str, default: Kind, known: &[&str]| {
            let Some(text) = fields.text(field)? else { return Ok(default) };
            match text.as_str() {
                text if !known.contains(&text) => {
                    Err(malformed(format!("`{field}` is \"{text}\", expected one of {}", known.join(", "))))
                }
                "lora" => Ok(Kind::Product),
                "vector" => Ok(Kind::Vector),
                "constant" => Ok(Kind::Constant),
                _ => Ok(Kind::Nothing),
            }
        };
        Ok(Box::new(Paths {
            rank: fields.count("r", 1, 8)?,
            weight: kind("config_A_B", Kind::Product, &["lora", "vector", "constant", "none"])?,
            across: kind("config_C", Kind::Product, &["lora", "vector", "none"])?,
            bias: kind("config_D_E", Kind::Constant, &["vector", "constant", "none"])?,
        }))
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Product,
    Vector,
    Constant,
    Nothing,
}

#[derive(Debug)]
struct Paths {
    rank: usize,
    /// Of A and B.
    weight: Kind,
    /// Of C.
    across: Kind,
    /// Of D and E.
    bias: Kind,
}

/// One of the five before its numbers are read.
#[derive(Clone, Debug)]
enum Path {
    Product {
        left: String,
        right: String,
        rank: usize,
    },
    /// One value, or one per output.
    Values(String),
    Nothing,
}

impl Paths {
    /// What is configured of a matrix of so many rows and columns.
    fn path(&self, module: &Module<'_>, kind: Kind, names: Names, (rows, cols): (usize, usize)) -> Result<Path> {
        let [left, right, values] = names;
        Ok(match kind {
            Kind::Product => Path::Product {
                left: module.sized(left, &[rows, self.rank])?.to_owned(),
                right: module.sized(right, &[self.rank, cols])?.to_owned(),
                rank: self.rank,
            },
            // D and E are vectors without a second dimension.
            Kind::Vector if left == values => Path::Values(module.sized(values, &[rows])?.to_owned()),
            Kind::Vector => Path::Values(module.sized(values, &[rows, 1])?.to_owned()),
            Kind::Constant => Path::Values(module.sized(values, &[1])?.to_owned()),
            Kind::Nothing => Path::Nothing,
        })
    }
}

impl Path {
    fn tensors(&self) -> Vec<String> {
        match self {
            Self::Product { left, right, .. } => vec![right.clone(), left.clone()],
            Self::Values(values) => vec![values.clone()],
            Self::Nothing => Vec::new(),
        }
    }

    fn read(&self, loader: &Loader<'_>, round: Option<Dtype>) -> Result<Term> {
        Ok(match self {
            Self::Product { left, right, rank } => {
                Term::Product(Product::new(*rank, loader.floats(left)?, loader.floats(right)?, 1.0, None))
            }
            Self::Values(values) => {
                let mut values = loader.floats(values)?;
                if let Some(dtype) = round {
                    round_to(dtype, &mut values);
                }
                Term::Values(values)
            }
            Self::Nothing => Term::Values(vec![0.0]),
        })
    }
}

impl Layers for Paths {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("GLoRA")?;
        let (weight, round) = (module.weight(), module.sixteen_bits());
        let matrix = [
            self.path(module, self.weight, A, (outputs, inputs))?,
            self.path(module, self.weight, B, (outputs, inputs))?,
        ];
        let tensors: Vec<String> = matrix.iter().flat_map(Path::tensors).collect();
        let mut planned = Vec::new();
        if !tensors.is_empty() {
            let change = MatrixPlan { paths: matrix, rank: self.rank, outputs, inputs, weight, round };
            planned.push(Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors });
        }
        // What of the bias a layer without one has, PEFT saves as zeros.
        if module.has_bias() {
            let paths = [
                self.path(module, self.across, C, (inputs, 1))?,
                self.path(module, self.bias, D, (outputs, 1))?,
                self.path(module, self.bias, E, (outputs, 1))?,
            ];
            let tensors: Vec<String> = paths.iter().flat_map(Path::tensors).collect();
            if !tensors.is_empty() {
                let change = BiasPlan { paths, rank: self.rank, outputs, inputs, weight, round };
                planned.push(Planned { on: On::Bias, outputs, inputs: 1, change: Arc::new(change), tensors });
            }
        }
        Ok(planned)
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[A[0], A[2], B[0], B[2], C[0], C[2], D[0], E[0]]
    }
}

#[derive(Debug)]
struct MatrixPlan {
    paths: [Path; 2],
    rank: usize,
    outputs: usize,
    inputs: usize,
    weight: f64,
    /// PEFT computes in the weight's type.
    round: Option<Dtype>,
}

impl ChangePlan for MatrixPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let [factor, term] = &self.paths;
        let (factor, term) = (factor.read(loader, self.round)?, term.read(loader, self.round)?);
        Ok(Change::map(ScaledAndShifted { factor, term, weight: self.weight as f32, round: self.round }))
    }

    fn memory(&self) -> u64 {
        16 * self.rank as u64 * (self.inputs + self.outputs) as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}

/// One of the five.
#[derive(Debug)]
enum Term {
    Product(Product),
    Values(Vec<f32>),
}

impl Term {
    fn tile(&self, tile: &Tile, round: Option<Dtype>, out: &mut [f32]) {
        match self {
            Self::Product(product) => {
                product.tile(tile, out);
                if let Some(dtype) = round {
                    round_to(dtype, out);
                }
            }
            Self::Values(values) => {
                let rows = out.chunks_exact_mut(tile.inputs.len().max(1));
                rows.zip(tile.outputs.clone()).for_each(|(row, output)| row.fill(value(values, output)));
            }
        }
    }
}

/// Of one value for all, or one for each.
fn value(values: &[f32], at: usize) -> f32 {
    match values {
        [one] => *one,
        many => many.get(at).copied().unwrap_or(f32::NAN),
    }
}

#[derive(Debug)]
struct ScaledAndShifted {
    factor: Term,
    term: Term,
    weight: f32,
    round: Option<Dtype>,
}

impl Map for ScaledAndShifted {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let round = |values: &mut [f32]| {
            if let Some(dtype) = self.round {
                round_to(dtype, values);
            }
        };
        let (mut delta, mut term) = (vec![0.0; tile.len()], vec![0.0; tile.len()]);
        self.factor.tile(tile, self.round, &mut delta);
        self.term.tile(tile, self.round, &mut term);
        delta.iter_mut().zip(base).for_each(|(x, base)| *x *= base);
        round(&mut delta);
        delta.iter_mut().zip(term).for_each(|(x, term)| *x += term);
        round(&mut delta);
        values.iter_mut().zip(delta).for_each(|(value, x)| *value += self.weight * x);
    }
}

#[derive(Debug)]
struct BiasPlan {
    /// C, D and E.
    paths: [Path; 3],
    rank: usize,
    outputs: usize,
    inputs: usize,
    weight: f64,
    round: Option<Dtype>,
}

impl BiasPlan {
    /// W · C.
    fn across(&self, loader: &Loader<'_>) -> Result<Vec<f32>> {
        let [across, ..] = &self.paths;
        let mut column = vec![0.0_f32; self.inputs];
        match across {
            Path::Nothing => return Ok(vec![0.0; self.outputs]),
            Path::Values(values) => column = loader.floats(values)?,
            Path::Product { left, right, rank } => {
                let (left, right) = (loader.floats(left)?, loader.floats(right)?);
                let product = Product::new(*rank, left, right, 1.0, None);
                product.tile(&Tile { outputs: 0..self.inputs, inputs: 0..1 }, &mut column);
            }
        }
        if let Some(dtype) = self.round {
            round_to(dtype, &mut column);
        }
        let mut sums = Vec::with_capacity(self.outputs);
        of_base::each(loader, (self.outputs, self.inputs), |_, values| {
            let rows = values.chunks_exact(self.inputs.max(1));
            sums.extend(rows.map(|row| crate::linalg::dot(row, &column) as f32));
        })?;
        Ok(sums)
    }
}

impl ChangePlan for BiasPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let [_, factor, term] = &self.paths;
        let values = |part| match part {
            Term::Values(values) => values,
            Term::Product(_) => Vec::new(),
        };
        let (factor, term) = (values(factor.read(loader, self.round)?), values(term.read(loader, self.round)?));
        let across = self.across(loader)?;
        Ok(Change::map(Bias { factor, term, across, weight: self.weight as f32, round: self.round }))
    }

    fn memory(&self) -> u64 {
        16 * (self.rank * self.inputs + self.outputs) as u64 + of_base::memory(self.inputs)
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }

    fn beside(&self) -> Option<usize> {
        Some(self.inputs)
    }
}

#[derive(Debug)]
struct Bias {
    factor: Vec<f32>,
    term: Vec<f32>,
    across: Vec<f32>,
    weight: f32,
    round: Option<Dtype>,
}

impl Map for Bias {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let rounded = |x: f32| {
            let mut x = [x];
            if let Some(dtype) = self.round {
                round_to(dtype, &mut x);
            }
            x[0]
        };
        for ((output, base), own) in tile.outputs.clone().zip(base).zip(values) {
            let across = rounded(self.across.get(output).copied().unwrap_or(f32::NAN));
            let sum = rounded(rounded(base * value(&self.factor, output)) + value(&self.term, output));
            *own += self.weight * rounded(sum + across);
        }
    }
}
