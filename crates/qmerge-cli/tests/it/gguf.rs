//! GGUF files as bases: what is merged into one is what is merged into the checkpoint that it was made of, and all else stays byte for byte.

use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::model::{self, Folder, Tensor, copy_folder, done, read, run, stderr};

const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;

/// A tensor of a file: name, dimensions with the outermost first, number of its type, bytes.
type Stored = (String, Vec<usize>, u32, Vec<u8>);

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn string(key: &str, value: &str) -> Vec<u8> {
    [text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat()
}

fn number(key: &str, value: u32) -> Vec<u8> {
    [text(key), 4_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

/// Keys as llama.cpp's converter writes them, for the tiny model of the tests.
fn keys(architecture: &str) -> Vec<Vec<u8>> {
    let own = |key: &str, value| number(&format!("{architecture}.{key}"), value);
    vec![
        string("general.architecture", architecture),
        string("general.name", "tiny"),
        own("block_count", 2),
        own("embedding_length", 64),
        own("feed_forward_length", 128),
        own("context_length", 128),
        own("attention.head_count", HEADS),
        own("attention.head_count_kv", KV_HEADS),
        number("general.alignment", 64),
        string("x.unknown", "kept"),
    ]
}

/// A file with an alignment of 64 bytes.
fn gguf(path: &Path, keys: &[Vec<u8>], tensors: &[Stored]) {
    let mut bytes = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    bytes.extend(keys.concat());
    let mut offset = 0_u64;
    for (name, shape, kind, data) in tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += (data.len() as u64).next_multiple_of(64);
    }
    for (.., data) in tensors {
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        bytes.extend(data);
    }
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// GGUF's name of a Llama's tensor.
fn stored_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj.", "."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Rows of queries and keys as the converter for Llama puts them: those of the two halves of a head in turn.
fn paired(name: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let heads = match name {
        _ if name.contains("q_proj") => HEADS,
        _ if name.contains("k_proj") => KV_HEADS,
        _ => return data.to_vec(),
    } as usize;
    let (row, head) = (data.len() / shape[0], shape[0] / heads);
    let mut paired = Vec::new();
    for h in 0..heads {
        for i in 0..head / 2 {
            for half in 0..2 {
                let at = (h * head + half * head / 2 + i) * row;
                paired.extend_from_slice(&data[at..at + row]);
            }
        }
    }
    paired
}

/// The tensors of a checkpoint as a GGUF file of the architecture Llama has them.
fn converted(tensors: &[Tensor]) -> Vec<Stored> {
    let kind = |dtype| match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 30,
        other => panic!("{other:?}"),
    };
    let one = |(name, dtype, shape, data): &Tensor| {
        (stored_name(name), shape.clone(), kind(*dtype), paired(name, shape, data))
    };
    tensors.iter().map(one).collect()
}

fn testdata(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata/tiny-llama").join(name)
}

/// A checkpoint in `hf`, the same in `base.gguf`, and an adapter.
fn model(base: &str, adapter: &str) -> Folder {
    let folder = Folder::new();
    copy_folder(&testdata("bases").join(base), &folder.join("hf"));
    copy_folder(&testdata("adapters").join(adapter), &folder.join("adapter"));
    gguf(&folder.join("base.gguf"), &keys("llama"), &converted(&read(&folder.join("hf/model.safetensors"))));
    folder
}

fn refused(folder: &Folder, args: &[&str], words: &[&str]) {
    model::refused(folder, args, words);
    assert!(!folder.join("out").exists() && !folder.join("out.gguf").exists(), "{args:?}");
}

fn merge<'a>(base: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["merge", "--base", base, "--adapter", "adapter", "-o", out, "--rounding", "nearest", "--quiet"]
}

/// Merges both by a method, and holds the one against the other, converted.
fn same(base: &str, adapter: &str, rounding: &str) -> Folder {
    let folder = model(base, adapter);
    let more = ["--rounding", rounding, "--measure", "never"];
    for (base, out) in [("hf", "merged-hf"), ("base.gguf", "merged.gguf")] {
        let merge = ["merge", "--base", base, "--adapter", "adapter", "-o", out, "--quiet"];
        done(&folder, &[&merge[..], &more].concat());
    }
    let mut merged = converted(&read(&folder.join("merged-hf/model.safetensors")));
    // A new tensor comes where its embedding is.
    let own = names(&folder.join("merged.gguf"));
    merged.sort_by_key(|(name, ..)| own.iter().position(|own| own == name));
    gguf(&folder.join("expected.gguf"), &keys("llama"), &merged);
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(bytes("merged.gguf") == bytes("expected.gguf"), "{base} {adapter} {rounding}");
    assert_ne!(bytes("merged.gguf"), bytes("base.gguf"));
    folder
}

/// Names of a file's tensors, in its order.
fn names(path: &Path) -> Vec<String> {
    let checkpoint = qmerge::open::Checkpoint::open(path).unwrap();
    checkpoint.entries.iter().map(|entry| entry.name.clone()).collect()
}

#[test]
fn a_merge_into_gguf_is_that_into_the_checkpoint() {
    for (base, adapter, rounding) in [
        ("base-bf16", "plain", "nearest"),
        ("base-bf16", "dora", "nearest"),
        ("base-bf16", "mts-lmhead", "nearest"),
        ("base-bias-bf16", "bias-all", "nearest"),
        // Without data, and with the model run.
        ("base-bf16", "plain", "auto"),
        ("base-bf16", "plain", "adapter"),
    ] {
        same(base, adapter, rounding);
    }
}

/// The head parts from the embedding: llama.cpp takes `output.weight` where there is one.
#[test]
fn embeddings_part() {
    let folder = same("base-tied-bf16", "lmhead-target-tied", "nearest");
    assert!(names(&folder.join("merged.gguf")).contains(&"output.weight".to_owned()));
}

#[test]
fn the_commands_take_it() {
    let folder = model("base-bf16", "plain");
    let plan: Value = serde_json::from_str(&done(
        &folder,
        &["merge", "base.gguf", "adapter", "-o", "out.gguf", "--dry-run", "--json"],
    ))
    .unwrap();
    assert_eq!(plan["files"][0]["name"], "base.gguf");
    assert!(!folder.join("out.gguf").exists());
    done(&folder, &merge("base.gguf", "out.gguf"));
    let verified =
        done(&folder, &["verify", "--base", "base.gguf", "--adapter", "adapter", "--merged", "out.gguf", "--json"]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(verified["answer"], "yes", "{}", verified["text"]);
    // Against a merge of the checkpoint itself, whose rows lie in another order.
    done(&folder, &merge("hf", "merged-hf"));
    let across =
        done(&folder, &["verify", "--base", "base.gguf", "--adapter", "adapter", "--merged", "merged-hf", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&across).unwrap()["answer"], "yes", "{across}");
    let inspected: Value = serde_json::from_str(&done(&folder, &["inspect", "out.gguf", "--json"])).unwrap();
    assert_eq!(inspected["model_type"], "llama");
    assert_eq!(inspected["format"], "bf16");
    assert_eq!(inspected["merged_by_qmerge"], true);
    let report: Value = serde_json::from_slice(&std::fs::read(folder.join("out.qmerge-report.json")).unwrap()).unwrap();
    assert_eq!(report["weights"][0]["name"], "model.layers.0.mlp.down_proj.weight");
    // Twice the same adapter.
    refused_again(&folder);
    done(&folder, &merge("base.gguf", "out-folder"));
    let read = |path: &str| std::fs::read(folder.join(path)).unwrap();
    assert_eq!(read("out-folder/base.gguf"), read("out.gguf"));
    assert!(folder.join("out-folder/README.md").exists() && folder.join("out-folder/qmerge-report.json").exists());
    assert!(!folder.join("out-folder/config.json").exists());
}

fn refused_again(folder: &Folder) {
    let output = run(folder.path(), &merge("out.gguf", "twice.gguf"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is merged into it already"), "{}", stderr(&output));
}

#[test]
fn a_model_in_parts_keeps_its_parts() {
    let folder = model("base-bf16", "plain");
    let all = converted(&read(&folder.join("hf/model.safetensors")));
    let (first, second) = all.split_at(7);
    let split = |number: u16| {
        let short =
            |key: &str, value: u16| [text(key), 2_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat();
        let count =
            [text("split.tensors.count"), 5_u32.to_le_bytes().to_vec(), (all.len() as i32).to_le_bytes().to_vec()];
        vec![short("split.no", number), short("split.count", 2), count.concat()]
    };
    let part = |number| format!("parts/m-0000{number}-of-00002.gguf");
    gguf(&folder.join(&part(1)), &[keys("llama"), split(0)].concat(), first);
    gguf(&folder.join(&part(2)), &[split(1), vec![number("general.alignment", 64)]].concat(), second);
    refused(&folder, &merge(&part(1), "out.gguf"), &["2 weight files", "must be a folder"]);
    done(&folder, &merge("base.gguf", "merged.gguf"));
    let whole = qmerge::open::Checkpoint::open(&folder.join("merged.gguf")).unwrap();
    // By any part, or by their folder.
    for (number, base) in [part(1), part(2), "parts".into()].iter().enumerate() {
        let out = format!("out-{number}");
        done(&folder, &merge(base, &out));
        let merged = qmerge::open::Checkpoint::open(&folder.join(&out)).unwrap();
        assert_eq!(merged.files.len(), 2);
        for entry in &merged.entries {
            let own = whole.get(&entry.name).unwrap();
            assert_eq!(merged.read_small(entry, 1 << 20).unwrap(), whole.read_small(own, 1 << 20).unwrap());
        }
        for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] {
            let [merged, base] = [out.as_str(), "parts"].map(|at| std::fs::read(folder.join(at).join(name)).unwrap());
            // Headers, and what no adapter changes behind them.
            assert_eq!((&merged[..900], merged.len()), (&base[..900], base.len()), "{name}");
        }
    }
    std::fs::remove_file(folder.join(&part(2))).unwrap();
    refused(&folder, &merge(&part(1), "out"), &["m-00002-of-00002.gguf", "is missing"]);
    std::fs::copy(folder.join(&part(1)), folder.join(&part(2))).unwrap();
    refused(&folder, &merge(&part(1), "out"), &["part 2 of 2", "split.no"]);
}

#[test]
fn what_cannot_be_right_is_refused() {
    let folder = model("base-bf16", "plain");
    let tensors = converted(&read(&folder.join("hf/model.safetensors")));
    let base = |name: &str, keys: &[Vec<u8>], tensors: &[Stored]| gguf(&folder.join(name), keys, tensors);
    base("unknown.gguf", &keys("rwkv7"), &tensors);
    refused(&folder, &merge("unknown.gguf", "out.gguf"), &["`rwkv7`", "architectures that are read: llama"]);
    assert!(done(&folder, &["inspect", "unknown.gguf"]).contains("rwkv7"));
    base("dense.gguf", &keys("deepseek2"), &tensors);
    refused(&folder, &merge("dense.gguf", "out.gguf"), &["`deepseek2.expert_count` is missing", "the file is broken"]);
    base("experts.gguf", &[keys("llama"), vec![number("llama.expert_count", 8)]].concat(), &tensors);
    refused(&folder, &merge("experts.gguf", "out.gguf"), &["mlp.down_proj", "matches nothing in the base"]);
    base("heads.gguf", &[keys("llama")[..6].to_vec(), vec![number("general.alignment", 64)]].concat(), &tensors);
    refused(&folder, &merge("heads.gguf", "out.gguf"), &["attention.head_count", "attn_"]);
    let mut scaled = tensors.clone();
    scaled.push(("blk.0.attn_q.scale".into(), vec![1], 0, vec![0; 4]));
    base("scaled.gguf", &keys("llama"), &scaled);
    refused(&folder, &merge("scaled.gguf", "out.gguf"), &["blk.0.attn_q.scale", "factor"]);
    for (kind, words) in [("adapter", "a GGUF adapter"), ("imatrix", "--imatrix"), ("mmproj", "mmproj")] {
        base("other.gguf", &[keys("llama"), vec![string("general.type", kind)]].concat(), &tensors);
        refused(&folder, &merge("other.gguf", "out.gguf"), &[words]);
    }
    refused(&folder, &merge("base.gguf", "out.safetensors"), &["ends in .gguf"]);
    refused(&folder, &merge("hf", "out.gguf"), &["ends in .safetensors", "--to q4_k_m"]);
    refused(&folder, &[&merge("hf", "out.gguf")[..], &["--to", "q4_0"]].concat(), &["no tokenizer.json", "copy them"]);
    refused(&folder, &["generate", "--base", "base.gguf", "--prompt", "x"], &["`tokenizer.ggml.tokens` is missing"]);
    // Two models in a folder.
    for name in ["two/a.gguf", "two/b.gguf"] {
        base(name, &keys("llama"), &tensors);
    }
    refused(&folder, &merge("two", "out"), &["2 models", "a.gguf", "b.gguf"]);
}
