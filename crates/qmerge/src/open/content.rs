//! The hash of all bytes of files.

use sha2::{Digest, Sha256};

use super::Blob;
use crate::error::Result;

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
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
