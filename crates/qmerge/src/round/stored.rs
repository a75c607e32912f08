//! Moments in a file: reading them.
//!
//! The file is safetensors: one (features, features) tensor per input, named after the first weight that takes it, in the order in which a model's layers
//! run. `__metadata__` says what they were taken from, of which base, and which weights share each. `qmerge calibrate` writes such a file, and so does the Python
//! package from a live model (`qmerge.torch`), whose modules may have other names than the weights on disk; see `origin` for how either says of which model it is.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

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
        file.expect_all();
        Ok(Self { path: path.to_path_buf(), adapter: marks(ADAPTER)?, inputs, about, content, file })
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
        self.moments(input).map_err(|error| error.in_file(&self.path))
    }

    fn moments(&self, input: &Input) -> Result<InputMoments> {
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

#[cfg(test)]
mod tests {
    use super::super::store;
    use super::*;

    struct Two;

    impl Calibration for Two {
        fn about(&self) -> String {
            "two layers".into()
        }

        fn identity(&self) -> Result<String> {
            Ok("two layers".into())
        }

        fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
            for layer in ["a", "b"] {
                let weights: Vec<String> =
                    ["q", "k"].map(|w| format!("{layer}.{w}")).into_iter().filter(|name| wanted(name)).collect();
                let values = vec![1.0, 0.5, 0.5, 3.0 + layer.len() as f32];
                take.known(Known {
                    weights,
                    moments: InputMoments { features: 2, tokens: 7, values },
                    detail: Detail::Full,
                })?;
                take.layer()?;
            }
            Ok(())
        }
    }

    fn base(path: &Path, first: u8) -> Checkpoint {
        let names = ["a.q", "a.k", "b.q", "b.k"];
        let data: Vec<Vec<u8>> = (0..4).map(|i| vec![first + i; 8]).collect();
        let views = names.iter().zip(&data).map(|(name, data)| {
            (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 2], data).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
        Checkpoint::open(path).unwrap()
    }

    fn open(path: &Path, base: &Checkpoint) -> Result<StoredCalibration> {
        let weights = crate::formats::inventory(base)?.weights;
        StoredCalibration::open(path, &Names::new(base, &weights, &[])?)
    }

    /// Moments of one of the layers, or of both, of so many tokens.
    struct Tokens(&'static [&'static str], usize, f32);

    impl Calibration for Tokens {
        fn about(&self) -> String {
            format!("{} tokens", self.1)
        }

        fn identity(&self) -> Result<String> {
            Ok(self.about())
        }

        fn each(&mut self, _: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
            for layer in self.0 {
                let weights = ["q", "k"].map(|w| format!("{layer}.{w}")).to_vec();
                let values = vec![self.2, 0.0, 0.0, 1.0];
                take.known(Known {
                    weights,
                    moments: InputMoments { features: 2, tokens: self.1, values },
                    detail: Detail::Full,
                })?;
                take.layer()?;
            }
            Ok(())
        }
    }

    #[test]
    fn moments_add_up_by_tokens_and_layers_stand_side_by_side() {
        use super::super::AddedCalibration;
        let folder = std::env::temp_dir().join(format!("qmerge-added-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let model = base(&folder.join("m.safetensors"), 1);
        let mut files = Vec::new();
        for (number, mut part) in
            [Tokens(&["b"], 30, 4.0), Tokens(&["a"], 10, 1.0), Tokens(&["a", "b"], 30, 2.0)].into_iter().enumerate()
        {
            let path = folder.join(format!("{number}.safetensors"));
            store(&model, &mut part, Dtype::F32, &path).unwrap();
            files.push(open(&path, &model).unwrap());
        }
        let mut added = AddedCalibration::new(files).unwrap();
        assert_eq!(added.weights().collect::<Vec<_>>(), ["a.q", "a.k", "b.q", "b.k"]);
        let mut seen = Vec::new();
        added
            .each(&|_| true, &mut |known: Known| {
                seen.push((known.weights[0].clone(), known.moments.tokens, known.moments.values[0]));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [("a.q".to_owned(), 40, 1.75), ("b.q".to_owned(), 60, 3.0)]);
        assert_eq!(added.demand().layers.len(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_stored_comes_back() {
        let folder = std::env::temp_dir().join(format!("qmerge-stored-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (model, other) = (base(&folder.join("m.safetensors"), 1), base(&folder.join("o.safetensors"), 2));
        let path = folder.join("moments.safetensors");
        for dtype in [Dtype::F32, Dtype::BF16] {
            store(&model, &mut Two, dtype, &path).unwrap();
            // Readable by the format's own crate too.
            safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).unwrap();
            let mut stored = open(&path, &model).unwrap();
            assert!(stored.about().starts_with("two layers, stored in "));
            let mut seen = Vec::new();
            stored
                .each(&|name| name != "a.k", &mut |known: Known| {
                    seen.push(known);
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen.len(), 2);
            assert_eq!(seen[0].weights, ["a.q"]);
            assert_eq!(seen[1].weights, ["b.q", "b.k"]);
            assert_eq!(seen[1].moments, InputMoments { features: 2, tokens: 7, values: vec![1.0, 0.5, 0.5, 4.0] });
            let error = open(&path, &other).unwrap_err().to_string();
            assert!(error.contains("belongs to another model"), "{error}");
        }
        let error = open(&folder.join("m.safetensors"), &model).unwrap_err().to_string();
        assert!(error.contains("not a calibration"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_the_file_says_of_itself_is_not_believed() {
        let folder = std::env::temp_dir().join(format!("qmerge-hostile-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let model = base(&folder.join("m.safetensors"), 1);
        let path = folder.join("moments.safetensors");
        store(&model, &mut Two, Dtype::F32, &path).unwrap();
        let metadata = Checkpoint::open_weights(&path).unwrap().metadata.concat();
        let open = |inputs: &str, shape: [usize; 2], value: f32| {
            let mut metadata: std::collections::HashMap<String, String> = metadata.iter().cloned().collect();
            metadata.insert(INPUTS.into(), inputs.into());
            let data: Vec<u8> = vec![value; shape[0] * shape[1]].into_iter().flat_map(f32::to_le_bytes).collect();
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &data).unwrap();
            safetensors::serialize_to_file([("a.q", view)], Some(metadata), &path).unwrap();
            let mut stored = self::open(&path, &model)?;
            stored.each(&|_| true, &mut |known: Known| super::super::Metric::new(known.moments).map(|_| ()))
        };
        let good = r#"[{"layer": 0, "tokens": 1, "weights": ["a.q", "a.k"]}]"#;
        open(good, [2, 2], 0.5).unwrap();
        for (inputs, shape, value, text) in [
            ("", [2, 2], 0.5, "not understood"),
            (r#"[{"layer": 0, "tokens": 1, "weights": []}]"#, [2, 2], 0.5, "no square tensor"),
            (r#"[{"layer": 0, "tokens": 1, "weights": ["b.q"]}]"#, [2, 2], 0.5, "no square tensor"),
            (r#"[{"layer": 0, "tokens": 1, "weights": ["a.q", "a.q"]}]"#, [2, 2], 0.5, "stands twice"),
            (good, [2, 1], 0.5, "no square tensor"),
            (good, [2, 2], f32::NAN, "is NaN"),
            (good, [2, 2], f32::INFINITY, "is inf"),
            (good, [2, 2], -0.5, "no square is"),
        ] {
            let error = open(inputs, shape, value).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert!(text == "not understood" || error.hint().is_some(), "{error:?}");
        }
        // Nothing is known of any input: nothing comes.
        open("[]", [0, 0], 0.5).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
