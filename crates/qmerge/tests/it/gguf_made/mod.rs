//! Folders that become GGUF files, byte for byte those of llama.cpp's converter and llama-quantize (`testdata/gen/gguf_files.py`), and back.

mod back;
mod merged;
mod sees;
mod told;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qmerge::adapters::Adapter;
use qmerge::error::{Kind, Result};
use qmerge::formats::{self, Reader};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{EXPORTS, Export, Importance, Inputs, Options, Plan};
use qmerge::progress::Silent;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::written::{self, f32s};

const MADE: &str = "testdata/gguf/made";
/// Names of the folders.
fn models() -> Vec<String> {
    expected().into_keys().collect()
}

pub(crate) fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("qmerge-made-{}-{name}", std::process::id()))
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn export(name: &str) -> &'static dyn Export {
    EXPORTS.iter().copied().find(|export| export.id() == name).unwrap()
}

/// Writes what `options` make of a base.
fn write(base: &Path, options: &Options, output: &Path, run: &RunOptions<'_>) -> Result<()> {
    let inputs = Inputs::new(Checkpoint::open(base)?, Vec::new())?;
    let plan = Plan::new(&inputs, options)?;
    merge::run(&inputs, &plan, None, output, run, &Silent).map(drop)
}

pub(crate) fn made(
    base: &Path,
    name: &str,
    importance: Option<&Arc<Importance>>,
    run: &RunOptions<'_>,
) -> Result<Vec<u8>> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let output = place(&format!("{}.gguf", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let options = Options { export: Some(export(name)), importance: importance.cloned(), ..Options::default() };
    let written = write(base, &options, &output, run);
    let bytes = std::fs::read(&output).unwrap_or_default();
    std::fs::remove_file(&output).ok();
    std::fs::remove_file(qmerge::write::path_beside(&output)).ok();
    written.map(|()| bytes)
}

pub(crate) fn expected() -> BTreeMap<String, BTreeMap<String, String>> {
    serde_json::from_str(&std::fs::read_to_string(format!("{MADE}/expected.json")).unwrap()).unwrap()
}

#[test]
fn files_are_those_of_llama_cpp() {
    let expected = expected();
    assert!(expected.len() >= 30);
    let mut wrong = Vec::new();
    for (model, files) in &expected {
        for (name, hashed) in files.iter().filter(|(name, _)| !name.contains(',')) {
            let file = match made(&Path::new(MADE).join(model), name, None, &RunOptions::default()) {
                Ok(file) => file,
                Err(error) => {
                    wrong.push(format!("{model} as {name}: {error}"));
                    continue;
                }
            };
            if hash(&file) != *hashed {
                wrong.push(format!("{model} as {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A file takes other types as llama-quantize gives them to it, and what is to keep its type keeps its bytes.
#[test]
fn a_file_of_codes_takes_other_types() {
    let expected: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&std::fs::read_to_string(format!("{MADE}/again.json")).unwrap()).unwrap();
    let mut met = 0;
    for (source, files) in &expected {
        let (model, codes) = source.split_once(", ").unwrap();
        let base = place(&format!("{model}-codes.gguf"));
        let options = Options { export: Some(export(codes)), ..Options::default() };
        write(&Path::new(MADE).join(model), &options, &base, &RunOptions::default()).unwrap();
        for (name, hashed) in files {
            let file = made(&base, name, None, &RunOptions::default()).unwrap();
            assert_eq!(hash(&file), *hashed, "{source} as {name}");
            met += 1;
        }
        for file in [&base, &qmerge::write::path_beside(&base)] {
            std::fs::remove_file(file).unwrap();
        }
    }
    assert!(met >= 12);
}

/// With an importance matrix: names and data of all tensors. (What a file says of the matrix is llama-quantize's own, which the library does not write.)
#[test]
fn files_are_those_of_llama_cpp_with_an_importance_matrix() {
    let importance = Arc::new(Importance::open(format!("{MADE}/imatrix.gguf").as_ref()).unwrap());
    let base = Path::new(MADE).join("llama-wide");
    let mut met = 0;
    for (name, hashed) in &expected()["llama-wide"] {
        let Some(name) = name.strip_suffix(", weighted") else { continue };
        let file = made(&base, name, Some(&importance), &RunOptions::default()).unwrap();
        let path = place("weighted.gguf");
        std::fs::write(&path, file).unwrap();
        let written = Checkpoint::open_weights(&path).unwrap();
        let mut all = Vec::new();
        for entry in &written.entries {
            all.extend(entry.name.bytes());
            all.extend(written.read_small(entry, entry.bytes).unwrap());
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hash(&all), *hashed, "{name}");
        met += 1;
    }
    assert_eq!(met, 16);
}

#[test]
fn threads_and_memory_change_no_byte() {
    let base = Path::new(MADE).join("llama-wide");
    let one = RunOptions { threads: 1, ..RunOptions::default() };
    let many = RunOptions { threads: 7, max_memory: Some(40 << 20), ..RunOptions::default() };
    assert_eq!(made(&base, "q4_k_m", None, &one).unwrap(), made(&base, "q4_k_m", None, &many).unwrap());
}

/// A LoRA of queries, keys and what leads out of the feed-forward.
fn adapter(name: &str) -> PathBuf {
    let folder = place(&format!("adapter-{name}"));
    let mut random = 1_u32;
    let mut next = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut tensors = Vec::new();
    for (module, inputs, outputs) in
        [("self_attn.q_proj", 32, 32), ("self_attn.k_proj", 32, 16), ("mlp.down_proj", 64, 32)]
    {
        for (part, shape) in [("lora_A", [2, inputs]), ("lora_B", [outputs, 2])] {
            let name = format!("base_model.model.model.layers.0.{module}.{part}.weight");
            tensors.push(f32s(name, &shape, (0..shape[0] * shape[1]).map(|_| next())));
        }
    }
    let targets = ["q_proj", "k_proj", "down_proj"];
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets });
    written::adapter(&folder, config, &tensors);
    folder
}

/// A copy of a model with one of its files changed.
fn changed(model: &str, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    // Tests run side by side.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = place(&format!("changed-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    std::fs::remove_dir_all(&folder).ok();
    written::copy(&Path::new(MADE).join(model), &folder);
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    std::fs::write(folder.join(name), change(text)).unwrap();
    folder
}

/// Stacks of experts that adapters name.
const PARAMETERS: [&str; 6] = [
    "mlp.experts.gate_up_proj",
    "mlp.experts.down_proj",
    "feed_forward.experts.gate_up_proj",
    "feed_forward.experts.down_proj",
    "experts.gate_up_proj",
    "experts.down_proj",
];

/// A LoRA of the matrices below a layer of these names, as PEFT has it for the base.
pub(crate) fn adapter_of(base: &Path, targets: &[&str], is_conv1d: bool) -> PathBuf {
    let folder = place(&format!("adapter-{}", base.file_name().unwrap().to_str().unwrap()));
    let factor = |module: &str, part: &str, shape: [usize; 2], seed: usize| {
        let values = (0..shape[0] * shape[1]).map(|i| (((i + seed) * 37 % 101) as f32 - 50.0) / 400.0);
        f32s(format!("base_model.model.{module}.{part}.weight"), &shape, values)
    };
    let checkpoint = Checkpoint::open(base).unwrap();
    let mut tensors = Vec::new();
    for entry in &checkpoint.entries {
        // A bare parameter, whose inputs are rows.
        let named = PARAMETERS.into_iter().find(|name| targets.contains(name) && entry.name.ends_with(name));
        if let ([experts, inputs, outputs], Some(_)) = (&entry.shape[..], named)
            && let Some((module, _)) = entry.name.rsplit_once('.')
        {
            for (part, shape) in [("lora_A", [2 * experts, *inputs]), ("lora_B", [*outputs, 2 * experts])] {
                tensors.push(factor(module, part, shape, tensors.len()));
            }
            continue;
        }
        let Some(module) = entry.name.strip_suffix(".weight") else { continue };
        if entry.shape.len() != 2 || !targets.iter().any(|target| module.ends_with(target)) {
            continue;
        }
        let [mut outputs, mut inputs] = [entry.shape[0], entry.shape[1]];
        if is_conv1d {
            std::mem::swap(&mut outputs, &mut inputs);
        }
        for (part, shape) in [("lora_A", [2, inputs]), ("lora_B", [outputs, 2])] {
            tensors.push(factor(module, part, shape, tensors.len()));
        }
    }
    assert!(tensors.len() >= 2 * targets.len());
    let (parameters, targets): (Vec<&str>, Vec<&str>) =
        targets.iter().copied().partition(|target| PARAMETERS.contains(target));
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets,
                                     "target_parameters": parameters, "fan_in_fan_out": is_conv1d });
    written::adapter(&folder, config, &tensors);
    folder
}
