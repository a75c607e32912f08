//! Moments of several files as those of one: of several texts or machines they add up, each by its number of tokens, and files of single layers stand side by side.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use std::collections::HashMap;

use super::moments::{Calibration, Demand, Detail, InputMoments, Known, LayerInputs, Take};
use super::stored::StoredCalibration;
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::model_order;

/// Files of moments of one base, together.
#[derive(Debug)]
pub struct AddedCalibration {
    files: Vec<StoredCalibration>,
    /// By layer.
    layers: Vec<Vec<Together>>,
}

/// Inputs that the same weights take, in one file or more.
#[derive(Debug)]
struct Together {
    inputs: LayerInputs,
    /// Numbers of files, and of the inputs in them.
    found: Vec<(usize, usize)>,
}

impl AddedCalibration {
    /// Errors if files do not agree on which weights take the same inputs.
    pub fn new(files: Vec<StoredCalibration>) -> Result<Self> {
        let mut together: Vec<Together> = Vec::new();
        // Layers have the numbers of the file that has them first; those of other files are other layers.
        let mut layers: Vec<(usize, usize)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for (at, (layer, inputs)) in file.inputs().enumerate() {
                let same = inputs.weights.iter().find_map(|name| known.get(name)).copied();
                match same.and_then(|same| together.get_mut(same)) {
                    None => {
                        known.extend(inputs.weights.iter().map(|name| (name.clone(), together.len())));
                        layers.push((number, layer));
                        together.push(Together { inputs, found: vec![(number, at)] });
                    }
                    Some(own) if own.inputs == inputs => own.found.push((number, at)),
                    Some(_) => {
                        let name = inputs.weights.first().map_or("", String::as_str);
                        return Err(mismatch("it shares its inputs with other weights than in another file")
                            .in_file(file.path())
                            .in_tensor(name)
                            .with_hint("add only what was taken from the same model in the same way"));
                    }
                }
            }
        }
        let mut by_layer: Vec<((usize, usize), Vec<Together>)> = Vec::new();
        for (layer, own) in layers.into_iter().zip(together) {
            match by_layer.last_mut() {
                Some((last, all)) if *last == layer => all.push(own),
                _ => by_layer.push((layer, vec![own])),
            }
        }
        if files.len() > 1 {
            // Within a file the order is the model's own.
            let first =
                |own: &[Together]| own.first().and_then(|own| own.inputs.weights.first().cloned()).unwrap_or_default();
            by_layer.sort_by(|a, b| model_order(&first(&a.1), &first(&b.1)));
        }
        Ok(Self { files, layers: by_layer.into_iter().map(|(_, own)| own).collect() })
    }

    /// The weights whose inputs it knows.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().flatten().flat_map(|own| own.inputs.weights.iter().map(String::as_str))
    }

    /// Errors if a file's moments are not those that it was written with, or its numbers of tokens cannot be added to the others'. All files are read.
    pub fn check(&self) -> Result<()> {
        for own in self.layers.iter().flatten() {
            let mut tokens = 0;
            for found in &own.found {
                let file = self.files.get(found.0);
                let counted = file.and_then(|file| file.tokens_of(found.1)).unwrap_or(0);
                tokens = add_up(tokens, counted).map_err(|error| self.named(error, found))?;
            }
        }
        self.files.iter().try_for_each(StoredCalibration::check_content)
    }

    fn named(&self, error: Error, found: &(usize, usize)) -> Error {
        self.files.get(found.0).map_or(error.again(), |file| error.again().in_file(file.path()))
    }

    /// The mean over all tokens that any of the files saw.
    fn moments(&self, own: &Together) -> Result<InputMoments> {
        let part = |&(file, at): &(usize, usize)| {
            let file = self.files.get(file).ok_or_else(|| mismatch("a file of moments is gone"))?;
            file.moments_of(at)
        };
        if let [one] = own.found.as_slice() {
            return part(one);
        }
        let features = own.inputs.features;
        let (mut tokens, mut sums) = (0_usize, vec![0.0_f64; features * features]);
        for found in &own.found {
            let moments = part(found)?;
            tokens = add_up(tokens, moments.tokens).map_err(|error| self.named(error, found))?;
            for (sum, value) in sums.iter_mut().zip(&moments.values) {
                *sum += moments.tokens as f64 * f64::from(*value);
            }
        }
        let values = sums.iter().map(|sum| (sum / tokens.max(1) as f64) as f32).collect();
        Ok(InputMoments { features, tokens, values })
    }
}

/// The sum of two numbers of tokens. A file may say any number; beyond this one, f64 does not tell each from the next.
fn add_up(tokens: usize, more: usize) -> Result<usize> {
    const MOST: u64 = 1 << 53;
    tokens.checked_add(more).filter(|sum| *sum as u64 <= MOST).ok_or_else(|| {
        malformed(format!("{more} tokens are more than can be counted"))
            .with_hint("the file is damaged: take another with `qmerge calibrate`")
    })
}

impl Calibration for AddedCalibration {
    fn about(&self) -> String {
        self.files.iter().map(Calibration::about).collect::<Vec<_>>().join("; ")
    }

    fn identity(&self) -> Result<String> {
        let own: Vec<String> = self.files.iter().map(Calibration::identity).collect::<Result<_>>()?;
        Ok(own.join(" "))
    }

    fn demand(&self) -> Demand {
        let layers = self.layers.iter().map(|layer| layer.iter().map(|own| own.inputs.clone()).collect()).collect();
        let mut demand = Demand::of_read(layers);
        if self.files.len() > 1 {
            // Sums are kept in twice the width.
            let largest = demand.layers.iter().flatten().map(|inputs| inputs.features).max().unwrap_or(0);
            demand.working += 8 * (largest * largest) as u64;
            demand.passing += 8 * (largest * largest) as u64;
        }
        demand
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in &self.layers {
            let mut is_wanted = false;
            for own in layer {
                let weights: Vec<String> = own.inputs.weights.iter().filter(|name| wanted(name)).cloned().collect();
                if !weights.is_empty() {
                    is_wanted = true;
                    take.known(Known { weights, moments: self.moments(own)?, detail: Detail::Full })?;
                }
            }
            if is_wanted {
                take.layer()?;
            }
        }
        Ok(())
    }
}
