//! Merges of small models against PEFT 0.21.2, every tensor bit for bit (testdata/peft-cases, made by testdata/gen/peft_cases.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::arithmetic::undo;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::written::{self, f32s};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/peft-cases")
}

fn cases() -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(data().join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    index["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| (case["name"].as_str().unwrap().to_owned(), case.clone()))
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Merges a case; returns the names of tensors that differ from PEFT's, and the output's configuration.
fn differences(name: &str, case: &Value, options: &Options) -> (Vec<String>, Value) {
    let out = std::env::temp_dir().join(format!("qmerge-cases-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&out);
    let base = Checkpoint::open(&data().join(name).join("base")).unwrap();
    let adapter = Adapter::open(&data().join(name).join("adapter"), 1.0).unwrap();
    let inputs = Inputs::new(base, vec![adapter]).unwrap();
    let plan = Plan::new(&inputs, options).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    merge::run(&inputs, &plan, None, &out, &RunOptions::default(), &Silent)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let got = Checkpoint::open(&out).unwrap();
    let want = case["tensors"].as_object().unwrap();
    let mut different: Vec<String> =
        got.entries.iter().map(|entry| entry.name.clone()).filter(|name| !want.contains_key(name)).collect();
    for (tensor, want) in want {
        let same = got.get(tensor).is_some_and(|entry| {
            entry.dtype.name() == want["dtype"]
                && serde_json::json!(entry.shape) == want["shape"]
                && sha256(&got.read_small(entry, 1 << 30).unwrap()) == want["sha256"].as_str().unwrap()
        });
        if !same {
            different.push(tensor.clone());
        }
    }
    let config = std::fs::read_to_string(out.join("config.json"))
        .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    std::fs::remove_dir_all(&out).unwrap();
    (different, config)
}

#[test]
fn merges_give_the_tensors_of_peft() {
    let mut failures = Vec::new();
    for (name, case) in cases().into_iter().filter(|(name, _)| name != "mha-f32") {
        let (different, config) = differences(&name, &case, &Options::default());
        if !different.is_empty() {
            failures.push(format!("{name}: {different:?}"));
        } else if !config.is_null()
            && case.get("tie_word_embeddings").is_some_and(|tied| *tied != config["tie_word_embeddings"])
        {
            failures.push(format!("{name}: tie_word_embeddings {}", config["tie_word_embeddings"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// PEFT adds the output projection's delta to a MultiheadAttention twice, in its merge as in its forward pass, and rounds after each; qmerge
/// adds it twice and rounds once.
#[test]
fn attention_takes_its_output_delta_twice_and_rounds_once() {
    let (name, case) = cases().into_iter().find(|(name, _)| name == "mha-f32").unwrap();
    let (different, _) = differences(&name, &case, &Options::default());
    assert_eq!(different, ["attn.out_proj.weight"]);
}

fn merged(base: &Path, adapters: &[(&Path, f64)], undoes: bool, out: &Path) -> BTreeMap<String, Vec<u8>> {
    let adapters = adapters.iter().map(|(path, weight)| Adapter::open(path, *weight).unwrap()).collect();
    let mut inputs = Inputs::new(Checkpoint::open(base).unwrap(), adapters).unwrap();
    if undoes {
        undo(&mut inputs, &[], &Default::default()).unwrap();
    }
    let plan = Plan::new(&inputs, &Options::default()).unwrap();
    let options = RunOptions { undoes, ..RunOptions::default() };
    merge::run(&inputs, &plan, None, out, &options, &Silent).unwrap();
    let got = Checkpoint::open(out).unwrap();
    got.entries.iter().map(|entry| (entry.name.clone(), got.read_small(entry, 1 << 30).unwrap())).collect()
}

fn distance(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> f32 {
    assert!(a.keys().eq(b.keys()));
    let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<f32>>();
    let pairs = a.iter().flat_map(|(name, a)| floats(a).into_iter().zip(floats(&b[name])));
    crate::largest(pairs.map(|(a, b)| (a - b).abs()))
}

/// PEFT saves the whole embedding beside a LoRA on it: the base's own is no change of the base, whoever brings it, and what it is taken out of has another.
#[test]
fn an_embedding_that_came_along_is_no_change() {
    let case = data().join("embedding-f32");
    let (base, adapter) = (case.join("base"), case.join("adapter"));
    let folder = std::env::temp_dir().join(format!("qmerge-along-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let once = merged(&base, &[(&adapter, 1.0)], false, &folder.join("once"));
    let halves = merged(&base, &[(&adapter, 0.5), (&adapter, 0.5)], false, &folder.join("halves"));
    assert!(distance(&once, &halves) < 1e-6);
    let undone = merged(&folder.join("once"), &[(&adapter, 1.0)], true, &folder.join("undone"));
    let nothing = merged(&base, &[(&adapter, 0.0)], false, &folder.join("nothing"));
    assert!(distance(&undone, &nothing) < 1e-6 && distance(&once, &nothing) > 1e-3);
    // Of another base it takes the place of what is there, as with PEFT, and that is said.
    let other = Checkpoint::open(&folder.join("once")).unwrap();
    let inputs = Inputs::new(other, vec![Adapter::open(&adapter, 1.0).unwrap()]).unwrap();
    let warnings = Plan::new(&inputs, &Options::default()).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("takes its place, as with PEFT")), "{warnings:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Which factors belong to which of several parameters, their order in the module says; where that is not known, no guess is made.
#[test]
fn parameters_in_an_unknown_order_are_refused() {
    let case = data().join("gpt-oss-parameters");
    let folder = std::env::temp_dir().join(format!("qmerge-order-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("base")).unwrap();
    std::fs::create_dir_all(folder.join("adapter")).unwrap();
    for file in [
        "base/config.json",
        "base/model.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ] {
        let bytes = std::fs::read(case.join(file)).unwrap();
        // As many bytes, so that headers stay whole.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("gate_up_proj");
        let renamed = if text(&bytes) { replaced(&bytes, b"gate_up_proj", b"v1_of_expert") } else { bytes };
        std::fs::write(folder.join(file), renamed).unwrap();
    }
    let inputs = Inputs::new(
        Checkpoint::open(&folder.join("base")).unwrap(),
        vec![Adapter::open(&folder.join("adapter"), 1.0).unwrap()],
    )
    .unwrap();
    let error = Plan::new(&inputs, &Options::default()).unwrap_err();
    assert!(format!("{error:?}").contains("in which order the module declares them"), "{error:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

/// Rows of tokens that are trained for one end of tied embeddings, or otherwise for each, are no copies: a head gets a tensor of its own, and where none can, as in T5, it is said.
#[test]
fn tokens_of_one_end_are_not_those_of_all() {
    let folder = std::env::temp_dir().join(format!("qmerge-ends-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let rows = |x: f32| (0..8).map(|i| x + i as f32).collect::<Vec<f32>>();
    let all = serde_json::json!({ "peft_type": "TRAINABLE_TOKENS", "token_indices": [0, 2] });
    let adapter_of = |config: &serde_json::Value, name: &str, tensors: &[(&str, f32)]| {
        let own = |(module, x): &(&str, f32)| {
            f32s(format!("base_model.model.{module}.trainable_tokens_delta"), &[2, 4], rows(*x))
        };
        written::adapter(&folder.join(name), config, &tensors.iter().map(own).collect::<Vec<_>>());
        Adapter::open(&folder.join(name), 1.0).unwrap()
    };
    let adapter = |name: &str, tensors: &[(&str, f32)]| adapter_of(&all, name, tensors);
    let table: Vec<f32> = (0..16).map(|i| -(i as f32)).collect();
    let base_of = |name: &str, model_type: &str, embeddings: &[&str]| {
        let config = serde_json::json!({ "model_type": model_type, "tie_word_embeddings": true, "vocab_size": 4 });
        let tensors: Vec<_> = embeddings.iter().map(|name| f32s(*name, &[4, 4], table.clone())).collect();
        written::model(&folder.join(name), config, &tensors);
        Checkpoint::open(&folder.join(name)).unwrap()
    };
    let base = |name: &str, model_type: &str, embedding: &str| base_of(name, model_type, &[embedding]);
    let merged = |base: Checkpoint, adapter: Adapter| {
        let inputs = Inputs::new(base, vec![adapter]).unwrap();
        let plan = Plan::new(&inputs, &Options::default())?;
        let out = folder.join("out");
        let options =
            RunOptions { existing: qmerge::write::Existing { force: true, resume: false }, ..RunOptions::default() };
        merge::run(&inputs, &plan, None, &out, &options, &Silent)?;
        let got = Checkpoint::open(&out).unwrap();
        let value = |name: &str| {
            let entry = got.get(&format!("{name}.weight"))?;
            Some(f32::from_le_bytes(*got.read_small(entry, 1 << 20).unwrap().first_chunk().unwrap()))
        };
        Ok::<_, qmerge::error::Error>((value("model.embed_tokens"), value("lm_head")))
    };
    let (embed, head) = ("model.embed_tokens", "lm_head");
    for (name, tensors, want) in [
        ("both", &[(embed, 5.0), (head, 5.0)][..], (Some(5.0), None)),
        ("each", &[(embed, 5.0), (head, 7.0)], (Some(5.0), Some(7.0))),
        ("head", &[(head, 7.0)], (Some(0.0), Some(7.0))),
    ] {
        let got = merged(base("llama", "llama", "model.embed_tokens.weight"), adapter(name, tensors)).unwrap();
        assert_eq!(got, want, "{name}");
    }
    // Each end has tokens of its own, and none of the other's.
    let own = serde_json::json!({
        "peft_type": "LORA", "r": 1, "target_modules": [],
        "trainable_token_indices": { "embed_tokens": [0, 2], "lm_head": [1, 3] }
    });
    let ends = adapter_of(&own, "own", &[(embed, 5.0), (head, 7.0)]);
    assert_eq!(merged(base("llama", "llama", "model.embed_tokens.weight"), ends).unwrap(), (Some(5.0), Some(0.0)));
    // A head that is stored too, and is the embedding.
    let stored = || base_of("stored", "llama", &["lm_head.weight", "model.embed_tokens.weight"]);
    assert_eq!(merged(stored(), adapter("both", &[(embed, 5.0), (head, 5.0)])).unwrap(), (Some(5.0), Some(5.0)));
    let config = std::fs::read_to_string(folder.join("out/config.json")).unwrap();
    assert!(
        config.contains("\"tie_word_embeddings\": true") || config.contains("\"tie_word_embeddings\":true"),
        "{config}"
    );
    let t5 = || base("t5", "t5", "shared.weight");
    let ends = [("encoder.embed_tokens", 5.0), ("decoder.embed_tokens", 7.0)];
    let error = merged(t5(), adapter("ends", &ends)).unwrap_err();
    assert!(error.message().contains("parts the embeddings"), "{error:?}");
    let all = [("shared", 5.0), ("encoder.embed_tokens", 5.0), ("decoder.embed_tokens", 5.0), ("lm_head", 5.0)];
    assert!(merged(t5(), adapter("all", &all)).is_ok());
    let copies = ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight"];
    assert!(merged(base_of("t5-stored", "t5", &copies), adapter("all", &all)).is_ok());
    std::fs::remove_dir_all(&folder).unwrap();
}
