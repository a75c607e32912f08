//! How a GGUF file is written: the keys of the file that it is made from, and entries of its own.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{MAGIC, Metadata, metadata, stack};
use crate::dtype::Dtype;
use crate::open::container::{Listed, WriteContainer};

/// Writes files like one that was read: of its version, with its keys and its alignment.
#[derive(Debug)]
pub(crate) struct Writer {
    version: u32,
    alignment: u64,
    metadata: Arc<Metadata>,
    /// Outer dimensions of one are left out, as llama-quantize does.
    is_trimmed: bool,
}

impl Writer {
    pub(super) fn new(version: u32, alignment: u64, metadata: Arc<Metadata>) -> Self {
        Self { version, alignment, metadata, is_trimmed: false }
    }

    /// Writes a file like another, with other keys.
    pub(crate) fn like(alignment: u64, metadata: Metadata) -> Self {
        Self { version: 3, alignment, metadata: Arc::new(metadata), is_trimmed: false }
    }

    /// Its keys.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The same, as llama-quantize writes it.
    pub(crate) fn trimmed(self) -> Self {
        Self { is_trimmed: true, ..self }
    }

    /// Writes a file that is made, as llama.cpp writes its own.
    pub(crate) fn anew(metadata: Metadata) -> Self {
        Self::like(metadata::DEFAULT_ALIGNMENT, metadata)
    }
}

impl WriteContainer for Writer {
    fn ending(&self) -> &'static str {
        ".gguf"
    }

    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn follows(&self, before: &str, name: &str) -> bool {
        stack::follows(before, name)
    }

    fn stores(&self, dtype: Dtype) -> bool {
        dtype.ggml_id().is_some()
    }

    /// New tensors come last: a loader goes by names.
    fn order(&self, _: (Dtype, &str), _: (Dtype, &str)) -> Ordering {
        Ordering::Equal
    }

    fn header(&self, _: &[(String, String)], tensors: &[Listed<'_>], room: Option<u64>) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        let tensors = stack::together(tensors);
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(self.metadata.count().to_le_bytes());
        bytes.extend(self.metadata.bytes());
        for (name, Listed { dtype, shape, start, .. }) in &tensors {
            let outer = shape.len().saturating_sub(1);
            let ones = shape.iter().take(outer).take_while(|size| self.is_trimmed && **size == 1).count();
            let shape = shape.get(ones..).unwrap_or_default();
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend((shape.len() as u32).to_le_bytes());
            for size in shape.iter().rev() {
                bytes.extend((*size as u64).to_le_bytes());
            }
            // The plan takes types that are stored only.
            bytes.extend(dtype.ggml_id().unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(start.to_le_bytes());
        }
        let len = (bytes.len() as u64).next_multiple_of(self.alignment);
        bytes.resize(room.unwrap_or(len).max(len) as usize, 0);
        bytes
    }
}
