//! An adapter folder as PEFT writes it: `adapter_model.safetensors` and `adapter_config.json`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{Existing, folder, parent_of, partial, refuse_existing, remove, rename};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::open::{Checkpoint, Entry};
use crate::plan::{OutFile, OutTensor};
use crate::simd::floats;

/// Bytes that are copied at a time.
const SOME: usize = 1 << 20;

/// A tensor of a new adapter.
pub(crate) struct NewTensor<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data<'a>,
}

/// Where its bytes come from.
pub(crate) enum Data<'a> {
    Bytes(Vec<u8>),
    Entry(&'a Checkpoint, &'a Entry),
}

impl NewTensor<'_> {
    /// A tensor of f32 values, stored as `dtype`. `None` if a value is not finite there.
    pub(crate) fn of_values(name: String, dtype: Dtype, shape: Vec<usize>, mut values: Vec<f32>) -> Option<Self> {
        floats::round_to(dtype, &mut values);
        if values.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mut bytes = vec![0; values.len() * dtype.bits() as usize / 8];
        floats::encode(dtype, &values, &mut bytes);
        Some(Self { name, dtype, shape, data: Data::Bytes(bytes) })
    }

    fn bytes(&self) -> u64 {
        match &self.data {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Entry(_, entry) => entry.bytes,
        }
    }
}

/// Writes both files into a folder that exists. Returns the bytes of all tensors.
pub(crate) fn write_adapter(folder: &Path, mut tensors: Vec<NewTensor<'_>>, config: &serde_json::Value) -> Result<u64> {
    // The order of the safetensors writer.
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut offset = 0;
    let placed = tensors
        .iter()
        .map(|tensor| {
            let (bytes, at) = (tensor.bytes(), offset);
            offset += bytes;
            OutTensor {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: Some(tensor.shape.clone()),
                bytes,
                offset: at,
            }
        })
        .collect();
    let file = OutFile::new("adapter_model.safetensors".into(), vec![("format".into(), "pt".into())], placed);
    let path = folder.join(&file.name);
    let failed = |error| Error::io("write", &path, error);
    let mut out = BufWriter::new(File::create(&path).map_err(failed)?);
    out.write_all(&file.header(&HashMap::new()).0).map_err(failed)?;
    for tensor in &tensors {
        match &tensor.data {
            Data::Bytes(bytes) => out.write_all(bytes).map_err(failed)?,
            Data::Entry(source, entry) => {
                let mut buffer = vec![0; SOME.min(entry.bytes as usize)];
                let mut at = 0;
                while at < entry.bytes {
                    let n = buffer.len().min((entry.bytes - at) as usize);
                    source.read_at(entry, at, &mut buffer[..n])?;
                    out.write_all(&buffer[..n]).map_err(failed)?;
                    at += n as u64;
                }
            }
        }
    }
    out.flush().map_err(failed)?;
    let text = serde_json::to_string_pretty(config).unwrap_or_default() + "\n";
    let path = folder.join("adapter_config.json");
    std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
    Ok(offset)
}

/// Has `fill` write a folder beside its name, and gives it the name when it is whole.
pub(crate) fn whole_folder<T>(target: &Path, force: bool, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    refuse_existing(target, Existing { force, resume: false })?;
    let partial = partial::path_of(target)?;
    remove(&partial)?;
    std::fs::create_dir_all(&partial).map_err(|error| Error::io("create", &partial, error))?;
    let filled = fill(&partial).and_then(|done| folder::sync_others(&partial).map(|()| done));
    let published = filled.and_then(|done| {
        if force && target.exists() {
            folder::exchange(&partial, target)?
        } else {
            rename(&partial, target)?
        }
        folder::sync_folder(&parent_of(target)).map(|()| done)
    });
    if published.is_err() {
        // The error that ended it is the one to tell.
        drop(remove(&partial));
    }
    published
}
