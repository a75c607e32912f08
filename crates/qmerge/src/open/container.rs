//! Containers: files that hold named tensors.
//!
//! One file per container and one line in [`CONTAINERS`]. A container knows where tensors lie in a file and how the file says so; it knows nothing of what their
//! bytes mean.

use std::cmp::Ordering;
use std::fmt::Debug;

use super::{Blob, Contents, foreign, gguf, safetensors, torch};
use crate::dtype::Dtype;
use crate::error::Result;

/// Every container. One that has marks of its own comes before those that go by a file's name.
pub(crate) static CONTAINERS: &[&dyn Container] = &[&gguf::Gguf, &safetensors::Safetensors, &torch::Torch];

/// A kind of file that holds named tensors.
pub(crate) trait Container: Debug + Sync {
    /// True for its files: told by their name and their first bytes, which are 64 unless the file has fewer.
    fn claims(&self, name: &str, head: &[u8]) -> bool;

    /// The names of all files of the model that the file of that name is a part of, where names tell: its own alone for most.
    fn files(&self, name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    /// Finds the tensors of a file. Errors if it is broken.
    fn read(&self, blob: &dyn Blob) -> Result<Contents>;
}

/// The way in which a container is written: a header, then the tensors, and zeros up to the alignment behind each.
pub(crate) trait WriteContainer: Debug + Send + Sync {
    /// The end of its files' names, with the dot.
    fn ending(&self) -> &'static str;

    /// A tensor's data begins at multiples of this many bytes behind the header.
    fn alignment(&self) -> u64;

    /// True if a tensor begins where the one before it ends, whatever the alignment.
    fn follows(&self, _before: &str, _name: &str) -> bool {
        false
    }

    /// True if it has that type of elements.
    fn stores(&self, dtype: Dtype) -> bool;

    /// The order of new tensors, by type and name.
    fn order(&self, a: (Dtype, &str), b: (Dtype, &str)) -> Ordering;

    /// All bytes in front of the data, as few as are needed, or `room` of them, which are no fewer.
    fn header(&self, metadata: &[(String, String)], tensors: &[Listed<'_>], room: Option<u64>) -> Vec<u8>;
}

/// A tensor in a header: its data lies from `start` to `end`, bytes behind the header.
#[derive(Clone, Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The container of a file, by its name and its first bytes. Errors if it is recognised as another tool's.
pub(super) fn of(blob: &dyn Blob) -> Result<Option<&'static dyn Container>> {
    let head = foreign::read_head(blob)?;
    let name = blob.path().file_name().unwrap_or_default().to_string_lossy();
    Ok(CONTAINERS.iter().copied().find(|container| container.claims(&name, &head)))
}
