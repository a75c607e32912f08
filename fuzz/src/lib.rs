//! What the targets share: one text becomes the files that a hostile user would give.
//!
//! Parts of the text end at a byte that UTF-8 does not have. A part is JSON, or tensors: one a line, `dtype shape name`, the shape as `2x3`, and behind
//! a tab the first bytes of its data. Headers and offsets are made from that, so that a mutation says something new about tensors in place of breaking
//! the file that holds them; `safetensors_header` does the breaking.

#![cfg(feature = "targets")]

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::error::{Error, Kind, Result};
use qmerge::open::Checkpoint;
use qmerge::plan::Inputs;

/// Ends a part.
pub const END: u8 = 0xff;

/// Most bytes of data that a file is given: what is read of a file may take memory in proportion.
const MOST: u64 = 1 << 24;

/// Parts of a text; those that are not there are empty.
pub fn parts<const N: usize>(text: &[u8]) -> [&[u8]; N] {
    let mut parts = text.splitn(N, |&byte| byte == END);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// An empty folder of this process.
pub fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("qmerge-fuzz-{}", std::process::id())).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a temporary folder");
    path
}

/// A line of a part of tensors.
struct Line<'t> {
    name: &'t str,
    dtype: &'t str,
    shape: Vec<u64>,
    first: &'t [u8],
    bytes: u64,
}

fn line(text: &[u8]) -> Option<Line<'_>> {
    let (text, first) = match text.iter().position(|&byte| byte == b'\t') {
        Some(tab) => (&text[..tab], &text[tab + 1..]),
        None => (text, &[][..]),
    };
    let mut words = std::str::from_utf8(text).ok()?.splitn(3, ' ');
    let (dtype, shape, name) = (words.next()?, words.next()?, words.next()?);
    let shape: Vec<u64> =
        shape.split('x').filter(|dim| !dim.is_empty()).map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    let elements = shape.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim));
    let width = match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    };
    // What overflows is left to the reader to refuse.
    let bytes = elements.and_then(|elements| elements.checked_mul(width)).unwrap_or(0);
    Some(Line { name, dtype, shape, first, bytes })
}

/// Writes a safetensors file of the tensors that a part describes. `None` if it would be too large.
pub fn tensors(part: &[u8], metadata: serde_json::Map<String, serde_json::Value>, path: &Path) -> Option<()> {
    let lines: Vec<Line<'_>> = part.split(|&byte| byte == b'\n').filter_map(line).collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata.into());
    let (mut data, mut at) = (Vec::new(), 0_u64);
    for Line { name, dtype, shape, first, bytes } in lines {
        let end = at.checked_add(bytes).filter(|&end| end <= MOST)?;
        header.insert(name.into(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        data.resize(at as usize, 0);
        data.extend_from_slice(&first[..first.len().min(bytes as usize)]);
        // Text that a mutation made shorter ends in spaces, as JSON may.
        let filler = if first.starts_with(b"{") { b' ' } else { 0 };
        data.resize(end as usize, filler);
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(path, file).expect("a temporary file");
    Some(())
}

/// Writes `config.json` and weights of a base, and an adapter beside it unless both of its parts are empty. Returns what a merge would open.
pub fn inputs([config, base, adapter_config, adapter]: [&[u8]; 4]) -> Option<Result<Inputs>> {
    let folder = folder("model");
    if !config.is_empty() {
        std::fs::write(folder.join("config.json"), config).expect("a temporary file");
    }
    tensors(base, serde_json::Map::new(), &folder.join("model.safetensors"))?;
    let beside = folder.join("adapter");
    let has_adapter = !adapter_config.is_empty() || !adapter.is_empty();
    if has_adapter {
        std::fs::create_dir(&beside).expect("a temporary folder");
        std::fs::write(beside.join("adapter_config.json"), adapter_config).expect("a temporary file");
        tensors(adapter, serde_json::Map::new(), &beside.join("adapter_model.safetensors"))?;
    }
    Some((|| {
        let base = Checkpoint::open(&folder)?;
        let adapters = if has_adapter { vec![Adapter::open(&beside, 1.0)?] } else { Vec::new() };
        Inputs::new(base, adapters)
    })())
}

/// Errors are right on hostile input; one that says that the program is at fault is not.
pub fn honest(error: &Error) {
    assert!(error.kind() != Kind::Bug, "{error:?}");
}
