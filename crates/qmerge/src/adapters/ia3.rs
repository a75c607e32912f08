//! IA³: outputs or inputs of a layer are multiplied by trained factors.
//!
//! A feed-forward layer's inputs, any other's outputs, with its bias. Source: PEFT 0.21, `tuners/ia3/layer.py`. PEFT refuses to merge it into quantized
//! weights; here it is a change like any other. Which of the two it is, the shape says: (outputs, 1) or (1, inputs).

use std::sync::Arc;

use super::module::OTHER;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, FeatureScales, Reach, Side};
use crate::error::{Result, mismatch};

/// IA³.
pub(super) struct Ia3;

const FACTORS: &str = "ia3_l";

impl PeftMethod for Ia3 {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[FACTORS], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["feedforward_modules", "init_ia3_weights"])?;
        Ok(Box::new(Factors))
    }
}

/// The tensors say everything.
#[derive(Debug)]
struct Factors;

impl Layers for Factors {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("IA³")?;
        let tensor = module.tensor(FACTORS)?;
        let side = match *module.shape(tensor)? {
            [rows, 1] if rows == outputs => Side::Outputs,
            [1, cols] if cols == inputs => Side::Inputs,
            ref shape => {
                let (name, have) = (module.base_name(), [outputs, inputs]);
                return Err(mismatch(format!(
                    "shape {shape:?}, but `{name}` has {} outputs and {} inputs: expected [{}, 1] or [1, {}]",
                    have[0], have[1], have[0], have[1]
                ))
                .in_tensor(tensor)
                .with_hint(OTHER));
            }
        };
        let plan = |number| -> Arc<dyn ChangePlan> {
            Arc::new(ScaledPlan { tensor: tensor.to_owned(), weight: module.weight(), side, number })
        };
        let tensors = vec![tensor.to_owned()];
        let number = if side == Side::Outputs { outputs } else { inputs };
        let mut planned =
            vec![Planned { on: On::Matrix, outputs, inputs, change: plan(number), tensors: tensors.clone() }];
        if side == Side::Outputs && module.has_bias() {
            planned.push(Planned { on: On::Bias, outputs, inputs: 1, change: plan(number), tensors });
        }
        Ok(planned)
    }
}

/// Planned factors. Half of one is half way from 1.
#[derive(Debug)]
pub(super) struct ScaledPlan {
    pub(super) tensor: String,
    pub(super) weight: f64,
    pub(super) side: Side,
    pub(super) number: usize,
}

impl ChangePlan for ScaledPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let mut factors = loader.floats(&self.tensor)?;
        if self.weight != 1.0 {
            factors.iter_mut().for_each(|x| *x = (1.0 + self.weight * (f64::from(*x) - 1.0)) as f32);
        }
        Ok(Change::map(FeatureScales { factors, side: self.side }))
    }

    fn memory(&self) -> u64 {
        4 * self.number as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }

    fn before(&self) -> Option<Arc<dyn ChangePlan>> {
        let before = Self { tensor: self.tensor.clone(), side: Side::Outputs, ..*self };
        (self.side == Side::Inputs).then(|| Arc::new(before) as Arc<dyn ChangePlan>)
    }
}
