//! BEFT: a vector is added to a layer's bias. Source: PEFT 0.21, `tuners/beft`.

use std::sync::Arc;

use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Vector};
use crate::error::{Result, unsupported};

/// BEFT.
pub(super) struct Beft;

const BIAS: &str = "beft_bias";

impl PeftMethod for Beft {
    fn peft_type(&self) -> &'static str {
        "BEFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[BIAS], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[])?;
        Ok(Box::new(Biases))
    }
}

/// The tensors say everything.
#[derive(Debug)]
struct Biases;

impl Layers for Biases {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, _) = module.linear("BEFT")?;
        let tensor = module.sized(BIAS, &[1, outputs])?.to_owned();
        if !module.has_bias() {
            let problem = format!("it adds to the bias of `{}`, and the base layer has none", module.path());
            return Err(unsupported(problem)
                .in_tensor(&tensor)
                .with_hint("serve the base with the adapter kept apart: PEFT does not merge it either"));
        }
        let change = BiasPlan { tensor: tensor.clone(), outputs, weight: module.weight() };
        Ok(vec![Planned { on: On::Bias, outputs, inputs: 1, change: Arc::new(change), tensors: vec![tensor] }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[BIAS]
    }
}

#[derive(Debug)]
struct BiasPlan {
    tensor: String,
    outputs: usize,
    weight: f64,
}

impl ChangePlan for BiasPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::add(Vector { values: loader.floats(&self.tensor)?, scale: self.weight as f32 }))
    }

    fn memory(&self) -> u64 {
        4 * self.outputs as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}
