//! Moments in a file, for reuse over many adapters of one base.
//!
//! The file is safetensors: one (features, features) tensor per input, named after the first weight that takes it, in the order in which a model's layers
//! run. `__metadata__` says what they were taken from, of which base, and which weights share each.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::moments::{Calibration, Demand, InputMoments, Inputs, Known, metric_bytes};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::{Checkpoint, Entry};

const TAKEN_FROM: &str = "qmerge.taken_from";
const BASE: &str = "qmerge.base";
const INPUTS: &str = "qmerge.inputs";

/// What the file says of one input.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Those of a layer have the same number and come together.
    layer: usize,
    tokens: usize,
    /// The first names the tensor.
    weights: Vec<String>,
}

/// Tells bases apart without reading all of them: a hash over names, types, shapes and the first bytes of each tensor.
fn identity(base: &Checkpoint) -> Result<String> {
    let mut order: Vec<&Entry> = base.entries.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for entry in order {
        hash.update(format!("{} {:?} {:?}\n", entry.name, entry.dtype, entry.shape));
        let mut first = vec![0; entry.bytes.min(4096) as usize];
        base.read_at(entry, 0, &mut first)?;
        hash.update(&first);
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
    let mut header = serde_json::Map::new();
    let (mut inputs, mut at, mut layer) = (Vec::new(), 0_u64, 0);
    calibration.each(&|name| base.has(name), &mut |known| {
        for Known { weights, moments } in known {
            if weights.is_empty() {
                continue;
            }
            let start = at;
            for &x in &moments.values {
                match dtype {
                    Dtype::BF16 => file.write_all(&bf16::from_f32(x).to_le_bytes()),
                    _ => file.write_all(&x.to_le_bytes()),
                }
                .map_err(failed)?;
            }
            at += moments.values.len() as u64 * if dtype == Dtype::BF16 { 2 } else { 4 };
            let info = serde_json::json!({
                "dtype": if dtype == Dtype::BF16 { "BF16" } else { "F32" },
                "shape": [moments.features, moments.features],
                "data_offsets": [start, at],
            });
            header.insert(weights[0].clone(), info);
            inputs.push(Kept { layer, tokens: moments.tokens, weights });
        }
        layer += 1;
        Ok(())
    })?;
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

/// A file of moments.
#[derive(Debug)]
pub struct Stored {
    file: Checkpoint,
    inputs: Vec<Kept>,
    about: String,
}

impl Stored {
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
        let inputs: Vec<Kept> = serde_json::from_str(text(INPUTS)?)
            .map_err(|error| malformed(format!("`{INPUTS}` is not understood: {error}")).in_file(path))?;
        for kept in &inputs {
            let entry = kept.weights.first().and_then(|name| file.get(name));
            let square = |entry: &Entry| entry.shape.len() == 2 && entry.shape[0] == entry.shape[1];
            if !entry.is_some_and(|entry| square(entry) && matches!(entry.dtype, Dtype::F32 | Dtype::BF16)) {
                return Err(malformed(format!("the inputs of {:?} have no square tensor of moments", kept.weights))
                    .in_file(path));
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

    fn read(&self, kept: &Kept) -> Result<InputMoments> {
        let name = &kept.weights[0];
        let entry = self.file.get(name).ok_or_else(|| malformed("it is gone").in_tensor(name))?;
        let bytes = self.file.read_small(entry, entry.bytes)?;
        let values = match entry.dtype {
            Dtype::BF16 => bytes.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
        };
        Ok(InputMoments { features: entry.shape[0], tokens: kept.tokens, values })
    }
}

impl Calibration for Stored {
    fn about(&self) -> String {
        self.about.clone()
    }

    fn demand(&self) -> Demand {
        let features =
            |kept: &Kept| kept.weights.first().and_then(|name| self.file.get(name)).map_or(0, |entry| entry.shape[0]);
        let inputs = |kept: &Kept| Inputs { features: features(kept), weights: kept.weights.clone() };
        let layers: Vec<Vec<Inputs>> =
            self.inputs.chunk_by(|a, b| a.layer == b.layer).map(|layer| layer.iter().map(inputs).collect()).collect();
        let largest = self.inputs.iter().map(features).max().unwrap_or(0);
        // A layer's moments while the last of them is read and turned into numbers.
        let moments = |layer: &Vec<Inputs>| layer.iter().map(|inputs| metric_bytes(inputs.features)).sum::<u64>();
        let working = layers.iter().map(moments).max().unwrap_or(0) + metric_bytes(largest);
        // Reading is nothing beside the rounding.
        Demand { layers, held: 0, working, work: 0 }
    }

    fn each(
        &mut self,
        wanted: &(dyn Fn(&str) -> bool + Sync),
        take: &mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    ) -> Result<()> {
        for layer in self.inputs.chunk_by(|a, b| a.layer == b.layer) {
            let mut known = Vec::new();
            for kept in layer {
                let weights: Vec<String> = kept.weights.iter().filter(|name| wanted(name)).cloned().collect();
                if !weights.is_empty() {
                    known.push(Known { weights, moments: self.read(kept)? });
                }
            }
            if !known.is_empty() {
                take(known)?;
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

        fn each(
            &mut self,
            wanted: &(dyn Fn(&str) -> bool + Sync),
            take: &mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
        ) -> Result<()> {
            for layer in ["a", "b"] {
                let weights: Vec<String> =
                    ["q", "k"].map(|w| format!("{layer}.{w}")).into_iter().filter(|name| wanted(name)).collect();
                let values = vec![1.0, 0.5, 0.5, 3.0 + layer.len() as f32];
                take(vec![Known { weights, moments: InputMoments { features: 2, tokens: 7, values } }])?;
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
            let mut stored = Stored::open(&path, &model).unwrap();
            assert!(stored.about().starts_with("two layers, stored in "));
            let mut seen = Vec::new();
            stored
                .each(&|name| name != "a.k", &mut |known| {
                    seen.push(known);
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen.len(), 2);
            assert_eq!(seen[0][0].weights, ["a.q"]);
            assert_eq!(seen[1][0].weights, ["b.q", "b.k"]);
            assert_eq!(seen[1][0].moments, InputMoments { features: 2, tokens: 7, values: vec![1.0, 0.5, 0.5, 4.0] });
            let error = Stored::open(&path, &other).unwrap_err().to_string();
            assert!(error.contains("belongs to another model"), "{error}");
        }
        let error = Stored::open(&folder.join("m.safetensors"), &model).unwrap_err().to_string();
        assert!(error.contains("not a calibration"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
