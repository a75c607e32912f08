//! RandLoRA: a sum of random products of low rank, each scaled by trained vectors, which together have full rank.
//!
//! With n = ⌈min(outputs, inputs) / r⌉ and A scaled to Λ·A·Γ, `alpha / r · B · A` is added, or its transpose, A having the smaller of the two sides. The
//! columns of B are counted by product first and those of A by rank first, in PEFT's merge as in its forward pass. Source: PEFT 0.21, `tuners/randlora`.

use std::sync::Arc;

use super::factored::Factored;
use super::module::OTHER;
use super::torch_random::{Generator, kaiming};
use super::vera::Projections;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::linalg::transposed;
use crate::simd::floats::round_to;

/// RandLoRA.
pub(super) struct RandLora;

impl PeftMethod for RandLora {
    fn peft_type(&self) -> &'static str {
        "RANDLORA"
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &["randlora_lambda", "randlora_gamma"],
            shared: &["randlora_A", "randlora_B"],
            ..Markers::default()
        }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        let own = ["r", "randlora_alpha", "randlora_dropout", "sparse", "very_sparse"];
        config.refuse_unknown(&[&own, Projections::FIELDS].concat())?;
        let fields = config.fields();
        Ok(Box::new(Bases {
            rank: fields.count("r", 1, 32)?,
            alpha: fields.number("randlora_alpha")?.unwrap_or(640.0),
            sparse: match (fields.flag("very_sparse")?, fields.flag("sparse")?) {
                (true, _) => Sparse::Very,
                (false, true) => Sparse::Yes,
                (false, false) => Sparse::No,
            },
            projections: Projections::read(config)?,
        }))
    }
}

/// Which values of what is drawn are zero.
#[derive(Clone, Copy, Debug)]
enum Sparse {
    No,
    /// Two of three.
    Yes,
    /// All but one in √min(outputs, inputs).
    Very,
}

#[derive(Debug)]
struct Bases {
    rank: usize,
    alpha: f64,
    sparse: Sparse,
    projections: Projections,
}

impl Layers for Bases {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("RandLoRA")?;
        let (r, sparse) = (self.rank, self.sparse);
        let (small, large) = (outputs.min(inputs), outputs.max(inputs));
        let bases = small.div_ceil(r);
        let lambda = module.sized("randlora_lambda", &[r, bases])?.to_owned();
        let gamma = module.sized("randlora_gamma", &[bases, small])?.to_owned();
        let (a, b) = self
            .projections
            .find(module, ("randlora_A", "randlora_B"), r, &move |seed, sizes| draw(seed, sizes, r, sparse))?;
        let (most_outputs, most_inputs) = module.largest();
        let (most_small, most_large) = (most_outputs.min(most_inputs), most_outputs.max(most_inputs));
        let [wide, tall] =
            [a.shape(module, &[r, 1, most_small])?, b.shape(module, &[most_large, most_small.div_ceil(r), r])?];
        let (&[_, _, most_small], &[most_large, most_bases, _]) = (&wide[..], &tall[..]) else {
            return Err(mismatch("no three dimensions").in_tensor("randlora_A"));
        };
        if most_small < small || most_large < large || most_bases < bases {
            let problem = format!(
                "the random matrices are made for {most_large} × {most_small}, but `{}` is {outputs} × {inputs}",
                module.base_name()
            );
            return Err(mismatch(problem).in_tensor(&lambda).with_hint(OTHER));
        }
        let mut tensors = vec![lambda.clone(), gamma.clone()];
        tensors.extend([&a, &b].into_iter().filter_map(|projection| projection.stored()));
        let (rank, beside) = (bases * r, a.memory() + b.memory());
        let make = move |loader: &Loader<'_>| {
            let (lambda, gamma) = (loader.floats(&lambda)?, loader.floats(&gamma)?);
            let (a, b) = (a.read(loader)?, b.read(loader)?);
            // (large, bases · r).
            let rows = b.chunks_exact((most_bases * r).max(1)).take(large);
            let b: Vec<f32> = rows.flat_map(|row| row.iter().take(rank).copied()).collect();
            // (r · bases, small).
            let rows = a.chunks_exact(most_small.max(1)).zip(lambda.chunks_exact(bases.max(1)));
            let mut scaled = Vec::with_capacity(rank * small);
            for (row, lambda) in rows {
                for (lambda, gamma) in lambda.iter().zip(gamma.chunks_exact(small.max(1))) {
                    scaled.extend(row.iter().zip(gamma).map(|(x, gamma)| lambda * x * gamma));
                }
            }
            Ok(if small == inputs { (b, scaled) } else { (transposed(&scaled, small), transposed(&b, rank)) })
        };
        let scale = self.alpha / r as f64 * module.weight();
        let round = module.sixteen_bits();
        let change = Factored { rank, outputs, inputs, scale, round, beside, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}

/// A (r, 1, smaller side) and B (larger side, bases, r), each divided by its standard deviation. PEFT draws them in bf16, but for sparse ones.
fn draw(seed: u64, (outputs, inputs): (usize, usize), r: usize, sparse: Sparse) -> (Vec<f32>, Vec<f32>) {
    let (small, large) = (outputs.min(inputs), outputs.max(inputs));
    let bases = small.div_ceil(r);
    let mut generator = Generator::new(seed);
    let thin = match sparse {
        Sparse::No => {
            let mut draw = |rows: usize, fan: usize| {
                let bound = kaiming(fan, (1.0_f64 / 3.0).sqrt());
                generator.uniform_bf16(-bound, bound, rows * fan)
            };
            let a = draw(r, small);
            let mut b = vec![0.0; large * bases * r];
            for base in 0..bases {
                let own = draw(large, r);
                for (to, from) in b.chunks_exact_mut((bases * r).max(1)).zip(own.chunks_exact(r.max(1))) {
                    to.iter_mut().skip(base * r).zip(from).for_each(|(to, from)| *to = *from);
                }
            }
            // PEFT divides in bf16 too.
            let [mut a, mut b] = [normal(a, true), normal(b, true)];
            round_to(Dtype::BF16, &mut a);
            round_to(Dtype::BF16, &mut b);
            return (a, b);
        }
        Sparse::Yes => 3.0,
        Sparse::Very => (small as f64).sqrt(),
    };
    let (low, high) = ((1.0 / (2.0 * thin)) as f32, (1.0 - 1.0 / (2.0 * thin)) as f32);
    let sign = |x: f32| if x < low { -1.0 } else { f32::from(x > high) };
    let mut signs = |count| generator.uniform(0.0, 1.0, count).into_iter().map(sign).collect();
    (normal(signs(r * small), false), normal(signs(large * bases * r), false))
}

/// Divided by the standard deviation, with Bessel's correction.
fn normal(mut values: Vec<f32>, bf16: bool) -> Vec<f32> {
    let count = values.len() as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let square = |x: &f32| (f64::from(*x) - mean) * (f64::from(*x) - mean);
    let deviation = (values.iter().map(square).sum::<f64>() / (count - 1.0)).sqrt() as f32;
    let mut deviation = [deviation];
    if bf16 {
        round_to(Dtype::BF16, &mut deviation);
    }
    let [deviation] = deviation;
    values.iter_mut().for_each(|x| *x /= deviation);
    values
}
