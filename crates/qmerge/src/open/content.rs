//! The hash of all bytes of files.

use sha2::{Digest, Sha256};

use super::Blob;
use super::Checkpoint;
use crate::error::Result;

/// Tensors of a model that are looked at to know it again, and bytes of each.
const SAMPLES: usize = 64;
const SAMPLE: u64 = 4096;

/// Hash of what a model's tensors are called, their types and shapes, and some bytes in the middle of some of them: it tells models of one family apart, without reading all of them.
pub(crate) fn sampled(model: &Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    let step = model.entries.len().div_ceil(SAMPLES).max(1);
    let mut buffer = Vec::new();
    for (number, entry) in model.entries.iter().enumerate() {
        hash.update(format!("{} {} {:?}\n", entry.name, entry.dtype.name(), entry.shape));
        if number.is_multiple_of(step) {
            let size = entry.bytes.min(SAMPLE);
            buffer.resize(size as usize, 0);
            model.read_at(entry, entry.bytes.saturating_sub(size) / 2, &mut buffer)?;
            hash.update(&buffer);
        }
    }
    Ok(hex(hash.finalize()))
}

/// Hash of all bytes of files: of one, what the hub shows.
pub(crate) fn content(files: &[Box<dyn Blob>]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = Vec::new();
    for file in files {
        buffer.resize(file.grain().max(1), 0);
        let mut at = 0;
        while at < file.len() {
            let n = file.len().saturating_sub(at).min(buffer.len() as u64) as usize;
            let part = buffer.get_mut(..n).unwrap_or_default();
            file.read_at(at, part)?;
            hash.update(&*part);
            at = at.saturating_add(n as u64);
        }
    }
    Ok(hex(hash.finalize()))
}

/// Bytes in hexadecimal digits, as hashes are shown.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
