//! The merged model is run before it gets its name, where somebody can run it: report and output then appear together.

use std::fmt::Debug;

use crate::error::Result;
use crate::open::Checkpoint;
use crate::plan::{Inputs, Plan};
use crate::report::Behaviour;
use crate::write::Output;

/// Runs a merged model and says how it behaves.
pub trait Judge: Debug + Sync {
    /// `merged` has the weights of the output and its configuration.
    fn behaviour(&self, merged: Checkpoint) -> Result<Behaviour>;
}

/// The behaviour of an output whose weight files are complete, or a warning why it is not known: a merge is not lost where it cannot be measured.
pub(super) fn behaviour(
    judge: Option<&dyn Judge>,
    inputs: &Inputs,
    plan: &Plan,
    output: &Output,
) -> Result<(Option<Behaviour>, Option<String>)> {
    let Some(judge) = judge else { return Ok((None, None)) };
    let measured = || {
        let mut merged = match &plan.files[..] {
            [file] => Checkpoint::open_weights_in(output.store()?, &[&file.name])?,
            _ => Checkpoint::open_in(output.store()?)?,
        };
        // A single file stands without the configuration that belongs to it.
        merged.config = plan.config.clone().or_else(|| inputs.base.config.clone());
        judge.behaviour(merged)
    };
    match measured() {
        Ok(behaviour) => Ok((Some(behaviour), None)),
        Err(error) if error.kind().is_passing() => Err(error),
        Err(error) => Ok((None, Some(format!("how the merge behaves could not be measured: {error}")))),
    }
}
