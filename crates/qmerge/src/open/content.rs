//! The hash of all bytes of files.

use sha2::{Digest, Sha256};

use super::Source;
use crate::error::Result;

/// Hash of all bytes of files: of one, what the hub shows.
pub(crate) fn content(files: &[Source]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        let mut at = 0;
        while at < file.len {
            let n = buffer.len().min((file.len - at) as usize);
            let part = buffer.get_mut(..n).unwrap_or_default();
            file.read_at(at, part)?;
            hash.update(&*part);
            at += n as u64;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
