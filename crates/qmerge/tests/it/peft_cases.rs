//! Merges of small models against PEFT 0.21.2, every tensor bit for bit (testdata/peft-cases, made by testdata/gen/peft_cases.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use serde_json::Value;
use sha2::{Digest, Sha256};

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
