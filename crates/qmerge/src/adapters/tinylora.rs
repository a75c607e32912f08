//! TinyLoRA: the base's largest singular directions, mixed by a small matrix of which all layers of a group train one short vector.
//!
//! B·(Σ vᵢ Pᵢ)·A is added. A and B, made of the base when training began, stand in the file; the P do too, or torch draws them from `projection_seed` and the module's
//! number. Which vector is a module's follows from its number, the number of modules, and `weight_tying`. Source: PEFT 0.21, `tuners/tinylora`.

use std::sync::Arc;

use super::factored::Factored;
use super::module::{INCOMPLETE, OTHER};
use super::torch_random::Generator;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, malformed, mismatch};
use crate::simd::floats::round_to;

/// TinyLoRA.
pub(super) struct TinyLora;

const A: &str = "tinylora_A";
const B: &str = "tinylora_B";
const P: &str = "tinylora_P";
const V: &str = "tinylora_v";

impl PeftMethod for TinyLora {
    fn peft_type(&self) -> &'static str {
        "TINYLORA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[A, B, P], shared: &[V], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "r",
            "u",
            "weight_tying",
            "projection_seed",
            "save_projection",
            "init_v_bound",
            "tinylora_dropout",
        ])?;
        let fields = config.fields();
        let tying = fields.number("weight_tying")?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&tying) {
            return Err(malformed(format!("`weight_tying` is {tying}, expected a number from 0 to 1")));
        }
        Ok(Box::new(Mixed {
            rank: fields.count("r", 1, 2)?,
            length: fields.count("u", 1, 64)?,
            tying,
            seed: fields.count("projection_seed", 0, 42)? as u64,
            saved: fields.flag_or("save_projection", true)?,
        }))
    }
}

#[derive(Debug)]
struct Mixed {
    rank: usize,
    /// Of the trained vectors.
    length: usize,
    tying: f64,
    seed: u64,
    saved: bool,
}

impl Mixed {
    /// Which vector the module has.
    fn group(&self, module: &Module<'_>) -> Result<usize> {
        let count = module.count();
        let groups = (count as f64 * (1.0 - self.tying)).round_ties_even().max(1.0) as usize;
        if groups == 1 {
            return Ok(0);
        }
        let before = module.before("the trained vectors")?.len();
        Ok((before / (count / groups).max(1)).min(groups - 1))
    }
}

impl Layers for Mixed {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("TinyLoRA")?;
        let (rank, length) = (self.rank.min(outputs).min(inputs), self.length);
        let a = module.sized(A, &[rank, inputs])?.to_owned();
        let b = module.sized(B, &[outputs, rank])?.to_owned();
        let v = module.shared(&format!("{V}.{}", self.group(module)?))?;
        if module.shape(v.name())? != [length] {
            let problem = format!("shape {:?}, but the configuration wants {:?}", module.shape(v.name())?, [length]);
            return Err(mismatch(problem).in_tensor(v.name()).with_hint(OTHER));
        }
        let mut tensors = vec![a.clone(), b.clone(), v.name().to_owned()];
        let stored = match module.tensors().get(P) {
            Some(_) => Some(module.sized(P, &[length, rank, rank])?.to_owned()),
            None if self.saved => {
                return Err(mismatch(format!("`{}` has no tensor `{P}`", module.path()))
                    .in_tensor(&a)
                    .with_hint(INCOMPLETE));
            }
            None => None,
        };
        tensors.extend(stored.clone());
        let number = match &stored {
            Some(_) => 0,
            None => module.before("random matrices that were not saved (`save_projection`)")?.len(),
        };
        let seed = self.seed + number as u64;
        // PEFT mixes in the type of A.
        let dtype = module.adapter().tensors.get(&a).map(|entry| entry.dtype);
        let beside = 4 * (length * rank * rank) as u64 + v.memory();
        let make = move |loader: &Loader<'_>| {
            let p = match &stored {
                Some(name) => loader.floats(name)?,
                None => Generator::new(seed).normal(1.0 / (rank as f64).sqrt(), length * rank * rank),
            };
            let mut mix = vec![0.0_f64; rank * rank];
            for (v, p) in loader.shared(&v)?.iter().zip(p.chunks_exact((rank * rank).max(1))) {
                mix.iter_mut().zip(p).for_each(|(mix, p)| *mix += f64::from(*v) * f64::from(*p));
            }
            let mut mix: Vec<f32> = mix.into_iter().map(|x| x as f32).collect();
            if let Some(dtype) = dtype {
                round_to(dtype, &mut mix);
            }
            let mut left = Vec::with_capacity(outputs * rank);
            for row in loader.floats(&b)?.chunks_exact(rank.max(1)) {
                let mut out = vec![0.0_f32; rank];
                for (x, mix) in row.iter().zip(mix.chunks_exact(rank.max(1))) {
                    out.iter_mut().zip(mix).for_each(|(out, mix)| *out = x.mul_add(*mix, *out));
                }
                left.extend(out);
            }
            Ok((left, loader.floats(&a)?))
        };
        let round = module.sixteen_bits();
        let change = Factored { rank, outputs, inputs, scale: module.weight(), round, beside, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}
