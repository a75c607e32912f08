//! Adapters for llama.cpp: the tensors of its own converter (`testdata/gen/gguf_lora.py`), and merged again what the adapter itself gives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::folder::Folder;
use crate::written::{self, f32s};
use qmerge::adapters::Adapter;
use qmerge::arithmetic::{Conversion, ConvertOptions, Wanted, convert_to_gguf};
use qmerge::dtype::Dtype;
use qmerge::error::Result;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::{Checkpoint, Value};
use qmerge::plan::{EXPORTS, Inputs, Options, Plan};
use qmerge::progress::Silent;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn inputs(base: &Path, adapter: &Path, weight: f64) -> Inputs {
    Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, weight).unwrap()]).unwrap()
}

fn converted(base: &Path, adapter: &Path, out: &Path, wanted: Wanted, weight: f64) -> Result<Conversion> {
    let inputs = inputs(base, adapter, weight);
    let plan = Plan::new(&inputs, &Options::default())?;
    let options = ConvertOptions { wanted, dtype: Dtype::F32, seed: 0, force: false, allow_unused: false, threads: 2 };
    convert_to_gguf(&inputs, &plan, out, &options, &Silent)
}

fn whole(base: &Path, adapter: &Path, out: &Path) -> Result<Conversion> {
    converted(base, adapter, out, Wanted::Share(1.0), 1.0)
}

/// All values of a merge in f32, by name.
fn merged(base: &Path, adapter: &Path, weight: f64, out: &Path) -> Vec<(String, Vec<f32>)> {
    values(&inputs(base, adapter, weight), out)
}

/// All values in f32, by name.
fn values(inputs: &Inputs, out: &Path) -> Vec<(String, Vec<f32>)> {
    let options = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    let plan = Plan::new(inputs, &options).unwrap();
    merge::run(inputs, &plan, None, out, &RunOptions::default(), &Silent).unwrap();
    let written = Checkpoint::open(out).unwrap();
    let mut all: Vec<_> = written.entries.iter().map(|entry| (entry.name.clone(), floats(&written, entry))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn floats(file: &Checkpoint, entry: &qmerge::open::Entry) -> Vec<f32> {
    let mut bytes = vec![0; entry.bytes as usize];
    file.read_at(entry, 0, &mut bytes).unwrap();
    bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

fn alpha(file: &Checkpoint) -> f64 {
    match file.gguf.as_ref().unwrap().get("adapter.lora.alpha") {
        Some(Value::Float(alpha)) => alpha,
        other => panic!("{other:?}"),
    }
}

/// Dimensions and bytes of a file's tensors by name, experts as the stack that they lie in.
fn stacked(file: &Checkpoint) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for entry in &file.entries {
        let mut bytes = vec![0; entry.bytes as usize];
        file.read_at(entry, 0, &mut bytes).unwrap();
        match entry.name.split_once("_exps.").and_then(|(path, rest)| Some((path, rest.split_once('.')?.1))) {
            Some((path, leaf)) => {
                let new = || ([vec![0], entry.shape.clone()].concat(), Vec::new());
                let stack = tensors.entry(format!("{path}_exps.{leaf}")).or_insert_with(new);
                stack.0[0] += 1;
                stack.1.extend(bytes);
            }
            None => drop(tensors.insert(entry.name.clone(), (entry.shape.clone(), bytes))),
        }
    }
    tensors
}

#[test]
fn tensors_are_those_of_llama_cpp() {
    let expected: Json = serde_json::from_slice(&std::fs::read(data("gguf/lora/expected.json")).unwrap()).unwrap();
    for (model, expected) in expected.as_object().unwrap() {
        let (folder, adapter) = (Folder::new(), data("gguf/lora").join(model));
        let base = data("gguf/made").join(model);
        // A folder, and the file that it becomes, which has its rows in the order of the file.
        let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), Vec::new()).unwrap();
        let f16 = EXPORTS.iter().copied().find(|export| export.id() == "f16");
        let plan = Plan::new(&inputs, &Options { export: f16, ..Options::default() }).unwrap();
        let file = folder.join("base.gguf");
        merge::run(&inputs, &plan, None, &file, &RunOptions::default(), &Silent).unwrap();
        for (number, base) in [&base, &file].into_iter().enumerate() {
            let out = folder.join(format!("lora-{number}.gguf"));
            let found = whole(base, &adapter, &out).unwrap_or_else(|error| panic!("{model}: {error:?}"));
            assert_eq!((found.format, found.kept), ("gguf-lora", Some(1.0)));
            let made = Checkpoint::open_weights(&out).unwrap();
            let mut hash = Sha256::new();
            let tensors = stacked(&made);
            for (name, (shape, bytes)) in &tensors {
                hash.update(format!("{name} {shape:?}"));
                hash.update(bytes);
            }
            let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(json!(hash), expected["hash"], "{model}");
            assert_eq!(json!(tensors.len()), expected["tensors"], "{model}");
            assert_eq!(json!(alpha(&made)), expected["alpha"], "{model}");
            let keys = made.gguf.as_ref().unwrap();
            // llama.cpp's converter names Granite 4's other architecture, with which its own loader refuses the adapter beside a file of this one.
            let architecture = if model == "granitehybrid" { &json!("granite") } else { &expected["architecture"] };
            assert_eq!(json!(keys.architecture()), *architecture);
            assert_eq!((keys.text("general.type"), keys.text("adapter.type")), (Some("adapter"), Some("lora")));
        }
    }
}

/// Factors of two halves are those of the one weight that a folder has of them, and a file read as such.
#[test]
fn halves_come_back() {
    let (base, adapter, folder) = (data("gguf/made/granitehybrid"), data("gguf/lora/granitehybrid"), Folder::new());
    let out = folder.join("lora.gguf");
    whole(&base, &adapter, &out).unwrap();
    let want = merged(&base, &adapter, 1.0, &folder.join("want"));
    assert!(want == merged(&base, &out, 1.0, &folder.join("got")));
}

/// Factors of experts lie in stacks, and are found there.
#[test]
fn experts_come_back() {
    let (base, adapter, folder) = (data("gguf/made/qwen3moe"), data("gguf/lora/qwen3moe"), Folder::new());
    let out = folder.join("lora.gguf");
    whole(&base, &adapter, &out).unwrap();
    let want = merged(&base, &adapter, 1.0, &folder.join("want"));
    assert!(want == merged(&base, &out, 1.0, &folder.join("got")));
    // Those of some experts, the others' are zeros; of different ranks.
    let one = folder.join("one");
    std::fs::create_dir_all(&one).unwrap();
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = all.iter().filter(|(name, _)| name.contains(".experts.1.") || name.contains(".experts.11.down"));
    std::fs::write(one.join("adapter_model.safetensors"), safetensors::serialize(kept, None).unwrap()).unwrap();
    std::fs::copy(adapter.join("adapter_config.json"), one.join("adapter_config.json")).unwrap();
    for (number, wanted) in [Wanted::Share(1.0), Wanted::Share(0.7)].into_iter().enumerate() {
        let out = folder.join(format!("one-{number}.gguf"));
        let found = converted(&base, &one, &out, wanted, 1.0).unwrap();
        let got = merged(&base, &out, 1.0, &folder.join(format!("one-{number}")));
        let want = merged(&base, &one, 1.0, &folder.join(format!("want-{number}")));
        let (mut off, mut all) = (0.0, 0.0);
        let alone = Inputs::new(Checkpoint::open(&base).unwrap(), Vec::new()).unwrap();
        let plain = values(&alone, &folder.join(format!("plain-{number}")));
        for (((_, got), (_, want)), (_, plain)) in got.iter().zip(&want).zip(&plain) {
            for ((got, want), plain) in got.iter().zip(want).zip(plain) {
                off += f64::from(got - want) * f64::from(got - want);
                all += f64::from(want - plain) * f64::from(want - plain);
            }
        }
        assert!((1.0 - off / all - found.kept.unwrap()).abs() < 1e-4, "{} {:?}", off / all, found.kept);
    }
}

/// Two merges are the same to the rounding of sums, and another than the base.
fn are_near(got: &[(String, Vec<f32>)], want: &[(String, Vec<f32>)], plain: &[(String, Vec<f32>)]) {
    let mut moved = 0;
    for (((name, got), (_, want)), (_, plain)) in got.iter().zip(want).zip(plain) {
        for ((got, want), plain) in got.iter().zip(want).zip(plain) {
            assert!((got - want).abs() <= 1e-6 + 1e-6 * want.abs(), "{name}: {got}, not {want}");
            moved += usize::from((want - plain).abs() > 1e-4);
        }
    }
    assert!(moved > 3 * 32 * 32, "{moved}");
}

/// What PEFT trained of a stacked parameter goes into a file expert by expert, and adds the same.
#[test]
fn stacks_come_back() {
    for case in ["gpt-oss-parameters", "granitemoe-parameters"] {
        let (cases, folder) = (data("peft-cases").join(case), Folder::new());
        let (base, adapter, out) = (cases.join("base"), cases.join("adapter"), folder.join("lora.gguf"));
        let found = whole(&base, &adapter, &out).unwrap_or_else(|error| panic!("{case}: {error:?}"));
        assert_eq!(found.kept, Some(1.0), "{case}");
        let alone = Inputs::new(Checkpoint::open(&base).unwrap(), Vec::new()).unwrap();
        let plain = values(&alone, &folder.join("plain"));
        let want = merged(&base, &adapter, 1.0, &folder.join("want"));
        are_near(&merged(&base, &out, 1.0, &folder.join("got")), &want, &plain);
        let error = converted(&base, &adapter, &folder.join("cut.gguf"), Wanted::Rank(1), 1.0).unwrap_err();
        assert!(error.message().contains("stack of experts"), "{case}: {error:?}");
    }
}

/// A folder has inputs as rows of its stacks, and the file outputs: both give the same factors, of some of the experts.
#[test]
fn stacks_of_a_folder_are_those_of_its_file() {
    for (model, module) in [("gptoss", "model.layers.0.mlp.experts"), ("gemma4moe", "model.layers.0.experts")] {
        let (base, folder) = (data("gguf/made").join(model), Folder::new());
        let (file, adapter) = (folder.join("base.gguf"), folder.join("adapter"));
        crate::stacks::adapter(&adapter, module);
        let alone = Inputs::new(Checkpoint::open(&base).unwrap(), Vec::new()).unwrap();
        let export = EXPORTS.iter().copied().find(|export| export.id() == "f32");
        let plan = Plan::new(&alone, &Options { export, ..Options::default() }).unwrap();
        merge::run(&alone, &plan, None, &file, &RunOptions::default(), &Silent).unwrap();
        let made = [&base, &file].map(|from| {
            let out = folder.join(format!("lora-{}.gguf", from == &file));
            whole(from, &adapter, &out).unwrap_or_else(|error| panic!("{model}: {error:?}"));
            Checkpoint::open_weights(&out).unwrap()
        });
        let tensors = stacked(&made[0]);
        assert!(tensors == stacked(&made[1]) && alpha(&made[0]) == alpha(&made[1]), "{model}");
        assert!(tensors.values().all(|(shape, _)| shape[0] == 4), "{model}");
    }
}

/// An adapter folder with other scalings.
fn scaled(folder: &Folder, model: &str, more: Json) -> PathBuf {
    let (from, to) = (data("gguf/lora").join(model), folder.join("adapter"));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let mut config: Json = serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    to
}

/// What llama.cpp's converter drops is put where llama.cpp finds it.
#[test]
fn scalings_that_the_format_has_no_word_for_are_kept() {
    let base = data("gguf/made/llama-pieces");
    for (more, weight, wanted) in [
        (json!({}), 1.0, 6.0),
        (json!({ "use_rslora": true }), 1.0, 12.0),
        (json!({ "alpha_pattern": { "q_proj": 10, "k_proj": 1 } }), 1.0, 6.0),
        (json!({ "lora_alpha": 0, "alpha_pattern": { "q_proj": 10 } }), 1.0, 10.0),
        (json!({ "lora_alpha": 0 }), 1.0, 1.0),
        (json!({}), -0.5, -3.0),
    ] {
        let folder = Folder::new();
        let adapter = scaled(&folder, "llama-pieces", more.clone());
        let out = folder.join("lora.gguf");
        converted(&base, &adapter, &out, Wanted::Share(1.0), weight).unwrap();
        assert_eq!(alpha(&Checkpoint::open_weights(&out).unwrap()), wanted, "{more}");
        let want = merged(&base, &adapter, weight, &folder.join("want"));
        let got = merged(&base, &out, 1.0, &folder.join("got"));
        assert_eq!(want.len(), got.len());
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            let largest = want.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            assert!(want.iter().zip(got).all(|(a, b)| (a - b).abs() <= 4e-7 * largest), "{more}: {name}");
        }
    }
}

#[test]
fn what_the_format_cannot_say_is_refused() {
    let peft = |name: &str| (data("peft-cases").join(name).join("base"), data("peft-cases").join(name).join("adapter"));
    for (case, words) in [
        ("dora-f32", "no product of two factors"),
        ("bias-all-bf16", "trained whole"),
        ("save-head", "trained whole"),
        ("save-embed-tied", "trained whole"),
        ("lora-bias-bf16", "a change of a bias"),
        ("tokens-dict", "no product"),
        ("resized-saved", "trained whole"),
    ] {
        let ((base, adapter), folder) = (peft(case), Folder::new());
        let error = whole(&base, &adapter, &folder.join("lora.gguf")).unwrap_err();
        assert!(format!("{error:?}").contains(words), "{case}: {error:?}");
        assert_eq!(std::fs::read_dir(folder.join("")).unwrap().count(), 0, "{case}");
    }
    // A convolution has three dimensions, as stacks of experts have.
    let (base, folder) = (data("gguf/made/lfm2"), Folder::new());
    let factor = |part: &str, shape: &[usize]| {
        let name = format!("base_model.model.model.layers.0.conv.conv.lora_{part}.weight");
        f32s(name, shape, vec![0.1; shape.iter().product()])
    };
    let config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["conv"] });
    written::adapter(&folder.join("conv"), config, &[factor("A", &[1, 1, 3]), factor("B", &[32, 1, 1])]);
    let error = whole(&base, &folder.join("conv"), &folder.join("lora.gguf")).unwrap_err();
    assert!(error.message().contains("cannot say"), "{error:?}");
    // Cut to a rank, a method that is no product has its place, and says how much it kept.
    let ((base, adapter), folder) = (peft("dora-f32"), Folder::new());
    let found = converted(&base, &adapter, &folder.join("lora.gguf"), Wanted::Rank(3), 1.0).unwrap();
    assert!(found.rank == 3 && found.kept.unwrap() < 1.0, "{:?}", found.kept);
    let error = whole(&base, &adapter, &folder.join("all.gguf")).unwrap_err();
    assert!(error.hint().unwrap().contains("a share below 1"), "{error:?}");
    let found = converted(&base, &adapter, &folder.join("most.gguf"), Wanted::Share(0.9999), 1.0).unwrap();
    assert!(found.kept.unwrap() >= 0.9999 && found.rank > 3, "{} {:?}", found.rank, found.kept);
    let error = whole(&base, &adapter, &folder.join("lora")).unwrap_err();
    assert!(error.message().contains("one file"), "{error:?}");
    let (base, _) = peft("plain-f32");
    let error = whole(&base, &peft("plain-f32").1, &folder.join("lora.gguf")).unwrap_err();
    assert!(error.message().contains("exists already"), "{error:?}");
}
