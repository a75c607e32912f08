//! Moments in a file, for reuse over many adapters of one base.
//!
//! The file is safetensors: one (features, features) tensor per input, named after the first weight that takes it, in the order in which a model's layers
//! run. `__metadata__` says what they were taken from, of which base, and which weights share each.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::moments::{Calibration, Demand, InputMoments, Known, LayerInputs, Take, metric_bytes};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::{Checkpoint, Entry};

const TAKEN_FROM: &str = "qmerge.taken_from";
const BASE: &str = "qmerge.base";
const INPUTS: &str = "qmerge.inputs";

/// What the file says of one input.
#[derive(Debug, Serialize, Deserialize)]
struct StoredInputs {
    /// Those of a layer have the same number and come together.
    layer: usize,
    tokens: usize,
    /// The first names the tensor.
    weights: Vec<String>,
}

/// Tells bases apart without reading all of them: a hash over names, types, shapes and the first bytes of each tensor.
pub(crate) fn identity(base: &Checkpoint) -> Result<String> {
    let mut order: Vec<&Entry> = base.entries.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    // As many at a time as make a mebibyte.
    for entries in order.chunks(256) {
        for (entry, first) in entries.iter().zip(base.read_starts(entries, 4096)?) {
            hash.update(format!("{} {:?} {:?}\n", entry.name, entry.dtype, entry.shape));
            hash.update(&first);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes all moments that `calibration` has for weights of `base` to `path`, which appears when it is whole. `dtype` is f32 or bf16. Returns the file's length in bytes.
pub fn store(base: &Checkpoint, calibration: &mut dyn Calibration, dtype: Dtype, path: &Path) -> Result<u64> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    let written = write(base, calibration, dtype, &beside);
    match &written {
        Ok(_) => std::fs::rename(&beside, path).map_err(|error| Error::io("rename to", path, error))?,
        // What is left of a failed attempt is of no use; the error that ended it is the one to tell.
        Err(_) => drop(std::fs::remove_file(&beside)),
    }
    written
}

fn write(base: &Checkpoint, calibration: &mut dyn Calibration, dtype: Dtype, path: &Path) -> Result<u64> {
    let failed = |error| Error::io("write", path, error);
    // What comes is known only when it has come, so the header's place is kept free: a header may end in spaces.
    let names: usize = base.entries.iter().map(|entry| 3 * entry.name.len() + 256).sum();
    let reserved = (names + 4096).next_multiple_of(8);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.seek(SeekFrom::Start(8 + reserved as u64)).map_err(failed)?;
    let mut writing =
        Writing { file: &mut file, path, dtype, header: serde_json::Map::new(), inputs: Vec::new(), at: 0, layer: 0 };
    calibration.each(&|name| base.has(name), &mut writing)?;
    let Writing { mut header, inputs, at, .. } = writing;
    let inputs = serde_json::to_string(&inputs).map_err(|error| malformed(error.to_string()))?;
    let metadata =
        serde_json::json!({ TAKEN_FROM: calibration.about(), BASE: identity(base)?, INPUTS: inputs, "format": "pt" });
    header.insert("__metadata__".into(), metadata);
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    if text.len() > reserved {
        return Err(Error::new(crate::error::Kind::Bug, "the header outgrew its place").in_file(path));
    }
    text.resize(reserved, b' ');
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.write_all(&(reserved as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(8 + reserved as u64 + at)
}

/// A file of moments that is being written.
struct Writing<'w> {
    file: &'w mut BufWriter<File>,
    path: &'w Path,
    dtype: Dtype,
    header: serde_json::Map<String, serde_json::Value>,
    inputs: Vec<StoredInputs>,
    /// Bytes so far.
    at: u64,
    layer: usize,
}

impl Take for Writing<'_> {
    fn known(&mut self, known: Known) -> Result<()> {
        let Known { weights, moments } = known;
        let Some(name) = weights.first() else { return Ok(()) };
        let start = self.at;
        for &x in &moments.values {
            match self.dtype {
                Dtype::BF16 => self.file.write_all(&bf16::from_f32(x).to_le_bytes()),
                _ => self.file.write_all(&x.to_le_bytes()),
            }
            .map_err(|error| Error::io("write", self.path, error))?;
        }
        self.at += moments.values.len() as u64 * if self.dtype == Dtype::BF16 { 2 } else { 4 };
        let info = serde_json::json!({
            "dtype": if self.dtype == Dtype::BF16 { "BF16" } else { "F32" },
            "shape": [moments.features, moments.features],
            "data_offsets": [start, self.at],
        });
        self.header.insert(name.clone(), info);
        self.inputs.push(StoredInputs { layer: self.layer, tokens: moments.tokens, weights });
        Ok(())
    }

    fn layer(&mut self) -> Result<()> {
        self.layer += 1;
        Ok(())
    }
}

/// A file of moments at a glance.
pub(crate) struct StoredAbout {
    pub(crate) taken_from: String,
    pub(crate) layers: usize,
    pub(crate) inputs: usize,
    pub(crate) weights: usize,
}

/// A file of moments.
#[derive(Debug)]
pub struct StoredCalibration {
    file: Checkpoint,
    inputs: Vec<StoredInputs>,
    about: String,
}

impl StoredCalibration {
    /// Opens a file that [`store`] wrote. Errors if it is something else, or was taken from another base.
    pub fn open(path: &Path, base: &Checkpoint) -> Result<Self> {
        let file = Checkpoint::open_weights(path)?;
        let text = |key: &str| {
            let found = file.metadata.iter().flatten().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_str()).ok_or_else(|| {
                malformed(format!("not a calibration: its metadata lacks `{key}`"))
                    .in_file(path)
                    .with_hint("`qmerge calibrate` writes such a file; a text goes with --calibrate")
            })
        };
        let inputs: Vec<StoredInputs> = serde_json::from_str(text(INPUTS)?)
            .map_err(|error| malformed(format!("`{INPUTS}` is not understood: {error}")).in_file(path))?;
        let mut seen = HashSet::new();
        for own in &inputs {
            if let Some(name) = own.weights.iter().find(|name| !seen.insert(name.as_str())) {
                return Err(malformed("it stands twice among the inputs of a calibration")
                    .in_file(path)
                    .in_tensor(name)
                    .with_hint("take another with `qmerge calibrate`"));
            }
            let entry = own.weights.first().and_then(|name| file.get(name));
            let square = |entry: &Entry| matches!(entry.shape.as_slice(), [rows, cols] if rows == cols);
            if !entry.is_some_and(|entry| square(entry) && matches!(entry.dtype, Dtype::F32 | Dtype::BF16)) {
                let weights: Vec<&String> = own.weights.iter().take(3).collect();
                return Err(malformed(format!("the inputs of {weights:?} have no square tensor of moments"))
                    .in_file(path)
                    .with_hint("the file is damaged: take another with `qmerge calibrate`"));
            }
        }
        if text(BASE)? != identity(base)? {
            return Err(mismatch("the calibration belongs to another model")
                .in_file(path)
                .with_hint(format!("run `qmerge calibrate` on {}", base.path.display())));
        }
        let about = format!("{}, stored in {}", text(TAKEN_FROM)?, path.display());
        Ok(Self { file, inputs, about })
    }

    /// The weights whose inputs it knows.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flat_map(|own| own.weights.iter().map(String::as_str))
    }

    /// What a file that [`store`] wrote says of itself; `None` for any other.
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

    fn read(&self, own: &StoredInputs) -> Result<InputMoments> {
        let entry = own.weights.first().and_then(|name| self.file.get(name));
        let entry = entry.ok_or_else(|| malformed(format!("no moments for {:?}", own.weights)))?;
        let bytes = self.file.read_small(entry, entry.bytes)?;
        let values = match entry.dtype {
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        };
        let features = entry.shape.first().copied().unwrap_or(0);
        Ok(InputMoments { features, tokens: own.tokens, values })
    }
}

impl Calibration for StoredCalibration {
    fn about(&self) -> String {
        self.about.clone()
    }

    fn identity(&self) -> Result<String> {
        crate::open::content(&self.file.files)
    }

    fn demand(&self) -> Demand {
        let features = |own: &StoredInputs| {
            own.weights
                .first()
                .and_then(|name| self.file.get(name))
                .and_then(|entry| entry.shape.first().copied())
                .unwrap_or(0)
        };
        let inputs = |own: &StoredInputs| LayerInputs { features: features(own), weights: own.weights.clone() };
        let layers: Vec<Vec<LayerInputs>> =
            self.inputs.chunk_by(|a, b| a.layer == b.layer).map(|layer| layer.iter().map(inputs).collect()).collect();
        let largest = self.inputs.iter().map(features).max().unwrap_or(0);
        // A layer's moments while the last of them is read and turned into numbers.
        let moments = |layer: &Vec<LayerInputs>| layer.iter().map(|inputs| metric_bytes(inputs.features)).sum::<u64>();
        let working = layers.iter().map(moments).max().unwrap_or(0) + metric_bytes(largest);
        // Reading is nothing beside the rounding.
        Demand { layers, held: 0, working, passing: metric_bytes(largest), work: 0 }
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in self.inputs.chunk_by(|a, b| a.layer == b.layer) {
            let mut is_wanted = false;
            for own in layer {
                let weights: Vec<String> = own.weights.iter().filter(|name| wanted(name)).cloned().collect();
                if !weights.is_empty() {
                    is_wanted = true;
                    take.known(Known { weights, moments: self.read(own)? })?;
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
                take.known(Known { weights, moments: InputMoments { features: 2, tokens: 7, values } })?;
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
            let mut stored = StoredCalibration::open(&path, &model).unwrap();
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
            let error = StoredCalibration::open(&path, &other).unwrap_err().to_string();
            assert!(error.contains("belongs to another model"), "{error}");
        }
        let error = StoredCalibration::open(&folder.join("m.safetensors"), &model).unwrap_err().to_string();
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
            let mut stored = StoredCalibration::open(&path, &model)?;
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
