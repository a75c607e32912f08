//! How a GGUF file is written: the keys of the file that it is made from, and entries of its own.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{MAGIC, Metadata, metadata};
use crate::dtype::Dtype;
use crate::open::container::{Listed, WriteContainer};

/// Writes files like one that was read: of its version, with its keys and its alignment.
#[derive(Debug)]
pub(crate) struct Writer {
    version: u32,
    alignment: u64,
    metadata: Arc<Metadata>,
}

impl Writer {
    pub(super) fn new(version: u32, alignment: u64, metadata: Arc<Metadata>) -> Self {
        Self { version, alignment, metadata }
    }

    /// Writes a file that is made, as llama.cpp writes its own.
    pub(crate) fn anew(metadata: Metadata) -> Self {
        Self { version: 3, alignment: metadata::DEFAULT_ALIGNMENT, metadata: Arc::new(metadata) }
    }
}

impl WriteContainer for Writer {
    fn ending(&self) -> &'static str {
        ".gguf"
    }

    fn alignment(&self) -> u64 {
        self.alignment
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
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(self.metadata.count().to_le_bytes());
        bytes.extend(self.metadata.bytes());
        for Listed { name, dtype, shape, start, .. } in tensors {
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
