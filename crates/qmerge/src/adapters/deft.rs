//! DEFT: a part of what a layer gives is taken away, and something trained is put in its place.
//!
//! W' = (I − Q·Pᵀ)·W + s·Q·R, with Q = P and max(P, 0) for P in the "relu" kind, and for both the orthonormal columns of P in the "qr" kind: of their signs, which
//! R was trained for, LAPACK's. PaRa has no R. What is taken away is of the base before any adapter. Source: PEFT 0.21, `tuners/deft/layer.py`.

use std::sync::Arc;

use super::factored::Factored;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned, of_base};
use crate::error::{Result, malformed};
use crate::linalg::orthonormal;

/// DEFT.
pub(super) struct Deft;

const P: &str = "deft_P";
const R: &str = "deft_R";

impl PeftMethod for Deft {
    fn peft_type(&self) -> &'static str {
        "DEFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[P, R], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "decomposition_method", "init_scale", "alpha", "para", "deft_dropout"])?;
        let fields = config.fields();
        let method = fields.text("decomposition_method")?;
        let orthonormal = match method.as_deref() {
            None | Some("relu") => false,
            Some("qr") => true,
            Some(other) => {
                return Err(malformed(format!("`decomposition_method` is \"{other}\", expected relu or qr")));
            }
        };
        Ok(Box::new(Subspaces {
            rank: fields.count("r", 1, 8)?,
            // 0 is as good as none, as in PEFT.
            alpha: fields.number("alpha")?.filter(|alpha| *alpha != 0.0),
            orthonormal,
            removal_only: fields.flag("para")?,
        }))
    }
}

#[derive(Debug)]
struct Subspaces {
    rank: usize,
    alpha: Option<f64>,
    orthonormal: bool,
    /// PaRa.
    removal_only: bool,
}

impl Layers for Subspaces {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("DEFT")?;
        let rank = self.rank.min(outputs);
        let p = module.sized(P, &[outputs, rank])?.to_owned();
        let r = (!self.removal_only).then(|| module.sized(R, &[rank, inputs]).map(str::to_owned)).transpose()?;
        let scaling = self.alpha.map_or(1.0, |alpha| alpha / rank as f64) as f32;
        let mut tensors: Vec<String> = r.iter().cloned().collect();
        tensors.push(p.clone());
        let is_orthonormal = self.orthonormal;
        let make = move |loader: &Loader<'_>| {
            let p = loader.floats(&p)?;
            let (left, right): (Vec<f32>, Vec<f64>) = if is_orthonormal {
                let q = orthonormal(&p, outputs, rank);
                (q.iter().map(|x| *x as f32).collect(), q)
            } else {
                let right = p.iter().map(|x| f64::from(x.max(0.0))).collect();
                (p, right)
            };
            let taken = of_base::product(loader, (outputs, inputs), &right, rank)?;
            let put = match &r {
                Some(r) => loader
                    .floats(r)?
                    .iter()
                    .zip(&taken)
                    .map(|(r, taken)| (f64::from(r * scaling) - taken) as f32)
                    .collect(),
                None => taken.iter().map(|taken| -*taken as f32).collect(),
            };
            Ok((left, put))
        };
        let change = Factored {
            rank,
            outputs,
            inputs,
            scale: module.weight(),
            round: module.sixteen_bits(),
            beside: 8 * (rank * (outputs + inputs)) as u64 + of_base::memory(inputs),
            of_base: true,
            make,
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}
