//! Work that goes by the inputs of layers where a calibration knows them, and without where it does not.

use std::collections::HashMap;

use super::moments::{Calibration, Known, Metric};
use crate::error::{Result, mismatch};
use crate::parallel::parallel;
use crate::progress::Progress;

/// Pieces of work, by number.
pub(crate) struct Pieces<'w> {
    /// Of each, its number of inputs and the name that errors have.
    pub(crate) inputs: Vec<(usize, &'w str)>,
    /// Which go by the inputs of a weight.
    pub(crate) wanted: HashMap<&'w str, Vec<usize>>,
}

impl Pieces<'_> {
    /// Does each once, and says which were done by moments. A calibration that knows other inputs than a piece has is an error.
    pub(crate) fn each<T: Send>(
        &self,
        calibration: Option<&mut dyn Calibration>,
        threads: usize,
        progress: &dyn Progress,
        of: impl Fn(usize, Option<&Metric>) -> Result<T> + Sync,
    ) -> Result<Vec<(T, bool)>> {
        let mut done: Vec<Option<(T, bool)>> = self.inputs.iter().map(|_| None).collect();
        if let Some(calibration) = calibration {
            calibration.each(&|name| self.wanted.contains_key(name), &mut |known: Known| {
                let numbers: Vec<usize> =
                    known.weights.iter().filter_map(|name| self.wanted.get(name.as_str())).flatten().copied().collect();
                for (inputs, name) in numbers.iter().filter_map(|&number| self.inputs.get(number)) {
                    if *inputs != known.moments.features {
                        let saw = known.moments.features;
                        return Err(mismatch(format!("takes {inputs} inputs, but the calibration saw {saw}"))
                            .in_tensor(name)
                            .with_hint("the calibration belongs to another model"));
                    }
                }
                let Some((_, name)) = numbers.first().and_then(|&first| self.inputs.get(first)) else { return Ok(()) };
                let metric = Metric::new(known.moments).map_err(|error| error.in_tensor(name))?;
                let found = parallel(&numbers, threads, progress, |&number| Ok((number, of(number, Some(&metric))?)))?;
                for (number, found) in found {
                    if let Some(done) = done.get_mut(number) {
                        *done = Some((found, true));
                    }
                }
                Ok(())
            })?;
        }
        let left: Vec<usize> = (0..done.len()).filter(|&number| matches!(done.get(number), Some(None))).collect();
        for (number, found) in parallel(&left, threads, progress, |&number| Ok((number, of(number, None)?)))? {
            if let Some(done) = done.get_mut(number) {
                *done = Some((found, false));
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}
