//! Small files: read whole, and therefore with a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::foreign;
use super::store::too_large;
use crate::error::{Error, Result, malformed};

/// Most bytes of a configuration. Published ones have at most a few hundred kilobytes, or a megabyte and more with many labels.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most bytes of an index. Those of mixtures of a hundred thousand quantized experts come near half of it.
pub const MAX_INDEX: u64 = 64 << 20;
/// Most bytes of a `tokenizer.json`: the largest published ones take 40 MB, and a tokenizer some ten times its file.
pub const MAX_TOKENIZER: u64 = 128 << 20;
/// Most bytes of a report: a few hundred for each weight.
pub const MAX_REPORT: u64 = 256 << 20;

/// Reads a regular file of at most `limit` bytes.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", path, error);
    let file = File::open(path).map_err(|error| Error::input(path, error))?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(malformed("not a regular file").in_file(path));
    }
    // The length is only what the system says at this moment: what is read is held to the limit too.
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(limit)).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(limit).in_file(path));
    }
    foreign::refuse_pointer(&bytes).map_err(|error| error.in_file(path))?;
    Ok(bytes)
}

/// Reads a text file of at most `limit` bytes.
pub fn read_small_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_small(path, limit)?).map_err(|_| malformed("not UTF-8").in_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_files_and_for_what_is_none() {
        let folder = std::env::temp_dir().join(format!("qmerge-small-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("config.json");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_small_text(&file, 5).unwrap(), "12345");
        let error = read_small_text(&file, 4).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("larger than 4 bytes"), "{error}");
        std::fs::write(&file, [0xff]).unwrap();
        assert!(read_small_text(&file, 4).unwrap_err().to_string().contains("not UTF-8"));
        assert!(read_small(&folder, 4).is_err(), "a folder");
        #[cfg(unix)]
        assert!(read_small(Path::new("/dev/zero"), 4).unwrap_err().to_string().contains("regular"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
