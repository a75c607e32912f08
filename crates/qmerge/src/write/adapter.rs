//! New adapters: a folder as PEFT writes it, of `adapter_model.safetensors` and `adapter_config.json`, or a file in another container.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Existing, LocalSink, Sink, Start, make_parent};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, usage};
use crate::open::container::WriteContainer;
use crate::open::safetensors::Safetensors;
use crate::open::{Checkpoint, Entry};
use crate::plan::{OutFile, OutTensor};
use crate::simd::floats;

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

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
    /// Values that are made when they are written.
    Later(Box<dyn FnOnce() -> Result<Vec<f32>> + 'a>),
}

impl NewTensor<'_> {
    /// A tensor of f32 values, stored as `dtype`. `None` if a value is not finite there.
    pub(crate) fn of_values(name: String, dtype: Dtype, shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        Some(Self { name, dtype, shape, data: Data::Bytes(encoded(dtype, values)?) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        match &self.data {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Entry(_, entry) => entry.bytes,
            Data::Later(_) => self.dtype.bytes_of(self.shape.iter().product::<usize>() as u64).unwrap_or(0),
        }
    }
}

/// Values as they are stored. `None` if one is not finite there.
fn encoded(dtype: Dtype, mut values: Vec<f32>) -> Option<Vec<u8>> {
    floats::round_to(dtype, &mut values);
    if values.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut bytes = vec![0; dtype.bytes_of(values.len() as u64)? as usize];
    floats::encode(dtype, &values, &mut bytes);
    Some(bytes)
}

/// What is said of a value that its type cannot hold.
pub(crate) fn overflow(name: &str, dtype: Dtype) -> Error {
    let error = Error::new(Kind::NotFinite, format!("a new value overflows in {dtype}")).in_tensor(name);
    if dtype == Dtype::F16 { error.with_hint("store it as --dtype f32 or bf16") } else { error }
}

/// The content of tensors, one behind the other, each filled up with zeros to the alignment.
fn pieces<'a>(tensors: Vec<NewTensor<'a>>, alignment: u64) -> impl Iterator<Item = Result<Vec<u8>>> + 'a {
    tensors.into_iter().flat_map(move |tensor| -> Box<dyn Iterator<Item = Result<Vec<u8>>> + 'a> {
        let bytes = tensor.bytes();
        let fill = vec![0; (bytes.next_multiple_of(alignment) - bytes) as usize];
        let content: Box<dyn Iterator<Item = Result<Vec<u8>>> + 'a> = match tensor.data {
            Data::Bytes(bytes) => Box::new(std::iter::once(Ok(bytes))),
            Data::Entry(source, entry) => Box::new((0..entry.bytes).step_by(PIECE as usize).map(move |at| {
                let mut piece = vec![0; PIECE.min(entry.bytes - at) as usize];
                source.read_at(entry, at, &mut piece).map(|()| piece)
            })),
            Data::Later(make) => Box::new(std::iter::once_with(move || {
                make()
                    .and_then(|values| {
                        encoded(tensor.dtype, values).ok_or_else(|| overflow(&tensor.name, tensor.dtype))
                    })
                    .map_err(|error| error.in_tensor(&tensor.name))
            })),
        };
        Box::new(content.chain(std::iter::once(Ok(fill))))
    })
}

/// Writes both files into a folder of the output ("" for itself). Returns the bytes of all tensors.
pub(crate) fn write_adapter(
    to: &dyn Sink,
    folder: &str,
    mut tensors: Vec<NewTensor<'_>>,
    config: &serde_json::Value,
) -> Result<u64> {
    tensors.sort_by(|a, b| Safetensors.order((a.dtype, &*a.name), (b.dtype, &*b.name)));
    let bytes = tensors.iter().map(NewTensor::bytes).sum();
    let metadata = vec![("format".into(), "pt".into())];
    let header = header(Arc::new(Safetensors), metadata, &tensors);
    let name = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    to.put(&name("adapter_model.safetensors"), &mut std::iter::once(Ok(header)).chain(pieces(tensors, 1)))?;
    let text = serde_json::to_string_pretty(config).unwrap_or_default() + "\n";
    to.put(&name("adapter_config.json"), &mut std::iter::once(Ok(text.into_bytes())))?;
    Ok(bytes)
}

/// What stands in front of the tensors in a file that has them one behind the other.
fn header(container: Arc<dyn WriteContainer>, metadata: Vec<(String, String)>, tensors: &[NewTensor<'_>]) -> Vec<u8> {
    let (alignment, mut end) = (container.alignment(), 0_u64);
    let place = |tensor: &NewTensor<'_>| {
        let (bytes, offset) = (tensor.bytes(), end.next_multiple_of(alignment));
        end = offset + bytes;
        OutTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape: Some(tensor.shape.clone()), bytes, offset }
    };
    let placed = tensors.iter().map(place).collect();
    OutFile::new(String::new(), container, metadata, placed).header(&HashMap::new()).0
}

/// Writes a file of tensors beside its name, and gives it the name when it is whole and on the disk. Returns the bytes of all tensors.
pub(crate) fn publish_file(
    target: &Path,
    container: impl WriteContainer + 'static,
    tensors: Vec<NewTensor<'_>>,
) -> Result<u64> {
    let mut beside = target.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    make_parent(target)?;
    let failed = |error| Error::io("write", &beside, error);
    let bytes = tensors.iter().map(NewTensor::bytes).sum();
    let alignment = container.alignment();
    let header = header(Arc::new(container), Vec::new(), &tensors);
    let written = File::create(&beside).map_err(failed).and_then(|mut file| {
        for piece in std::iter::once(Ok(header)).chain(pieces(tensors, alignment)) {
            file.write_all(&piece?).map_err(failed)?;
        }
        file.sync_all().map_err(failed)
    });
    let named = written
        .and_then(|()| std::fs::rename(&beside, target).map_err(|error| Error::io("rename into place", target, error)));
    // What is left of a failed attempt is of no use; the error that ended it is the one to tell.
    named.inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    Ok(bytes)
}

/// Has `fill` write a folder beside its name, and gives it the name when it is whole.
pub(crate) fn publish_folder<T>(target: &Path, force: bool, fill: impl FnOnce(&dyn Sink) -> Result<T>) -> Result<T> {
    let mut sink = LocalSink::new(target);
    sink.begin(Existing { force, resume: false })?;
    let filled = sink.reserve(&[], Start::Anew(b"")).and_then(|()| fill(&sink));
    let published = filled.and_then(|done| sink.publish(force).map(|()| done));
    // The error that ended it is the one to tell.
    published.inspect_err(|_| sink.abandon())
}

/// Errors if the output exists, unless it is to be replaced, or if it would replace a folder that it is made from.
pub(crate) fn refuse_replacing(target: &Path, force: bool, sources: &[&Path]) -> Result<()> {
    super::refuse_existing(target, None, Existing { force, resume: false })?;
    super::refuse_unwritable(target)?;
    let within = |source: &Path| target.canonicalize().is_ok_and(|target| source.starts_with(target));
    if sources.iter().any(|source| source.canonicalize().is_ok_and(|source| within(&source))) {
        return Err(usage("the output would replace what it is made from")
            .in_file(target)
            .with_hint("choose another output"));
    }
    Ok(())
}
