//! llama.cpp's importance matrices: sums of squares of what each tensor of a model was given, by input.
//!
//! Two forms (llama.cpp, `tools/imatrix/imatrix.cpp`). The old one is binary: i32 number of entries; by entry i32 length and bytes of the name, i32 number of calls, i32
//! number of values, that many f32, which are means times calls; then, in later releases, i32 chunks, i32 length and bytes of the text's path. The new one is a GGUF
//! file whose `general.type` is `imatrix`, with two tensors of f32 for each: `NAME.in_sum2`, and `NAME.counts`, one number for each expert. All numbers are little endian.

use std::collections::BTreeMap;
use std::path::Path;

use super::gguf::{self, Value};
use super::local::LocalFile;
use super::{Blob, Entry};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, malformed};

/// Longest name or text, beyond which a file is not one of these.
const MAX_TEXT: u64 = 1 << 16;

/// What one tensor was given.
#[derive(Debug, PartialEq)]
pub(crate) struct Importance {
    /// As GGUF names the tensor ("blk.0.attn_q.weight").
    pub(crate) name: String,
    /// Mean squares by input, one list for each expert; empty where an expert was given nothing.
    pub(crate) means: Vec<Vec<f32>>,
    /// Inputs that each expert was given; what the old form does not say is 0.
    pub(crate) counts: Vec<usize>,
}

/// An importance matrix.
#[derive(Debug)]
pub(crate) struct Importances {
    pub(crate) all: Vec<Importance>,
    /// The text that it was taken from, as the file says.
    pub(crate) text: Option<String>,
}

impl Importance {
    /// What llama-quantize takes of it for a matrix, or a stack of them: means by input, ones for an expert that was given nothing.
    pub(crate) fn columns(&self) -> Vec<f32> {
        let features = self.means.iter().map(Vec::len).max().unwrap_or(0);
        let one = |means: &Vec<f32>| if means.is_empty() { vec![1.0; features] } else { means.clone() };
        self.means.iter().flat_map(one).collect()
    }
}

/// Reads an importance matrix in either form. Nothing is allocated that the file is too short to fill.
pub(crate) fn read(path: &Path) -> Result<Importances> {
    let blob = LocalFile::open(path).map_err(|error| match error.kind() {
        Kind::Io if !path.exists() => Error::input(path, std::io::ErrorKind::NotFound.into()),
        _ => error,
    })?;
    read_blob(&blob).map_err(|error| error.in_file(path))
}

fn read_blob(blob: &dyn Blob) -> Result<Importances> {
    let mut found = match (Cursor { blob, at: 0 }).array::<4>() {
        Ok(head) if gguf::is_gguf(&head) => new(blob)?,
        _ => old(&mut Cursor { blob, at: 0 })?,
    };
    if found.all.is_empty() {
        return Err(malformed("an importance matrix without entries"));
    }
    found.text = found.text.filter(|text| !text.is_empty());
    Ok(found)
}

/// A place in a file.
struct Cursor<'b> {
    blob: &'b dyn Blob,
    at: u64,
}

impl Cursor<'_> {
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.blob.len());
        let Some(end) = end else {
            return Err(malformed(format!(
                "not an importance matrix, or cut off: {count} bytes are to follow byte {}, and it has {}",
                self.at,
                self.blob.len()
            ))
            .with_hint("llama.cpp's llama-imatrix writes such a file"));
        };
        let mut bytes = vec![0; count as usize];
        self.blob.read_at(self.at, &mut bytes)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes(N as u64)?);
        Ok(array)
    }

    /// A number that the old form stores with a sign.
    fn count(&mut self) -> Result<u64> {
        let number = self.array().map(i32::from_le_bytes)?;
        u64::try_from(number).map_err(|_| malformed(format!("not an importance matrix: {number} of something")))
    }

    fn text(&mut self, length: u64) -> Result<String> {
        if length > MAX_TEXT {
            return Err(malformed(format!("not an importance matrix: a name of {length} bytes")));
        }
        self.bytes(length).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn floats(&mut self, count: u64) -> Result<Vec<f32>> {
        let bytes = self.bytes(count.saturating_mul(4))?;
        Ok(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
    }
}

fn old(cursor: &mut Cursor<'_>) -> Result<Importances> {
    let entries = cursor.count()?;
    let mut all = Vec::new();
    for _ in 0..entries {
        let length = cursor.count()?;
        let name = cursor.text(length)?;
        let calls = cursor.count()?;
        let number = cursor.count()?;
        let mut mean = cursor.floats(number)?;
        // A file of no calls holds the means themselves.
        mean.iter_mut().for_each(|value| *value /= calls.max(1) as f32);
        all.push(Importance { name, means: vec![mean], counts: vec![0] });
    }
    // Early releases end here.
    let mut text = || {
        cursor.count().ok()?;
        let length = cursor.count().ok()?;
        cursor.text(length).ok()
    };
    Ok(Importances { text: text(), all })
}

fn new(blob: &dyn Blob) -> Result<Importances> {
    let contents = gguf::read(blob)?;
    let keys = contents.gguf.as_deref();
    if keys.and_then(|keys| keys.text("general.type")) != Some("imatrix") {
        return Err(malformed("a GGUF file, but no importance matrix: its `general.type` is not `imatrix`")
            .with_hint("llama.cpp's llama-imatrix writes one"));
    }
    let text = keys.and_then(|keys| keys.list("imatrix.datasets")?.iter().last()).and_then(|last| match last {
        Value::Text(text) => Some(text.to_owned()),
        _ => None,
    });
    let mut found: BTreeMap<&str, [Option<&Entry>; 2]> = BTreeMap::new();
    for entry in &contents.entries {
        let (part, name) = match (entry.name.strip_suffix(".in_sum2"), entry.name.strip_suffix(".counts")) {
            (Some(name), _) => (0, name),
            (_, Some(name)) => (1, name),
            _ => continue,
        };
        if entry.dtype != Dtype::F32 {
            return Err(malformed("not a tensor of f32, as those of an importance matrix are").in_tensor(name));
        }
        if let Some(place) = found.entry(name).or_default().get_mut(part) {
            *place = Some(entry);
        }
    }
    let mut all = Vec::new();
    for (name, parts) in found {
        let [Some(sums), Some(counts)] = parts else {
            return Err(malformed("sums without counts, or counts without sums").in_tensor(name));
        };
        all.push(importance(blob, name, sums, counts).map_err(|error| error.in_tensor(name))?);
    }
    Ok(Importances { all, text })
}

/// Sums of (experts, inputs), or of one matrix's inputs, and how many inputs each expert was given.
fn importance(blob: &dyn Blob, name: &str, sums: &Entry, counts: &Entry) -> Result<Importance> {
    let experts: u64 = sums.shape.iter().rev().skip(1).map(|&size| size as u64).product();
    if sums.elements() == 0 || counts.elements() != experts && counts.elements() != 1 {
        let (have, given) = (sums.elements(), counts.elements());
        return Err(malformed(format!("{have} sums of {experts} matrices with {given} counts")));
    }
    let values = |entry: &Entry| Cursor { blob, at: entry.start }.floats(entry.elements());
    let (sums, counts) = (values(sums)?, values(counts)?);
    let features = (sums.len() as u64).checked_div(experts).unwrap_or(0).max(1) as usize;
    let mut found = Importance { name: name.to_owned(), means: Vec::new(), counts: Vec::new() };
    for (sums, count) in sums.chunks(features).zip(counts.iter().cycle()) {
        let is_given = *count > 0.0;
        found.means.push(if is_given { sums.iter().map(|sum| sum / count).collect() } else { Vec::new() });
        found.counts.push(if is_given { *count as usize } else { 0 });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GGUF's types: a value in a tensor, and those of its keys.
    const F32: u32 = 0;
    const U32: u32 = 4;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;

    fn read_bytes(name: &str, bytes: &[u8]) -> Result<Importances> {
        let path = std::env::temp_dir().join(format!("qmerge-imatrix-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let found = read(&path);
        std::fs::remove_file(&path).unwrap();
        found
    }

    fn old_bytes() -> Vec<u8> {
        let mut bytes = 1_i32.to_le_bytes().to_vec();
        bytes.extend(19_i32.to_le_bytes());
        bytes.extend(b"blk.0.attn_q.weight");
        bytes.extend(4_i32.to_le_bytes());
        bytes.extend(3_i32.to_le_bytes());
        [8.0_f32, 0.0, 2.0].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes.extend(4_i32.to_le_bytes());
        bytes.extend(4_i32.to_le_bytes());
        bytes.extend(b"text");
        bytes
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// Two experts with two inputs each, of which the second was given nothing.
    fn gguf_bytes(kind: &str) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend([string("general.type"), STRING.to_le_bytes().to_vec(), string(kind)].concat());
        bytes
            .extend([string("imatrix.chunk_count"), U32.to_le_bytes().to_vec(), 2_u32.to_le_bytes().to_vec()].concat());
        bytes
            .extend([string("imatrix.datasets"), ARRAY.to_le_bytes().to_vec(), STRING.to_le_bytes().to_vec()].concat());
        bytes.extend([1_u64.to_le_bytes().to_vec(), string("wiki.txt")].concat());
        for (part, sizes, offset) in [("in_sum2", [2_u64, 2], 0_u64), ("counts", [1, 2], 32)] {
            bytes.extend(string(&format!("blk.1.ffn_up_exps.weight.{part}")));
            bytes.extend(2_u32.to_le_bytes());
            sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(F32.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        [6.0_f32, 3.0, 0.0, 0.0].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        [3.0_f32, 0.0].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes
    }

    #[test]
    fn both_forms_are_read() {
        let found = read_bytes("old", &old_bytes()).unwrap();
        let name = "blk.0.attn_q.weight".to_owned();
        assert_eq!(found.all, [Importance { name, means: vec![vec![2.0, 0.0, 0.5]], counts: vec![0] }]);
        assert_eq!(found.text.as_deref(), Some("text"));
        let found = read_bytes("new", &gguf_bytes("imatrix")).unwrap();
        let name = "blk.1.ffn_up_exps.weight".to_owned();
        let means = vec![vec![2.0, 1.0], vec![]];
        assert_eq!(found.all, [Importance { name, means, counts: vec![3, 0] }]);
        assert_eq!(found.text.as_deref(), Some("wiki.txt"));
    }

    /// Whatever is cut off or changed is an error or another matrix, never a panic or an allocation that the file does not fill.
    #[test]
    fn what_the_file_says_is_not_believed() {
        assert!(read_bytes("model", &gguf_bytes("model")).unwrap_err().to_string().contains("no importance matrix"));
        for (name, whole) in [("a", old_bytes()), ("b", gguf_bytes("imatrix"))] {
            let data_end = if name == "a" { whole.len() - 12 } else { whole.len() };
            for end in 0..data_end {
                assert!(read_bytes(name, &whole[..end]).is_err(), "{name} {end}");
            }
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] = 0xff;
                let _ = read_bytes(name, &changed);
            }
        }
        for bytes in [&b""[..], b"{}", &i32::MAX.to_le_bytes(), &[0; 12], &[0xff; 64]] {
            assert!(read_bytes("c", bytes).is_err(), "{bytes:?}");
        }
    }
}
