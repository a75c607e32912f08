//! BEFT: a vector is added to a layer's bias. Source: PEFT 0.21, `tuners/beft`.

use std::sync::Arc;

use super::lora::BiasPlan;
use super::{AdapterConfig, Layers, Markers, Module, On, PeftMethod, Planned};
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
        let change = BiasPlan { tensor: tensor.clone(), outputs, scale: module.weight(), widens: false };
        Ok(vec![Planned { on: On::Bias, outputs, inputs: 1, change: Arc::new(change), tensors: vec![tensor] }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[BIAS]
    }
}
