//! OFT: blocks of a layer's inputs are turned by orthogonal matrices.
//!
//! W' = W · diag(R₁, R₂, …)ᵀ. R is made of a skew matrix Q, of which its upper triangle is stored: by a truncated Neumann series, or by Cayley's
//! transform (`use_cayley_neumann`). COFT cuts each Q to the norm eps / √blocks. An embedding's features are turned, with R. Half of a rotation is that of
//! Q / 2. Source: PEFT 0.21, `tuners/oft/layer.py`.

use std::sync::Arc;

use super::module::OTHER;
use super::rotation::{Blocks, cayley, neumann, skew, transposed_f32};
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned, Tensors};
use crate::edit::{Change, Reach, Side};
use crate::error::{Result, malformed, mismatch, unsupported};

/// OFT.
pub(super) struct Oft;

const R: &str = "oft_R";
const EMBEDDING_R: &str = "oft_embedding_R";
/// As PEFT named it before 0.16, with other values in it.
const OLD_R: &str = "oft_r";

impl PeftMethod for Oft {
    fn peft_type(&self) -> &'static str {
        "OFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[R, EMBEDDING_R, OLD_R], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "r",
            "oft_block_size",
            "module_dropout",
            "coft",
            "eps",
            "block_share",
            "use_cayley_neumann",
            "num_cayley_neumann_terms",
        ])?;
        let fields = config.fields();
        let (r, size) = (fields.count("r", 0, 0)?, fields.count("oft_block_size", 0, 32)?);
        let asked = match (r, size) {
            (0, size) if size > 0 => Asked::Size(size),
            (r, 0) if r > 0 => Asked::Number(r),
            _ => return Err(malformed(format!("`r` is {r} and `oft_block_size` {size}: one of them has to be 0"))),
        };
        let terms = fields.count("num_cayley_neumann_terms", 1, 5)?;
        let eps = fields.number("eps")?.unwrap_or(6e-5);
        Ok(Box::new(Rotations {
            asked,
            terms: fields.flag_or("use_cayley_neumann", true)?.then_some(terms),
            eps: fields.flag("coft")?.then_some(eps),
            shared: fields.flag("block_share")?,
        }))
    }
}

/// What the configuration says of the blocks, before PEFT makes it fit.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Size(usize),
    Number(usize),
}

#[derive(Debug)]
struct Rotations {
    asked: Asked,
    /// Terms of the Neumann series; none for Cayley's transform.
    terms: Option<usize>,
    /// Where a COFT's norms end.
    eps: Option<f64>,
    shared: bool,
}

impl Rotations {
    /// Blocks of `features` and their size: the nearest that divides.
    fn size(&self, features: usize) -> usize {
        match self.asked {
            Asked::Size(size) => fitting(features, size),
            Asked::Number(number) => features / fitting(features, number).max(1),
        }
    }
}

/// The divisor of `features` that is nearest to `wanted`, of two the lower.
fn fitting(features: usize, wanted: usize) -> usize {
    if wanted >= features {
        return features;
    }
    let divides = |n: &usize| features.is_multiple_of(*n);
    let (lower, higher) = ((1..=wanted).rev().find(divides), (wanted..=features).find(divides));
    match (lower, higher) {
        (Some(lower), Some(higher)) if wanted - lower <= higher - wanted => lower,
        (_, Some(higher)) => higher,
        _ => features,
    }
}

impl Layers for Rotations {
    fn check(&self, _: &str, tensors: &Tensors) -> Result<()> {
        match tensors.get(OLD_R) {
            None => Ok(()),
            Some(old) => Err(unsupported(
                "an OFT of PEFT before 0.16, which meant something else by its tensors (PEFT does not read it either)",
            )
            .in_tensor(old)
            .with_hint("merge it with the version of PEFT that trained it, or train it anew")),
        }
    }

    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (marker, on) = match (module.tensors().get(R), module.tensors().get(EMBEDDING_R)) {
            (Some(one), Some(_)) => {
                return Err(mismatch(format!("stands beside `{EMBEDDING_R}` of the same module")).in_tensor(one));
            }
            (_, None) => (R, On::Matrix),
            (None, _) => (EMBEDDING_R, On::Embedding),
        };
        let (mut outputs, mut inputs) = module.linear("OFT")?;
        if on == On::Embedding {
            // A table of (tokens, features), of which inputs are tokens.
            (outputs, inputs) = module.table();
        }
        let features = if on == On::Matrix { inputs } else { outputs };
        let size = self.size(features);
        let number = features / size.max(1);
        let stored = if self.shared { 1 } else { number };
        let tensor = module.tensor(marker)?;
        let have = module.shape(tensor)?;
        let want = [stored, size * size.saturating_sub(1) / 2];
        if have != want {
            let name = module.base_name();
            return Err(mismatch(format!(
                "shape {have:?}, but {number} blocks of {size} of the {features} features of `{name}` want {want:?}"
            ))
            .in_tensor(tensor)
            .with_hint(OTHER));
        }
        let change = RotationPlan {
            tensor: tensor.to_owned(),
            size,
            stored,
            terms: self.terms,
            eps: self.eps,
            weight: module.weight(),
            side: if on == On::Matrix { Side::Inputs } else { Side::Outputs },
        };
        Ok(vec![Planned { on, outputs, inputs, change: Arc::new(change), tensors: vec![tensor.to_owned()] }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[R, EMBEDDING_R]
    }
}

#[derive(Debug)]
struct RotationPlan {
    tensor: String,
    size: usize,
    stored: usize,
    terms: Option<usize>,
    eps: Option<f64>,
    weight: f64,
    side: Side,
}

impl ChangePlan for RotationPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let n = self.size;
        let upper = loader.floats(&self.tensor)?;
        let limit = self.eps.map(|eps| eps / (self.stored as f64).sqrt());
        let mut blocks = Vec::with_capacity(self.stored * n * n);
        for number in 0..self.stored {
            let own = n * n.saturating_sub(1) / 2;
            let upper = upper.get(number * own..(number + 1) * own).unwrap_or(&[]);
            let norm = (2.0 * upper.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()).sqrt();
            let cut = limit.filter(|limit| norm > *limit).map_or(1.0, |limit| limit / norm);
            let q = skew(upper, n, cut * self.weight);
            let r = match self.terms {
                Some(terms) => neumann(&q, n, terms),
                None => {
                    cayley(&q, n).ok_or_else(|| malformed("values too large for a rotation").in_tensor(&self.tensor))?
                }
            };
            // W becomes W · Rᵀ; the features of an embedding's rows E become E · R, which is Rᵀ on the side of the outputs.
            if self.side == Side::Inputs {
                blocks.extend(transposed_f32(&r, n));
            } else {
                blocks.extend(r.iter().map(|x| *x as f32));
            }
        }
        Ok(Change::map(Blocks { blocks, size: n, side: self.side }))
    }

    fn memory(&self) -> u64 {
        // With one block in f64 while it is made.
        let block = (self.size * self.size) as u64;
        4 * block * self.stored as u64 + 40 * block
    }

    fn reach(&self) -> Reach {
        match self.side {
            Side::Inputs => Reach::Block { outputs: 1, inputs: self.size },
            Side::Outputs => Reach::Block { outputs: self.size, inputs: 1 },
        }
    }
}
