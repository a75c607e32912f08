//! LoHa: the Hadamard product of two low-rank products is added.
//!
//! D = s · (w1_a·w1_b ∘ w2_a·w2_b), s = alpha / r. Its rank is at most r². Of a convolution kernels may lie between the factors. Source: PEFT 0.21,
//! `tuners/loha/layer.py`.

use std::sync::Arc;

use super::lora::through_kernel;
use super::patterns::Patterns;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Delta, Product, Tile};
use crate::error::{Result, mismatch};
use crate::linalg::transposed;

/// LoHa.
pub(super) struct LoHa;

const KERNELS: [&str; 2] = ["hada_t1", "hada_t2"];
const FACTORS: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];

impl PeftMethod for LoHa {
    fn peft_type(&self) -> &'static str {
        "LOHA"
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"],
            ..Markers::default()
        }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        let own = ["rank_dropout", "module_dropout", "use_effective_conv2d"];
        Ok(Box::new(Hadamards { scaling: Scaling::read(config, &own)? }))
    }
}

/// `alpha / r` after patterns, as the methods that come from LyCORIS have it.
#[derive(Debug)]
pub(super) struct Scaling {
    r: usize,
    alpha: f64,
    rank_pattern: Patterns,
    alpha_pattern: Patterns,
}

impl Scaling {
    /// Reads the fields, beside which a method has those of `own`.
    pub(super) fn read(config: &AdapterConfig, own: &[&str]) -> Result<Self> {
        config.refuse_unknown(&[own, &["r", "alpha", "rank_pattern", "alpha_pattern"]].concat())?;
        let fields = config.fields();
        Ok(Self {
            r: fields.count("r", 1, 8)?,
            alpha: fields.number("alpha")?.unwrap_or(8.0),
            rank_pattern: Patterns::new(fields.numbers("rank_pattern")?),
            alpha_pattern: Patterns::new(fields.numbers("alpha_pattern")?),
        })
    }

    /// Rank and scaling of a module.
    pub(super) fn of(&self, module: &Module<'_>) -> Result<(usize, f64)> {
        if let Some(stated) = module.stated() {
            return Ok((stated.rank, stated.scale));
        }
        let rank = self.rank_pattern.rank(module.name(), self.r)?;
        let alpha = self.alpha_pattern.lookup(module.name())?.unwrap_or(self.alpha);
        Ok((rank, alpha / rank as f64))
    }
}

#[derive(Debug)]
struct Hadamards {
    scaling: Scaling,
}

impl Layers for Hadamards {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear_or_convolution("LoHa")?;
        let (rank, scale) = self.scaling.of(module)?;
        let kernels = match (module.tensors().get(KERNELS[0]), module.tensors().get(KERNELS[1])) {
            (None, None) => None,
            (Some(one), _) | (None, Some(one)) if !module.is_convolution() => {
                return Err(mismatch("the kernel of a convolution, but the module is none").in_tensor(one));
            }
            _ => Some([module.tensor(KERNELS[0])?.to_owned(), module.tensor(KERNELS[1])?.to_owned()]),
        };
        let shape = |at: usize| -> Result<[usize; 2]> {
            Ok(match &kernels {
                None if at.is_multiple_of(2) => [outputs, rank],
                None => [rank, inputs],
                // Beside a kernel both have the rank first, and inputs are channels.
                Some(_) if at.is_multiple_of(2) => [rank, outputs],
                Some(kernels) => {
                    [rank, channels(module, kernels.get(at / 2).map_or("", String::as_str), rank, inputs)?]
                }
            })
        };
        let tensors = FACTORS.iter().enumerate().map(|(at, marker)| module.sized(marker, &shape(at)?));
        let factors: Vec<String> = tensors.map(|name| name.map(str::to_owned)).collect::<Result<_>>()?;
        let tensors = factors.iter().chain(kernels.iter().flatten()).cloned().collect();
        let change = HadamardPlan { factors, kernels, rank, outputs, inputs, scale: scale * module.weight() };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["hada_w2_b"]
    }
}

#[derive(Debug)]
struct HadamardPlan {
    factors: Vec<String>,
    /// Kernels that lie between the factors of a convolution.
    kernels: Option<[String; 2]>,
    rank: usize,
    outputs: usize,
    inputs: usize,
    scale: f64,
}

impl ChangePlan for HadamardPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let [w1_a, w1_b, w2_a, w2_b] = &self.factors[..] else { return Ok(Change::Add(Vec::new())) };
        let product = |left, right, number: usize| -> Result<Product> {
            let (left, right) = (loader.floats(left)?, loader.floats(right)?);
            let kernel = self.kernels.as_ref().and_then(|kernels| kernels.get(number));
            let (left, right) = match kernel {
                Some(kernel) => {
                    (transposed(&left, self.outputs), through_kernel(&loader.floats(kernel)?, &right, self.rank))
                }
                None => (left, right),
            };
            Ok(Product::new(self.rank, left, right, 1.0, None))
        };
        let (one, two) = (product(w1_a, w1_b, 0)?, product(w2_a, w2_b, 1)?);
        Ok(Change::add(Hadamard { one, two, scale: self.scale as f32 }))
    }

    fn memory(&self) -> u64 {
        // Factors, and those rearranged.
        16 * self.rank as u64 * (self.inputs as u64 + self.outputs as u64)
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn rank(&self) -> Option<usize> {
        low(self.rank * self.rank, self.outputs, self.inputs)
    }
}

/// Channels that the inputs of a convolution are, behind a kernel between factors of a rank.
pub(super) fn channels(module: &Module<'_>, kernel: &str, rank: usize, inputs: usize) -> Result<usize> {
    let elements = super::lora::kernel(module, kernel, rank)?.max(1);
    match inputs.is_multiple_of(elements) {
        true => Ok(inputs / elements),
        false => Err(mismatch(format!(
            "a kernel of {elements} elements, but `{}` takes {inputs} inputs with its own",
            module.base_name()
        ))
        .in_tensor(kernel)),
    }
}

/// A rank that is low enough for two factors to be less than the matrix.
pub(super) fn low(rank: usize, outputs: usize, inputs: usize) -> Option<usize> {
    Some(rank).filter(|rank| 2 * rank <= outputs.min(inputs))
}

#[derive(Debug)]
struct Hadamard {
    one: Product,
    two: Product,
    scale: f32,
}

impl Delta for Hadamard {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        self.one.tile(tile, out);
        let mut two = vec![0.0; out.len()];
        self.two.tile(tile, &mut two);
        out.iter_mut().zip(two).for_each(|(one, two)| *one = *one * two * self.scale);
    }

    fn rank(&self) -> Option<usize> {
        low(self.one.rank * self.one.rank, self.one.outputs(), self.one.inputs())
    }

    fn factors(&self) -> Option<Product> {
        let rank = self.rank()?;
        let (r, inputs) = (self.one.rank.max(1), self.one.inputs());
        let rows = self.one.left.chunks_exact(r).zip(self.two.left.chunks_exact(r));
        let left = rows.flat_map(|(one, two)| one.iter().flat_map(move |a| two.iter().map(move |b| a * b))).collect();
        let rows =
            |product: &Product| product.right.chunks_exact(inputs.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let mut right = Vec::with_capacity(rank * inputs);
        for one in rows(&self.one) {
            for two in rows(&self.two) {
                right.extend(one.iter().zip(two).map(|(a, b)| a * b));
            }
        }
        Some(Product::new(rank, left, right, self.scale, None))
    }
}
