//! The safetensors container.
//!
//! Layout: u64 header length (little endian), a JSON object name → {dtype, shape, data_offsets}, then the data. The
//! header must describe the data without holes or overlaps. Source: the format's README
//! (<https://github.com/huggingface/safetensors>). The parser is ours rather than the `safetensors` crate's because
//! that one keeps the last of two equal names and loses the order of `__metadata__`; the crate is the oracle in the tests.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::container::{Container, Listed, WriteContainer};
use super::{Blob, Contents, Entry, byte_size};
use crate::dtype::Dtype;
use crate::error::{Result, malformed, unsupported};

/// The format's own cap on the header: 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Safetensors files.
#[derive(Debug)]
pub(crate) struct Safetensors;

impl Container for Safetensors {
    /// Of any name where it begins as these files do: the length of a header, and the bracket that opens it.
    fn claims(&self, name: &str, head: &[u8]) -> bool {
        let begins = head
            .split_first_chunk()
            .is_some_and(|(length, rest)| rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= MAX_HEADER);
        name.ends_with(self.ending()) || begins
    }

    fn read(&self, blob: &dyn Blob) -> Result<Contents> {
        read(blob)
    }
}

impl WriteContainer for Safetensors {
    fn ending(&self) -> &'static str {
        ".safetensors"
    }

    /// The order of new tensors aligns them.
    fn alignment(&self) -> u64 {
        1
    }

    fn stores(&self, dtype: Dtype) -> bool {
        Dtype::from_name(dtype.name()).is_some()
    }

    /// That of the reference's writer: larger types first.
    fn order(&self, a: (Dtype, &str), b: (Dtype, &str)) -> Ordering {
        b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1))
    }

    /// Padded with spaces to a multiple of 8 bytes, as a header may be.
    fn header(&self, metadata: &[(String, String)], tensors: &[Listed<'_>], room: Option<u64>) -> Vec<u8> {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let mut items = Vec::with_capacity(tensors.len().saturating_add(1));
        if !metadata.is_empty() {
            let pairs: Vec<String> =
                metadata.iter().map(|(key, value)| format!("{}:{}", quote(key), quote(value))).collect();
            items.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
        }
        for Listed { name, dtype, shape, start, end } in tensors {
            let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
            let (name, dims) = (quote(name), dims.join(","));
            items.push(format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{dims}],\"data_offsets\":[{start},{end}]}}"));
        }
        let json = format!("{{{}}}", items.join(","));
        let padded = room.map_or(json.len().next_multiple_of(8), |room| room.saturating_sub(8) as usize);
        let mut bytes = (padded as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(padded.saturating_add(8), b' ');
        bytes
    }
}

/// Reads the header of a file.
fn read(blob: &dyn Blob) -> Result<Contents> {
    let mut prefix = [0; 8];
    let Some(behind) = blob.len().checked_sub(8) else {
        return Err(malformed(format!("{} bytes is too short for a safetensors file", blob.len())));
    };
    blob.read_at(0, &mut prefix)?;
    let len = u64::from_le_bytes(prefix);
    let Some(data) = behind.checked_sub(len).filter(|_| len <= MAX_HEADER) else {
        return Err(malformed(format!("the header claims {len} bytes, the file has {behind} (limit {MAX_HEADER})"))
            .with_hint("not a safetensors file, or a truncated one: download it again"));
    };
    let mut header = vec![0; len as usize];
    blob.read_at(8, &mut header)?;
    parse_header(&header, data, len.saturating_add(8))
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
    Ok(Contents { entries, metadata: raw.metadata, writer: Some(Arc::new(Safetensors)), gguf: None })
}

fn check_entry(name: &str, info: &Info, data: u64, base: u64) -> Result<Entry> {
    let dtype = Dtype::from_name(&info.dtype)
        .ok_or_else(|| unsupported(format!("element type `{}` is not known", info.dtype)))?;
    let [start, end] = info.data_offsets;
    let length = end.checked_sub(start).filter(|_| end <= data);
    let (Some(length), Some(start)) = (length, base.checked_add(start)) else {
        return Err(malformed(format!("data_offsets [{start}, {end}] reach outside the {data} bytes of data"))
            .with_hint("the file is truncated or broken: download it again"));
    };
    let want = byte_size(dtype, &info.shape)
        .ok_or_else(|| malformed(format!("shape {:?} of {dtype} is too large", info.shape)))?;
    if length != want {
        return Err(malformed(format!("{length} bytes of data, but shape {:?} of {dtype} takes {want}", info.shape)));
    }
    Ok(Entry { name: name.to_owned(), dtype, shape: info.shape.clone(), file: 0, start, bytes: want })
}

/// The ranges must cover the data exactly: an overlap would let one tensor alias another, a hole hides data.
fn check_cover(entries: &[Entry], data: u64, base: u64) -> Result<()> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| (entry.start, entry.bytes));
    let mut at = base;
    for entry in order {
        if entry.start != at {
            let what = if entry.start < at { "overlaps another tensor" } else { "leaves a hole before it" };
            return Err(malformed(format!("its data {what} (byte {})", entry.start.saturating_sub(base)))
                .in_tensor(&entry.name));
        }
        at = entry.start.saturating_add(entry.bytes);
    }
    let left = base.saturating_add(data).saturating_sub(at);
    if left > 0 {
        return Err(
            malformed(format!("{left} bytes behind the last tensor belong to none")).with_hint(super::gguf::APPENDED)
        );
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
