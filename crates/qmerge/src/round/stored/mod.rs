//! Moments in a file: reading them.
//!
//! The file is safetensors: one (features, features) tensor per input, named after the first weight that takes it, in the order in which a model's layers
//! run. `__metadata__` says what they were taken from, of which base, and which weights share each. `qmerge calibrate` writes such a file, and so does the Python
//! package from a live model (`qmerge.torch`), whose modules may have other names than the weights on disk; see `origin` for how either says of which model it is.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::moments::{Calibration, Demand, Detail, InputMoments, Known, LayerInputs, Take, matrix_name, weight_of};
use super::origin::{self, Marks, identity};
use crate::adapters::{Adapter, Names};
use crate::dtype::Dtype;
use crate::error::{Result, malformed, mismatch};
use crate::open::{Checkpoint, Entry, Store, hex};

pub(super) const TAKEN_FROM: &str = "qmerge.taken_from";
pub(super) const BASE: &str = "qmerge.base";
pub(super) const INPUTS: &str = "qmerge.inputs";
/// Hash of the tensors' bytes, in the order of the file. It tells files apart that are honest, so that nobody reads all of one for it.
pub(super) const CONTENT: &str = "qmerge.content";
/// In place of a base's hash, what a live model is known by.
const MODEL: &str = "qmerge.model";
/// What the adapter is known by that the model ran with, if it had one.
const ADAPTER: &str = "qmerge.adapter";

/// What the file says of one input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredInputs {
    /// Those of a layer have the same number and come together.
    pub(super) layer: usize,
    pub(super) tokens: usize,
    /// The first names the tensor.
    pub(super) weights: Vec<String>,
}

/// A file of moments at a glance.
pub(crate) struct StoredAbout {
    pub(crate) taken_from: String,
    pub(crate) layers: usize,
    pub(crate) inputs: usize,
    pub(crate) weights: usize,
}

/// One input of a file whose weights were found in the base.
#[derive(Debug)]
struct Input {
    layer: usize,
    tokens: usize,
    /// Name of the tensor that holds the moments.
    tensor: String,
    features: usize,
    /// Names in the base.
    weights: Vec<String>,
}

/// A file of moments.
#[derive(Debug)]
pub struct StoredCalibration {
    path: PathBuf,
    file: Checkpoint,
    inputs: Vec<Input>,
    about: String,
    /// What its tensors are known by, and what is said of them; `None` if it does not say.
    content: Option<String>,
    /// What its tensors alone are known by.
    hash: Option<String>,
    adapter: Option<Marks>,
}

impl StoredCalibration {
    /// Opens a file of moments for a base. Errors if it is something else, or belongs to another model.
    pub fn open(path: &Path, names: &Names<'_>) -> Result<Self> {
        let read = || Self::read(Checkpoint::open_weights(path)?, path, names);
        read().map_err(|error| error.in_file(path))
    }

    /// [`StoredCalibration::open`] of a file in a store.
    pub fn open_in(store: Arc<dyn Store>, name: &str, names: &Names<'_>) -> Result<Self> {
        let path = store.path_of(name);
        let read = || Self::read(Checkpoint::open_weights_in(store, &[name])?, &path, names);
        read().map_err(|error| error.in_file(&path))
    }

    fn read(file: Checkpoint, path: &Path, names: &Names<'_>) -> Result<Self> {
        let text = |key: &str| {
            let found = file.metadata.iter().flatten().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_str())
        };
        let needed = |key: &str| {
            text(key).ok_or_else(|| {
                malformed(format!("not a calibration: its metadata lacks `{key}`"))
                    .with_hint("`qmerge calibrate` writes such a file; a text goes with --calibrate")
            })
        };
        let marks = |key: &str| text(key).map(|text| parse::<Marks>(key, text)).transpose();
        let stored = parse::<Vec<StoredInputs>>(INPUTS, needed(INPUTS)?)?;
        check_shapes(&stored, &file)?;
        match marks(MODEL)? {
            Some(marks) => origin::check_base(&marks, names).map_err(|error| {
                error.with_hint("take it from this very model, with qmerge.torch.calibrate or in training")
            })?,
            None if needed(BASE)? != identity(names.checkpoint)? => {
                return Err(mismatch("the calibration belongs to another model")
                    .with_hint(format!("run `qmerge calibrate` on {}", names.checkpoint.path.display())));
            }
            None => {}
        }
        let (inputs, missing) = place(&stored, &file, names)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let missing = match missing.as_slice() {
            [] => String::new(),
            [first, ..] => format!(" ({} of its weights not found in the base, first `{first}`)", missing.len()),
        };
        let about = format!("{}{missing}, stored in {name}", needed(TAKEN_FROM)?);
        let content = text(CONTENT).zip(text(INPUTS));
        let content = content.map(|(hash, inputs)| hex(Sha256::digest(format!("{hash} {inputs}"))));
        let hash = text(CONTENT).map(str::to_owned);
        file.expect_all();
        Ok(Self { hash, path: path.to_path_buf(), adapter: marks(ADAPTER)?, inputs, about, content, file })
    }

    /// Errors if it says that it was taken with another adapter than this one, as it is now.
    pub fn check_adapter(&self, adapter: &Adapter) -> Result<()> {
        self.adapter
            .as_ref()
            .map_or(Ok(()), |marks| origin::check_adapter(marks, adapter).map_err(|error| error.in_file(&self.path)))
    }

    /// The weights whose inputs it knows.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flat_map(|input| input.weights.iter().map(String::as_str))
    }

    /// What a file of moments says of itself; `None` for any other.
    pub(crate) fn about(file: &Checkpoint) -> Option<StoredAbout> {
        let text = |key: &str| file.metadata.iter().flatten().find(|(name, _)| name == key).map(|(_, value)| value);
        let inputs: Vec<StoredInputs> = serde_json::from_str(text(INPUTS)?).ok()?;
        Some(StoredAbout {
            taken_from: text(TAKEN_FROM)?.clone(),
            layers: inputs.chunk_by(|a, b| a.layer == b.layer).count(),
            inputs: inputs.len(),
            weights: inputs.iter().map(|own| own.weights.len()).sum(),
        })
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the layer of each of its inputs, and what they are, in order.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (usize, LayerInputs)> {
        let inputs = |input: &Input| LayerInputs { features: input.features, weights: input.weights.clone() };
        self.inputs.iter().map(move |input| (input.layer, inputs(input)))
    }

    /// The moments of one of its inputs.
    pub(super) fn moments_of(&self, number: usize) -> Result<InputMoments> {
        let input = self.inputs.get(number).ok_or_else(|| malformed("no moments").in_file(&self.path))?;
        self.moments(input)
    }

    /// Tokens that one of its inputs was taken from.
    pub(super) fn tokens_of(&self, number: usize) -> Option<usize> {
        self.inputs.get(number).map(|input| input.tokens)
    }

    /// Errors if its tensors are not those that it was written with, as far as it says what they are known by. All of it is read.
    pub fn check_content(&self) -> Result<()> {
        let Some(written) = &self.hash else { return Ok(()) };
        let mut entries: Vec<&Entry> = self.file.entries.iter().collect();
        entries.sort_by_key(|entry| entry.start);
        let mut hash = Sha256::new();
        for entry in entries {
            let bytes = self.file.read_small(entry, entry.bytes).map_err(|error| error.in_file(&self.path))?;
            hash.update(&bytes);
        }
        let found = hex(hash.finalize());
        if found == *written {
            return Ok(());
        }
        Err(malformed("its moments are not those that it was written with")
            .in_file(&self.path)
            .with_hint("the file is damaged: take another with `qmerge calibrate`"))
    }

    fn moments(&self, input: &Input) -> Result<InputMoments> {
        let moments = self.unchecked(input)?;
        moments.check().map_err(|error| error.in_file(&self.path).in_tensor(&input.tensor))?;
        Ok(moments)
    }

    fn unchecked(&self, input: &Input) -> Result<InputMoments> {
        let entry = self.file.get(&input.tensor).ok_or_else(|| malformed("no moments").in_tensor(&input.tensor))?;
        let bytes = self.file.read_small(entry, entry.bytes)?;
        let values = match entry.dtype {
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        };
        Ok(InputMoments { features: input.features, tokens: input.tokens, values })
    }

    fn layers(&self) -> impl Iterator<Item = &[Input]> {
        self.inputs.chunk_by(|a, b| a.layer == b.layer)
    }
}

fn parse<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| malformed(format!("`{key}` is not understood: {error}")))
}

/// Each input has a square tensor, and each weight one input.
fn check_shapes(all: &[StoredInputs], file: &Checkpoint) -> Result<()> {
    let mut seen = HashSet::new();
    for own in all {
        if let Some(name) = own.weights.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(malformed("it stands twice among the inputs of a calibration")
                .in_tensor(name)
                .with_hint("take another with `qmerge calibrate`"));
        }
        let entry = own.weights.first().and_then(|name| file.get(name));
        let square = |entry: &Entry| matches!(entry.shape.as_slice(), [rows, cols] if rows == cols);
        if !entry.is_some_and(|entry| square(entry) && matches!(entry.dtype, Dtype::F32 | Dtype::BF16)) {
            let weights: Vec<&String> = own.weights.iter().take(3).collect();
            return Err(malformed(format!("the inputs of {weights:?} have no square tensor of moments"))
                .with_hint("the file is damaged: take another with `qmerge calibrate`"));
        }
    }
    Ok(())
}

/// The weights of the base that take the inputs, and the names that are none of the base's. Errors if there are others only, or one has other inputs.
fn place(all: &[StoredInputs], file: &Checkpoint, names: &Names<'_>) -> Result<(Vec<Input>, Vec<String>)> {
    let (mut inputs, mut missing, mut placed) = (Vec::new(), Vec::new(), HashSet::new());
    for own in all {
        let Some(entry) = own.weights.first().and_then(|name| file.get(name)) else { continue };
        let features = entry.shape.first().copied().unwrap_or(0);
        let mut weights = Vec::new();
        for name in &own.weights {
            let (weight, number) = weight_of(name);
            let found = match names.find(weight)? {
                Some(whole) => Some(whole),
                None => names.within(weight)?.map(|(claim, _)| claim),
            };
            let Some(claim) = found else {
                missing.push(name.clone());
                continue;
            };
            let shape = claim.weight.shape();
            if shape.len() == 2 && !shape.contains(&features) {
                return Err(mismatch(format!("has shape {shape:?}, but the calibration saw {features} inputs"))
                    .in_tensor(claim.weight.name())
                    .with_hint("the calibration belongs to another model"));
            }
            let found = claim.weight.name();
            let found = number.map_or(found.to_owned(), |number| matrix_name(found, number));
            // Two modules of a live model may be one weight on disk.
            if placed.insert(found.clone()) {
                weights.push(found);
            }
        }
        if !weights.is_empty() {
            let (layer, tokens) = (own.layer, own.tokens);
            inputs.push(Input { layer, tokens, tensor: entry.name.clone(), features, weights });
        }
    }
    match missing.first() {
        Some(first) if inputs.is_empty() => {
            Err(mismatch(format!("none of its weights is one of the base's; first `{first}`"))
                .with_hint("the calibration belongs to another model"))
        }
        _ => Ok((inputs, missing)),
    }
}

impl Calibration for StoredCalibration {
    fn about(&self) -> String {
        self.about.clone()
    }

    fn identity(&self) -> Result<String> {
        self.content.clone().map_or_else(|| crate::open::content(&self.file.files), Ok)
    }

    fn demand(&self) -> Demand {
        let inputs = |input: &Input| LayerInputs { features: input.features, weights: input.weights.clone() };
        let layers: Vec<Vec<LayerInputs>> = self.layers().map(|layer| layer.iter().map(inputs).collect()).collect();
        Demand::of_read(layers)
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in self.layers() {
            let mut is_wanted = false;
            for input in layer {
                let weights: Vec<String> = input.weights.iter().filter(|name| wanted(name)).cloned().collect();
                if !weights.is_empty() {
                    is_wanted = true;
                    take.known(Known { weights, moments: self.moments(input)?, detail: Detail::Full })?;
                }
            }
            if is_wanted {
                take.layer()?;
            }
        }
        Ok(())
    }
}
