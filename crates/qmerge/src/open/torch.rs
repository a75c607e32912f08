//! The torch `.bin` container: a zip archive with one pickle and one stored member per storage.
//!
//! Written by `torch.save` since 1.6: members `NAME/data.pkl`, `NAME/data/KEY`, `NAME/byteorder`. Storages are stored
//! uncompressed, so each tensor is a byte range of the file. Only adapters are read this way.

use std::io::{BufReader, Read};

use super::container::Container;
use super::pickle::{self, TensorRef};
use super::store::Cursor;
use super::{Blob, Contents, Entry, byte_size};
use crate::error::{Result, malformed, unsupported};

/// A state dict's pickle is names and shapes: even a large model's stays below this.
const MAX_PICKLE: u64 = 64 << 20;

type Archive<'a> = zip::ZipArchive<BufReader<Cursor<'a>>>;

/// Torch archives, which are only read.
#[derive(Debug)]
pub(super) struct Torch;

impl Container for Torch {
    /// Of any name where it begins as a zip archive does.
    fn claims(&self, name: &str, head: &[u8]) -> bool {
        [".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending)) || head.starts_with(b"PK\x03\x04")
    }

    /// Resolves each tensor of an archive to a byte range.
    fn read(&self, blob: &dyn Blob) -> Result<Contents> {
        read(blob)
    }
}

fn read(blob: &dyn Blob) -> Result<Contents> {
    let mut archive = Archive::new(BufReader::new(Cursor::new(blob))).map_err(|error| {
        malformed(format!("not a torch archive: {error}"))
            .with_hint("files from torch before 1.6 have no archive: load and save them again as safetensors")
    })?;
    let pickle_name = archive
        .file_names()
        .filter_map(std::result::Result::ok)
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or_else(|| malformed("a zip archive without data.pkl: not written by torch.save"))?
        .into_owned();
    let prefix = pickle_name.strip_suffix("data.pkl").unwrap_or("").to_owned();
    if let Some(order) = read_member(&mut archive, &format!("{prefix}byteorder"), 16)?
        && order != b"little"
    {
        return Err(unsupported("written on a big-endian machine"));
    }
    let pickle = read_member(&mut archive, &pickle_name, MAX_PICKLE)?.unwrap_or_default();
    let entries = pickle::parse(&pickle)?
        .into_iter()
        .map(|(name, tensor)| {
            locate(&mut archive, &prefix, &name, &tensor, blob.len()).map_err(|error| error.in_tensor(&name))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Contents { entries, ..Contents::default() })
}

fn read_member(archive: &mut Archive<'_>, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Ok(member) = archive.by_name(name) else { return Ok(None) };
    let mut bytes = Vec::with_capacity(usize::try_from(member.size().min(limit)).unwrap_or(0));
    member
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| malformed(format!("cannot read the archive member {name}: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(malformed(format!("the archive member {name} is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

fn locate(archive: &mut Archive<'_>, prefix: &str, name: &str, tensor: &TensorRef, len: u64) -> Result<Entry> {
    let too_large = || malformed(format!("shape {:?} is too large", tensor.shape));
    let bytes = byte_size(tensor.dtype, &tensor.shape).ok_or_else(too_large)?;
    if bytes > 0 && !is_contiguous(&tensor.shape, &tensor.stride) {
        return Err(unsupported(format!("stored as a strided view (strides {:?})", tensor.stride))
            .with_hint("call .contiguous() on the tensor before saving, or save as safetensors"));
    }
    let member = archive
        .by_name(&format!("{prefix}data/{}", tensor.storage))
        .map_err(|_| malformed(format!("its storage data/{} is missing from the archive", tensor.storage)))?;
    if member.compression() != zip::CompressionMethod::Stored {
        return Err(unsupported("its storage is compressed, which torch.save never does"));
    }
    let start = member.data_start().ok_or_else(|| malformed("its storage has no place in the archive"))?;
    let storage = tensor.dtype.bytes_of(tensor.storage_elements).filter(|&size| size <= member.size());
    let first = tensor.dtype.bytes_of(tensor.offset).ok_or_else(too_large)?;
    let inside = storage.is_some_and(|size| first.checked_add(bytes).is_some_and(|end| end <= size))
        && start.checked_add(member.size()).is_some_and(|end| end <= len);
    if !inside {
        return Err(malformed("reaches outside its storage: the archive is truncated or broken"));
    }
    Ok(Entry {
        name: name.to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        file: 0,
        start: start.saturating_add(first),
        bytes,
    })
}

/// Row-major without gaps; the stride of a dimension of length 1 does not matter.
fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut want = 1_usize;
    shape.len() == stride.len()
        && shape.iter().zip(stride).rev().all(|(&dim, &step)| {
            let fits = dim == 1 || step == want;
            want = want.saturating_mul(dim);
            fits
        })
}
