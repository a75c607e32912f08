use super::*;
use crate::open::container::Listed;

/// A string as GGUF stores it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A key with a value of that type.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// A tensor's entry; dimensions as GGUF has them.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> =
        (dims.len() as u32).to_le_bytes().into_iter().chain(dims.iter().flat_map(|d| d.to_le_bytes())).collect();
    [text(name), dims, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

/// A file with that much data.
fn file(version: u32, counts: [u64; 2], parts: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = [MAGIC, &version.to_le_bytes(), &counts[0].to_le_bytes(), &counts[1].to_le_bytes()].concat();
    bytes.extend(parts.concat());
    if data > 0 {
        bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
    }
    bytes
}

fn parsed(bytes: Vec<u8>) -> Result<Contents> {
    read(&Bytes(bytes))
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("testdata/gguf/{name}")).unwrap()
}

/// What is written of a file that was read is its header, byte for byte.
#[test]
fn a_header_is_written_as_it_was_read() {
    for name in ["container.gguf", "split-00001-of-00003.gguf", "split-00003-of-00003.gguf"] {
        let bytes = golden(name);
        let Contents { entries, writer, .. } = parsed(bytes.clone()).unwrap();
        let data = entries[0].start;
        let listed = |entry: &Entry| (entry.name.clone(), entry.dtype, entry.shape.clone(), entry.start - data);
        let listed: Vec<_> = entries.iter().map(listed).collect();
        let listed: Vec<Listed<'_>> = listed
            .iter()
            .map(|(name, dtype, shape, start)| Listed {
                name,
                dtype: *dtype,
                shape: shape.clone(),
                start: *start,
                end: 0,
            })
            .collect();
        let writer = writer.unwrap();
        assert_eq!(writer.header(&[], &listed, None), bytes[..data as usize], "{name}");
        assert_eq!(writer.alignment(), 32);
    }
}

#[test]
fn values_of_all_types_are_read() {
    let metadata = parsed(golden("container.gguf")).unwrap().gguf.unwrap();
    assert_eq!(metadata.architecture(), "llama");
    let expected = [
        ("general.name", Value::Text("golden ünïcode")),
        ("llama.block_count", Value::Integer(1)),
        ("x.f32", Value::Float(0.1)),
        ("x.f64", Value::Float(0.1)),
        ("x.bool", Value::Bool(true)),
        ("x.i8", Value::Integer(-5)),
        ("x.u64", Value::Integer(9_223_372_036_854_775_809)),
        ("x.i64", Value::Integer(-4_611_686_018_427_387_904)),
        ("x.u16", Value::Integer(65_535)),
    ];
    for (key, value) in expected {
        assert_eq!(metadata.get(key), Some(value), "{key}");
    }
    let list = |key: &str| metadata.list(key).unwrap().iter().collect::<Vec<_>>();
    assert_eq!(list("x.arr_s"), [Value::Text("a"), Value::Text(""), Value::Text("ccc")]);
    assert_eq!(list("x.arr_i"), [1, -2, 3].map(Value::Integer));
    assert_eq!(list("x.arr_f"), [0.5, 1.5].map(Value::Float));
    assert_eq!(list("x.arr_b"), [true, false].map(Value::Bool));
    assert_eq!(metadata.get("x.none"), None);
}

#[test]
fn versions_and_alignments_are_held_to() {
    let aligned = |alignment: u32| key("general.alignment", 4, &alignment.to_le_bytes());
    let tensors = [tensor("a", &[3], 0, 0), tensor("b", &[2, 1], 1, 64)];
    let bytes = |version, key: Vec<u8>| file(version, [2, 1], &[&[key][..], &tensors].concat(), 128);
    for version in [2, 3] {
        let mut bytes = bytes(version, aligned(64));
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let contents = parsed(bytes).unwrap();
        let places: Vec<_> =
            contents.entries.iter().map(|e| (e.name.as_str(), e.start % 64, e.bytes, e.shape.clone())).collect();
        assert_eq!(places, [("a", 0, 12, vec![3]), ("b", 0, 4, vec![1, 2])]);
    }
    for (bytes, cause) in [
        (bytes(1, aligned(64)), "version 1"),
        (bytes(4, aligned(64)), "version 4"),
        (bytes(3_u32.swap_bytes(), aligned(64)), "big-endian"),
        (bytes(3, aligned(0)), "general.alignment"),
        (bytes(3, aligned(48)), "general.alignment"),
        (bytes(3, key("general.alignment", 10, &64_u64.to_le_bytes())), "general.alignment"),
        // The default is 32.
        (bytes(3, key("x", 4, &64_u32.to_le_bytes())), "leaves a hole"),
    ] {
        let error = parsed(bytes).unwrap_err().to_string();
        assert!(error.contains(cause), "{error} should say {cause}");
    }
}

#[test]
fn broken_files_name_the_cause() {
    let one = |tensor: Vec<u8>, data: usize| file(3, [1, 0], &[tensor], data);
    let two = |a: Vec<u8>, b: Vec<u8>, data: usize| file(3, [2, 0], &[a, b], data);
    let keys = |keys: &[Vec<u8>]| file(3, [0, keys.len() as u64], keys, 0);
    let list = |kind: u32, len: u64| [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    let huge = 1_u64 << 60;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGU".to_vec(), "are to follow"),
        (b"GGUX\x03\0\0\0".to_vec(), "does not begin"),
        (file(3, [huge, 0], &[], 0), "claims 1152921504606846976 tensors"),
        (file(3, [u64::MAX, 0], &[], 0), "tensors"),
        (file(3, [0, huge], &[], 0), "keys"),
        (keys(&[key("a", 13, &[0])]), "`a`: a value of type 13"),
        (keys(&[key("", 0, &[0])]), "without a name"),
        (keys(&[key("a", 0, &[0]), key("a", 0, &[0])]), "`a` stands twice"),
        (keys(&[key("a", 8, &huge.to_le_bytes())]), "`a`: 1152921504606846976 bytes"),
        (keys(&[key("a", 8, &u64::MAX.to_le_bytes())]), "bytes are to follow"),
        (keys(&[key("a", 9, &list(8, huge))]), "`a`: the header claims"),
        (keys(&[key("a", 9, &list(12, huge))]), "bytes are to follow"),
        (keys(&[key("a", 9, &list(12, u64::MAX))]), "a list of"),
        (keys(&[key("a", 9, &list(9, 1))]), "list of lists"),
        (keys(&[key("a", 4, &[0])]), "are to follow"),
        (one(tensor("a", &[8; 5], 0, 0), 32), "5 dimensions"),
        (one(tensor("a", &[u64::MAX], 0, 0), 32), "negative"),
        (one(tensor("a", &[0, 1 << 40], 0, 0), 0), "`a`"),
        (one(tensor(&"a".repeat(1 << 20), &[0, 1, 1 << 14], 0, 0), 0), "has 1048576 bytes"),
        (one(tensor("a", &[1 << 40, 1 << 40], 0, 0), 32), "too large"),
        (one(tensor("a", &[8], 4, 0), 32), "gave up"),
        (one(tensor("a", &[8], 63, 0), 32), "type 63"),
        (one(tensor("a", &[8], 99, 0), 32), "type 99"),
        (one(tensor("a", &[8], 0, 32), 64), "hole"),
        (one(tensor("a", &[64], 0, 0), 32), "its data ends at byte"),
        (one(tensor("a", &[8], 0, 0), 64), "belong to none"),
        (two(tensor("a", &[9], 0, 0), tensor("b", &[8], 0, 32), 96), "`b`: its data overlaps"),
        (two(tensor("a", &[8], 0, 0), tensor("a", &[8], 0, 32), 64), "stands twice"),
        (file(3, [2, 0], &[tensor("a", &[8], 0, 0)], 0), "are to follow"),
        (one([&4_u64.to_le_bytes()[..], b"\xff\xff\xff\xff", &[0; 20]].concat(), 0), "not UTF-8"),
    ];
    for (bytes, cause) in cases {
        let error = parsed(bytes).unwrap_err().to_string();
        assert!(error.contains(cause), "{error} should say {cause}");
    }
}

/// Every file that is cut short is refused, or it has lost nothing but zeros at its end.
#[test]
fn no_cut_passes() {
    let whole = golden("split-00003-of-00003.gguf");
    let end = parsed(whole.clone()).unwrap().entries.iter().map(|entry| entry.start + entry.bytes).max().unwrap();
    for cut in 0..whole.len() {
        assert_eq!(parsed(whole[..cut].to_vec()).is_ok(), cut as u64 >= end, "{cut}");
    }
}

/// What is called a GGUF file and is none is told so, however short it is.
#[test]
fn a_name_alone_makes_no_file() {
    let path = std::env::temp_dir().join(format!("qmerge-named-{}.gguf", std::process::id()));
    for (bytes, told) in [(&b""[..], "the file has 0"), (b"GGU", "the file has 3"), (b"GGML, once", "not a GGUF file")]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = format!("{:?}", crate::open::Checkpoint::open(&path).unwrap_err());
        assert!(error.contains(told) && error.contains("download it again"), "{error}");
    }
    std::fs::remove_file(path).unwrap();
}

/// A changed byte never panics, and what is accepted lies in the file.
#[test]
fn no_changed_byte_panics() {
    let whole = golden("container.gguf");
    let header = parsed(whole.clone()).unwrap().entries[0].start as usize;
    for at in 0..header {
        for flip in [1, 0x40, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(contents) = parsed(bytes) {
                assert!(contents.entries.iter().all(|entry| entry.start + entry.bytes <= whole.len() as u64));
            }
        }
    }
}
