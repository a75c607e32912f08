//! Moments in a file, for reuse over many adapters of one base: writing them. What the file is, `stored` says.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use sha2::{Digest, Sha256};

use super::moments::{Calibration, Known, Take, weight_of};
use super::origin::identity;
use super::stored::{BASE, CONTENT, INPUTS, StoredInputs, TAKEN_FROM};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed};
use crate::formats;
use crate::open::{Checkpoint, Entry, hex};

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
    // Each matrix of a stack has a name of its own.
    let matrices = |entry: &Entry| match *entry.shape.as_slice() {
        [matrices, _, _] => matrices.min(entry.bytes as usize).max(1),
        _ => 1,
    };
    // The model's names, which a file may not have.
    let weights = formats::inventory(base)?.weights;
    let own: HashSet<&str> = weights.iter().map(|claim| claim.weight.name()).collect();
    let longest = own.iter().map(|name| name.len()).max().unwrap_or(0);
    let longest = |entry: &Entry| entry.name.len().max(longest);
    let names: usize = base.entries.iter().map(|entry| matrices(entry) * (3 * longest(entry) + 256)).sum();
    let reserved = (names + 4096).next_multiple_of(8);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.seek(SeekFrom::Start(8 + reserved as u64)).map_err(failed)?;
    let mut writing = Writing {
        file: &mut file,
        path,
        dtype,
        hash: Sha256::new(),
        header: serde_json::Map::new(),
        inputs: Vec::new(),
        at: 0,
        layer: 0,
    };
    calibration.each(&|name| own.contains(weight_of(name).0), &mut writing)?;
    let Writing { mut header, inputs, at, hash, .. } = writing;
    let hash = hex(hash.finalize());
    let inputs = serde_json::to_string(&inputs).map_err(|error| malformed(error.to_string()))?;
    let metadata = serde_json::json!({
        TAKEN_FROM: calibration.about(), BASE: identity(base)?, INPUTS: inputs, CONTENT: hash, "format": "pt"
    });
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
    /// Of the bytes so far.
    hash: Sha256,
    header: serde_json::Map<String, serde_json::Value>,
    inputs: Vec<StoredInputs>,
    /// Bytes so far.
    at: u64,
    layer: usize,
}

impl Take for Writing<'_> {
    fn known(&mut self, known: Known) -> Result<()> {
        let Known { weights, moments, .. } = known;
        let Some(name) = weights.first() else { return Ok(()) };
        let start = self.at;
        for values in moments.values.chunks(1 << 14) {
            let bytes: Vec<u8> = match self.dtype {
                Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            self.hash.update(&bytes);
            self.file.write_all(&bytes).map_err(|error| Error::io("write", self.path, error))?;
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
