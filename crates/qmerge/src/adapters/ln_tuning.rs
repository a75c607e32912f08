//! LN tuning: modules, norms as a rule, that were trained whole. Source: PEFT 0.21, `tuners/ln_tuning`.

use super::{AdapterConfig, Layers, Markers, Module, PeftMethod, Planned, ReadOptions};
use crate::error::{Result, unsupported};

/// LN tuning.
pub(super) struct LnTuning;

impl PeftMethod for LnTuning {
    fn peft_type(&self) -> &'static str {
        "LN_TUNING"
    }

    fn markers(&self) -> Markers {
        Markers { whole: &["ln_tuning_layers"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[])?;
        Ok(Box::new(Copies))
    }
}

/// Copies, which take their originals' places.
#[derive(Debug)]
struct Copies;

impl Layers for Copies {
    fn refuse(&self, _: &ReadOptions, weight: f64) -> Result<()> {
        if weight == 1.0 {
            return Ok(());
        }
        Err(unsupported(format!(
            "an LN_TUNING adapter holds modules that were trained whole, which take their originals' places: {weight} times that means nothing"
        ))
        .with_hint("leave out the factor behind the adapter's name"))
    }

    fn layer(&self, _: &Module<'_>) -> Result<Vec<Planned>> {
        Ok(Vec::new())
    }
}
