//! Whole merges against PEFT 0.21.2 + bitsandbytes 0.50.2: every tensor, bit for bit (testdata/tiny-llama/merged.json holds
//! dtype, shape and SHA-256 of each tensor that PEFT wrote).

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::report::Report;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-llama")
}

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qmerge-peft-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn merge(base: &str, adapters: &[&str], options: &Options, out: &Path) -> Report {
    let base = Checkpoint::open(&data().join("bases").join(base)).unwrap();
    let adapters =
        adapters.iter().map(|name| Adapter::open(&data().join("adapters").join(name), 1.0).unwrap()).collect();
    let inputs = Inputs::new(base, adapters).unwrap();
    let plan = Plan::new(&inputs, options).unwrap();
    let run = RunOptions { threads: 2, ..RunOptions::default() };
    merge::run(&inputs, &plan, None, out, &run, &Silent).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of tensors that differ from PEFT's in type, shape or bytes, or are on one side only.
fn differences(out: &Path, want: &Value) -> Vec<String> {
    let got = Checkpoint::open(out).unwrap();
    let want = want["tensors"].as_object().unwrap();
    let mut different: Vec<String> =
        got.entries.iter().map(|entry| &entry.name).filter(|name| !want.contains_key(*name)).cloned().collect();
    for (name, want) in want {
        let same = got.get(name).is_some_and(|entry| {
            let bytes = got.read_small(entry, 1 << 30).unwrap();
            entry.dtype.name() == want["dtype"]
                && serde_json::json!(entry.shape) == want["shape"]
                && sha256(&bytes) == want["sha256"].as_str().unwrap()
        });
        if !same {
            different.push(name.clone());
        }
    }
    different
}

fn cases() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(data().join("merged.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all["merges"].as_object().unwrap().iter().map(|(name, case)| (name.clone(), case.clone())).collect()
}

fn run_case(name: &str, case: &Value, options: &Options) -> (Vec<String>, Report, Value) {
    let out = scratch(name);
    let adapters: Vec<&str> = case["adapters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let report = merge(case["base"].as_str().unwrap(), &adapters, options, &out);
    let different = differences(&out, case);
    let config = serde_json::from_str(&std::fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    (different, report, config)
}

/// Merges where qmerge rightly differs from PEFT; each has a test of its own below.
const DIFFERENT: &[&str] = &["+plain+rslora", "+lorabias", "+lmhead-target-tied"];

#[test]
fn nearest_rounding_gives_the_bytes_of_peft() {
    let mut compared = 0;
    for (name, case) in cases() {
        if DIFFERENT.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let (different, _, config) = run_case(&name, &case, &Options::default());
        assert!(different.is_empty(), "{name}: {different:?}");
        assert_eq!(config["tie_word_embeddings"], case["tie_word_embeddings"], "{name}");
        compared += 1;
    }
    assert!(compared >= 36, "{compared}");
}

fn with_peft_bugs() -> Options {
    let mut options = Options::default();
    options.read.peft_bugs = true;
    options
}

/// PEFT adds `lora_B.bias` without the scaling on bitsandbytes layers, against its own forward pass.
#[test]
fn lora_bias_is_scaled_unless_the_bug_is_asked_for() {
    for (name, case) in cases().into_iter().filter(|(name, _)| name.ends_with("+lorabias")) {
        let (different, _, _) = run_case(&name, &case, &Options::default());
        assert!(
            !different.is_empty() && different.iter().all(|tensor| tensor.ends_with(".bias")),
            "{name}: {different:?}"
        );
        let (different, _, _) = run_case(&name, &case, &with_peft_bugs());
        assert!(different.is_empty(), "{name}: {different:?}");
    }
}

/// A LoRA on the head of a tied model: PEFT changes the shared tensor, so the input embedding changes too.
#[test]
fn a_tied_head_parts_from_its_embedding_unless_the_bug_is_asked_for() {
    for (name, case) in cases().into_iter().filter(|(name, _)| name.ends_with("+lmhead-target-tied")) {
        let (different, report, config) = run_case(&name, &case, &Options::default());
        assert_eq!(different, ["lm_head.weight", "model.embed_tokens.weight"], "{name}");
        assert_eq!(config["tie_word_embeddings"], false);
        assert!(report.warnings.iter().any(|warning| warning.contains("tie_word_embeddings")));
        let (different, _, config) = run_case(&name, &case, &with_peft_bugs());
        assert!(different.is_empty(), "{name}: {different:?}");
        assert_eq!(config["tie_word_embeddings"], true);
    }
}

/// Two adapters: PEFT quantizes after each; qmerge sums the deltas and quantizes once.
#[test]
fn several_adapters_are_rounded_once() {
    for (name, case) in cases().into_iter().filter(|(name, _)| name.ends_with("+plain+rslora")) {
        let (different, report, _) = run_case(&name, &case, &Options::default());
        assert!(different.iter().any(|tensor| tensor.ends_with("proj.weight")), "{name}");
        assert_eq!(report.summary.weights_merged, 14);
        assert!(report.adapters.iter().all(|adapter| adapter.merged == adapter.tensors));
    }
}
