//! The safetensors container: one file, or shards with an index.
//!
//! Layout: u64 header length (little endian), a JSON object name → {dtype, shape, data_offsets}, then the data. The
//! header must describe the data without holes or overlaps. Source: the format's README
//! (<https://github.com/huggingface/safetensors>). The parser is ours rather than the `safetensors` crate's because
//! that one keeps the last of two equal names and loses the order of `__metadata__`; the crate is the oracle in the tests.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Checkpoint, Contents, Entry, Source, byte_size};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, unsupported};

/// The format's own cap on the header: 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Opens a folder: an index with its shards, else `model.safetensors`, else every `.safetensors` file there.
pub(super) fn open_folder(folder: &Path) -> Result<Checkpoint> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|error| Error::io("list", folder, error))?
        .filter_map(|item| item.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let index = ["model.safetensors.index.json"]
        .into_iter()
        .find(|name| names.iter().any(|have| have == name))
        .map(str::to_owned)
        .or_else(|| {
            let mut found = names.iter().filter(|name| name.ends_with(".safetensors.index.json"));
            found.next().filter(|_| found.next().is_none()).cloned()
        });
    if let Some(index) = index {
        return open_index(folder, index);
    }
    let files: Vec<&String> = if names.iter().any(|name| name == "model.safetensors") {
        names.iter().filter(|name| *name == "model.safetensors").collect()
    } else {
        names.iter().filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter_")).collect()
    };
    if files.is_empty() {
        return Err(no_weights(folder, &names));
    }
    let parts = files.into_iter().map(|name| read(&folder.join(name))).collect::<Result<Vec<_>>>()?;
    Checkpoint::from_parts(folder, parts, None)
}

fn no_weights(folder: &Path, names: &[String]) -> Error {
    let has = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    if has(&|name| name.starts_with("adapter_model")) {
        return unsupported("this folder holds an adapter, not a model")
            .in_file(folder)
            .with_hint("pass it as --adapter, and the model it was trained on as --base");
    }
    if has(&|name| name.ends_with(".bin") || name.ends_with(".pth")) {
        return unsupported("the weights are pickled (.bin), and models are read as safetensors only")
            .in_file(folder)
            .with_hint("load the model once and save it with safe_serialization=True");
    }
    if has(&|name| name.ends_with(".gguf")) {
        return unsupported("GGUF models are not supported by this version").in_file(folder);
    }
    malformed("no .safetensors file in this folder").in_file(folder)
}

/// Opens one file.
pub(super) fn open_file(path: &Path) -> Result<Checkpoint> {
    Checkpoint::from_parts(path, vec![read(path)?], None)
}

/// Only the part of an index that says where tensors lie.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

fn open_index(folder: &Path, name: String) -> Result<Checkpoint> {
    let path = folder.join(&name);
    let text = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| malformed(format!("not a safetensors index: {error}")).in_file(&path))?;
    let mut files: Vec<&String> = index.weight_map.values().collect();
    files.sort();
    files.dedup();
    let mut parts = Vec::with_capacity(files.len());
    for file in files {
        // A shard is a plain file name beside the index: an index must not reach into other folders.
        if file.contains(['/', '\\']) || file == ".." || file.is_empty() {
            return Err(malformed(format!("shard name `{file}` is not a plain file name")).in_file(&path));
        }
        let shard = folder.join(file);
        if !shard.is_file() {
            return Err(malformed(format!("the shard `{file}` is missing"))
                .in_file(&path)
                .with_hint("the download is incomplete: fetch the missing file"));
        }
        parts.push(read(&shard)?);
    }
    let checkpoint = Checkpoint::from_parts(folder, parts, Some(name))?;
    for (tensor, file) in &index.weight_map {
        let found = checkpoint.get(tensor).map(|entry| checkpoint.file_of(entry));
        if found.and_then(Path::file_name).and_then(|name| name.to_str()) != Some(file) {
            return Err(malformed(format!("the index places it in `{file}`, which does not hold it"))
                .in_file(&path)
                .in_tensor(tensor));
        }
    }
    Ok(checkpoint)
}

pub(super) fn read(path: &Path) -> Result<(Source, Contents)> {
    let source = Source::open(path)?;
    let contents = read_header(&source).map_err(|error| error.in_file(path))?;
    Ok((source, contents))
}

fn read_header(source: &Source) -> Result<Contents> {
    let mut prefix = [0; 8];
    if source.len < 8 {
        return Err(malformed(format!("{} bytes is too short for a safetensors file", source.len)));
    }
    source.read_at(0, &mut prefix)?;
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER || len > source.len - 8 {
        return Err(malformed(format!(
            "the header claims {len} bytes, the file has {} (limit {MAX_HEADER})",
            source.len - 8
        ))
        .with_hint("not a safetensors file, or a truncated one: download it again"));
    }
    let mut header = vec![0; len as usize];
    source.read_at(8, &mut header)?;
    parse_header(&header, source.len - 8 - len, 8 + len)
}

/// Parses and checks a header.
///
/// `data` is the number of bytes behind the header, `base` the file offset where they begin. Entries come back in
/// header order with absolute offsets. Errors name the tensor.
pub(crate) fn parse_header(header: &[u8], data: u64, base: u64) -> Result<Contents> {
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let raw = Header
        .deserialize(&mut deserializer)
        .and_then(|raw| deserializer.end().map(|()| raw))
        .map_err(|error| malformed(format!("broken safetensors header: {error}")))?;
    let mut entries = Vec::with_capacity(raw.tensors.len());
    for (name, info) in raw.tensors {
        let entry = check_entry(&name, &info, data, base).map_err(|error| error.in_tensor(&name))?;
        entries.push(entry);
    }
    check_cover(&entries, data, base)?;
    Ok(Contents { entries, metadata: raw.metadata })
}

fn check_entry(name: &str, info: &Info, data: u64, base: u64) -> Result<Entry> {
    let dtype = Dtype::from_name(&info.dtype)
        .ok_or_else(|| unsupported(format!("element type `{}` is not known", info.dtype)))?;
    let [start, end] = info.data_offsets;
    if start > end || end > data {
        return Err(malformed(format!("data_offsets [{start}, {end}] reach outside the {data} bytes of data"))
            .with_hint("the file is truncated or broken: download it again"));
    }
    let want = byte_size(dtype, &info.shape)
        .ok_or_else(|| malformed(format!("shape {:?} of {dtype} is too large", info.shape)))?;
    if end - start != want {
        return Err(malformed(format!(
            "{} bytes of data, but shape {:?} of {dtype} takes {want}",
            end - start,
            info.shape
        )));
    }
    Ok(Entry { name: name.to_owned(), dtype, shape: info.shape.clone(), file: 0, start: base + start, bytes: want })
}

/// The ranges must cover the data exactly: an overlap would let one tensor alias another, a hole hides data.
fn check_cover(entries: &[Entry], data: u64, base: u64) -> Result<()> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| (entry.start, entry.bytes));
    let mut at = base;
    for entry in order {
        if entry.start != at {
            let what = if entry.start < at { "overlaps another tensor" } else { "leaves a hole before it" };
            return Err(malformed(format!("its data {what} (byte {})", entry.start - base)).in_tensor(&entry.name));
        }
        at = entry.start + entry.bytes;
    }
    if at != base + data {
        return Err(malformed(format!("{} bytes behind the last tensor belong to none", base + data - at)));
    }
    Ok(())
}

/// A header as written, with both maps in file order and repeated names refused.
struct Raw {
    tensors: Vec<(String, Info)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

struct Header;

impl<'de> DeserializeSeed<'de> for Header {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Raw, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Raw, A::Error> {
        let mut raw = Raw { tensors: Vec::new(), metadata: Vec::new() };
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom(format!("the name `{name}` stands twice")));
            }
            if name == "__metadata__" {
                raw.metadata = map.next_value_seed(Metadata)?;
            } else {
                raw.tensors.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}

struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            pairs.push((key, map.next_value()?));
        }
        Ok(pairs)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Err(serde::de::Error::custom("__metadata__ must be an object of strings"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str, data: u64) -> Result<Contents> {
        parse_header(json.as_bytes(), data, 8 + json.len() as u64)
    }

    #[test]
    fn order_and_metadata_are_kept() {
        let json = r#"{"__metadata__":{"z":"1","a":"2"},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}"#;
        let contents = parse(json, 12).unwrap();
        let names: Vec<_> = contents.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["w", "b"]);
        assert_eq!(contents.metadata[0], ("z".into(), "1".into()));
    }

    #[test]
    fn broken_headers_name_the_tensor_and_the_cause() {
        let cases = [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                "stands twice",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                "overlaps",
            ),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#, "hole"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, "belong to none"),
            (r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#, "reach outside"),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}"#, "takes 12"),
            (r#"{"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,16]}}"#, "Q9"),
            (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}}"#, "too large"),
            (r#"{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, "broken"),
            (r#"{"a":"#, "broken"),
        ];
        for (json, cause) in cases {
            let error = parse(json, 16).unwrap_err().to_string();
            assert!(error.contains(cause), "{error} should say {cause}");
        }
    }

    proptest! {
        /// Any list of tensors that the reference crate writes reads back the same, and a changed byte never panics.
        #[test]
        fn agrees_with_the_reference_crate(
            shapes in proptest::collection::vec(proptest::collection::vec(0_usize..5, 0..4), 1..8),
            flip in any::<(u16, u8)>(),
        ) {
            let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes.iter().enumerate()
                .map(|(i, shape)| (format!("t{i}"), shape.clone(), vec![i as u8; shape.iter().product::<usize>() * 4]))
                .collect();
            let views: Vec<_> = data.iter()
                .map(|(name, shape, bytes)| (name.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap()))
                .collect();
            let mut file = safetensors::serialize(views, None).unwrap();
            let len = u64::from_le_bytes(file[..8].try_into().unwrap());
            let (head, body) = file[8..].split_at(len as usize);
            let contents = parse_header(head, body.len() as u64, 8 + len).unwrap();
            let oracle = safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(contents.entries.len(), oracle.len());
            for entry in &contents.entries {
                let view = oracle.tensor(&entry.name).unwrap();
                prop_assert_eq!(view.shape(), &entry.shape[..]);
                prop_assert_eq!(view.data(), &file[entry.start as usize..(entry.start + entry.bytes) as usize]);
            }
            let at = 8 + flip.0 as usize % len as usize;
            file[at] ^= flip.1;
            let (head, body) = file[8..].split_at(len as usize);
            let ours = parse_header(head, body.len() as u64, 8 + len);
            if ours.is_ok() {
                prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok(), "accepted what the reference refuses");
            }
        }
    }
}
