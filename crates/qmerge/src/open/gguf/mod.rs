//! The GGUF container: llama.cpp's files.
//!
//! Layout, little endian: "GGUF", u32 version, i64 number of tensors, i64 number of keys, the keys with their values (`metadata.rs`), one entry for each tensor, zeros
//! up to the alignment, and the data. Tensors lie in the order of their entries, each at the next multiple of the alignment. Source: llama.cpp,
//! `ggml/src/gguf.cpp`, which refuses what is refused here.

mod config;
mod families;
mod made;
mod metadata;
mod pre;
mod split;
mod stack;
mod tokenizer;
mod types;
mod write;

use std::collections::HashSet;
use std::sync::Arc;

pub(crate) use config::{FACTORS, HEAD_WEIGHT, LAYERS_TABLE, LONG_FACTORS, SHORT_FACTORS, TABLE, config};
#[cfg(test)]
pub(crate) use families::all as families;
pub(crate) use made::{Field, Keys, Ways, vocabulary};
pub use metadata::{Metadata, Value};
pub(super) use split::{of_folder, refuse_incomplete};
pub(crate) use stack::expert;
pub use tokenizer::{TokenizerKeys, read_tokenizer};

use super::container::Container;
use super::{Blob, Contents, Entry, byte_size};
use crate::error::{Result, malformed, unsupported};
pub(crate) use write::Writer;

/// What every file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Most bytes in front of the data. Vocabularies of a quarter of a million tokens take some 10 MB.
const MAX_HEADER: u64 = 256 << 20;
/// Bytes that are read at a time.
const STEP: u64 = 1 << 20;
/// Dimensions of a tensor.
const MAX_DIMS: u32 = 4;
const BROKEN: &str = "the file is truncated or broken: download it again";

/// What can be done about data that no tensor is made of.
pub(super) const APPENDED: &str =
    "the file is damaged, something was appended to it, or its list of tensors was changed: download it again";

/// GGUF files.
#[derive(Debug)]
pub(crate) struct Gguf;

impl Container for Gguf {
    fn claims(&self, name: &str, head: &[u8]) -> bool {
        is_gguf(head) || name.ends_with(".gguf")
    }

    fn files(&self, name: &str) -> Vec<String> {
        split::parts(name)
    }

    fn read(&self, blob: &dyn Blob) -> Result<Contents> {
        read(blob)
    }
}

/// True for what a GGUF file begins with.
pub(super) fn is_gguf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Longest name of a tensor, in bytes: four times that of ggml. Each expert of a stack has it.
const LONGEST_NAME: usize = 256;

/// Reads all that stands in front of the data.
pub(super) fn read(blob: &dyn Blob) -> Result<Contents> {
    let mut header = Header { blob, bytes: Vec::new(), at: 0 };
    if header.take(4)? != MAGIC {
        return Err(malformed("not a GGUF file: it does not begin with `GGUF`").with_hint(BROKEN));
    }
    let version = header.u32()?;
    refuse_version(version)?;
    let (tensors, keys) = (header.u64()?, header.u64()?);
    // The shortest tensor and the shortest key.
    header.refuse_count(tensors, 24, "tensors")?;
    header.refuse_count(keys, 13, "keys")?;
    let metadata = metadata::read(&mut header, keys)?;
    let alignment = metadata.alignment()?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut end = 0_u64;
    for _ in 0..tensors {
        let name = header.string().map_err(|error| named(error, &entries))?;
        if name.len() > LONGEST_NAME {
            let problem =
                format!("the name of tensor {} has {} bytes, more than {LONGEST_NAME}", entries.len(), name.len());
            return Err(named(malformed(problem).with_hint(BROKEN), &entries));
        }
        let entry = entry(&mut header, &name, &mut end, alignment).map_err(|error| error.in_tensor(&name))?;
        entries.push(entry);
    }
    refuse_repeated(&entries)?;
    let start = (header.at as u64).next_multiple_of(alignment);
    let data_end = start.saturating_add(end);
    for entry in &mut entries {
        entry.start = entry.start.saturating_add(start);
        let entry_end = entry.start.saturating_add(entry.bytes);
        if entry_end > blob.len() {
            return Err(malformed(format!("its data ends at byte {entry_end}, the file at byte {}", blob.len()))
                .in_tensor(&entry.name)
                .with_hint(BROKEN));
        }
    }
    if blob.len() > data_end {
        let left = blob.len().saturating_sub(data_end);
        return Err(malformed(format!("{left} bytes behind the last tensor belong to none")).with_hint(APPENDED));
    }
    let entries = stack::apart(entries)?;
    let metadata = Arc::new(metadata);
    let writer = Writer::new(version, alignment, Arc::clone(&metadata));
    Ok(Contents { entries, metadata: Vec::new(), writer: Some(Arc::new(writer)), gguf: Some(metadata) })
}

/// Says behind which tensor something is broken.
fn named(error: crate::error::Error, entries: &[Entry]) -> crate::error::Error {
    match entries.last() {
        Some(last) => error.in_tensor(&last.name),
        None => error,
    }
}

fn refuse_version(version: u32) -> Result<()> {
    match version {
        2 | 3 => Ok(()),
        _ if version & 0xffff == 0 && version != 0 => {
            Err(unsupported("a big-endian GGUF file").with_hint("gguf-py's gguf-convert-endian turns it: `gguf-convert-endian FILE little`"))
        }
        1 => Err(unsupported("GGUF of version 1").with_hint(
            "a release of llama.cpp from 2023 that reads it writes it anew: `quantize FILE NEW copy`; or take a newer file of the model",
        )),
        _ => Err(unsupported(format!("GGUF of version {version}, and versions 2 and 3 are known"))
            .with_hint("take a file that llama.cpp's current converter wrote")),
    }
}

/// Reads the entry of a tensor. `start` is where its data has to lie behind the header, and becomes where that of the next has to.
fn entry(header: &mut Header<'_>, name: &str, start: &mut u64, alignment: u64) -> Result<Entry> {
    let dims = header.u32()?;
    if dims > MAX_DIMS {
        return Err(malformed(format!("{dims} dimensions, and GGUF has at most {MAX_DIMS}")).with_hint(BROKEN));
    }
    // The innermost dimension stands first.
    let mut shape = Vec::new();
    for _ in 0..dims {
        let size = header.u64()?;
        let size = usize::try_from(size).ok().filter(|_| i64::try_from(size).is_ok());
        shape.insert(0, size.ok_or_else(|| malformed("a dimension is negative or too large").with_hint(BROKEN))?);
    }
    let dtype = types::dtype(header.u32()?)?;
    let offset = header.u64()?;
    let (block, _) = dtype.block();
    let row = shape.last().copied().unwrap_or(1) as u64;
    if !row.is_multiple_of(block) {
        return Err(malformed(format!("rows of {row} elements, and {dtype} stores {block} together")).with_hint(BROKEN));
    }
    let bytes = byte_size(dtype, &shape)
        .ok_or_else(|| malformed(format!("shape {shape:?} of {dtype} is too large")).with_hint(BROKEN))?;
    if offset != *start {
        let what = if offset < *start { "overlaps the tensor before it" } else { "leaves a hole before it" };
        return Err(malformed(format!("its data {what}: it begins at byte {offset} of the data, and {start} is next"))
            .with_hint(BROKEN));
    }
    let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(alignment));
    *start = end.ok_or_else(|| malformed("its data ends nowhere").with_hint(BROKEN))?;
    Ok(Entry { name: name.to_owned(), dtype, shape, file: 0, start: offset, bytes })
}

fn refuse_repeated(entries: &[Entry]) -> Result<()> {
    let mut seen = HashSet::new();
    match entries.iter().find(|entry| !seen.insert(entry.name.as_str())) {
        Some(entry) => Err(malformed("the name stands twice").in_tensor(&entry.name).with_hint(BROKEN)),
        None => Ok(()),
    }
}

/// What stands in front of the data, as far as it was read. It grows by what is asked for and the file has.
struct Header<'b> {
    blob: &'b dyn Blob,
    bytes: Vec<u8>,
    at: usize,
}

impl Header<'_> {
    /// Errors if the file has no room for so many of something.
    fn refuse_count(&self, count: u64, each: u64, what: &str) -> Result<()> {
        let least = count.checked_mul(each).filter(|&least| least <= self.blob.len());
        match least {
            Some(_) => Ok(()),
            None => Err(malformed(format!("the header claims {count} {what}, the file has {} bytes", self.blob.len()))
                .with_hint(BROKEN)),
        }
    }

    /// The place behind the next `count` bytes, which are there then.
    fn ahead(&mut self, count: u64) -> Result<usize> {
        let end = (self.at as u64).checked_add(count).filter(|&end| end <= self.blob.len());
        let Some(end) = end else {
            return Err(malformed(format!(
                "{count} bytes are to follow byte {} of the header, and the file has {}",
                self.at,
                self.blob.len()
            ))
            .with_hint(BROKEN));
        };
        if end > MAX_HEADER {
            return Err(malformed(format!("what stands in front of the data is larger than {MAX_HEADER} bytes")));
        }
        let have = self.bytes.len() as u64;
        if end > have {
            let until = end.max(have.saturating_add(STEP)).min(self.blob.len()).min(MAX_HEADER);
            self.bytes.resize(until as usize, 0);
            let fresh = self.bytes.get_mut(have as usize..).unwrap_or_default();
            self.blob.read_at(have, fresh)?;
        }
        Ok(end as usize)
    }

    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let end = self.ahead(count)?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(self.bytes.get(start..end).unwrap_or_default())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.at = self.ahead(count)?;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let bytes = self.take(8)?.first_chunk().copied().unwrap_or_default();
        Ok(u64::from_le_bytes(bytes))
    }

    /// A name: a length, and so many bytes of UTF-8.
    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        let at = self.at;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| malformed(format!("the name at byte {at} is not UTF-8")).with_hint(BROKEN))
    }
}

/// Reads a header, for fuzzing: bytes alone are the file.
#[cfg(feature = "internals")]
pub(crate) fn parse(bytes: &[u8]) -> Result<Contents> {
    read(&Bytes(bytes.to_vec()))
}

/// A file in memory.
#[cfg(any(test, feature = "internals"))]
#[derive(Debug)]
pub(super) struct Bytes(pub(super) Vec<u8>);

#[cfg(any(test, feature = "internals"))]
impl Blob for Bytes {
    fn path(&self) -> &std::path::Path {
        std::path::Path::new("model.gguf")
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn identity(&self) -> &str {
        ""
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64) as usize;
        let from = self.0.get(offset as usize..end).ok_or_else(|| malformed("truncated"))?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
