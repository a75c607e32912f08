//! Adapters of all methods as LoRAs: merged they give what the adapter itself gives.

use crate::folder::Folder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::arithmetic::{Conversion, ConvertOptions, Wanted, convert, undo};
use qmerge::dtype::Dtype;
use qmerge::error::{Error, Kind};
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::SafeTensors;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

type Tensors = BTreeMap<String, Vec<f32>>;

fn read(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let floats = |data: &[u8]| data.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), floats(view.data())))
        .collect()
}

fn inputs(base: &Path, adapter: &Path, weight: f64) -> Inputs {
    Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, weight).unwrap()]).unwrap()
}

fn merged(base: &Path, adapter: &Path, out: &Path) -> Tensors {
    let inputs = inputs(base, adapter, 1.0);
    let options = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap_or_else(|error| panic!("{error:?}"));
    merge::run(&inputs, &plan, None, out, &RunOptions::default(), &Silent).unwrap_or_else(|error| panic!("{error:?}"));
    read(&out.join("model.safetensors"))
}

fn converted(base: &Path, adapter: &Path, out: &Path, wanted: Wanted) -> Result<Conversion, Error> {
    let inputs = inputs(base, adapter, 1.0);
    let plan = Plan::new(&inputs, &Options::default())?;
    let options = ConvertOptions { wanted, dtype: Dtype::F32, seed: 0, force: false, allow_unused: false, threads: 2 };
    convert(&inputs, &plan, out, &options, &Silent)
}

/// Bases and adapters of all methods, and of variants of LoRA.
fn cases() -> Vec<(PathBuf, PathBuf)> {
    let methods = data().join("peft-methods");
    let folders = std::fs::read_dir(&methods).unwrap().map(|item| item.unwrap().path());
    let mut cases: Vec<_> = folders
        .filter(|path| path.to_string_lossy().ends_with("f32"))
        .map(|path| {
            let base = methods.join("bases").join(std::fs::read_to_string(path.join("base.txt")).unwrap().trim());
            (base, path.join("adapter"))
        })
        .collect();
    cases.sort();
    for name in ["dora", "rslora", "patterns", "mts-lmhead"] {
        cases.push((data().join("tiny-llama/bases/base-bf16"), data().join("tiny-llama/adapters").join(name)));
    }
    for name in [
        "gpt2-f32",
        "mixtral-parameters",
        "mixtral-per-expert-f32",
        "qwen2-moe-parameters",
        "qwen3-moe-bare-names",
        "gpt-oss-per-expert-f32",
        "granitemoe-per-expert-f32",
        "llama4-parameters",
        "router-parameter",
        "embedding-f32",
        "embedding-dora-f32",
        "conv-f32",
        "resized-embedding-lora",
        "save-embed-tied",
        "save-both-tied-ensured",
        "tokens-tied",
        "bias-lora-only-bf16",
        "lora-bias-bf16",
    ] {
        let case = data().join("peft-cases").join(name);
        cases.push((case.join("base"), case.join("adapter")));
    }
    cases
}

#[test]
fn a_lora_of_full_rank_does_what_the_adapter_does() {
    let mut kinds = std::collections::BTreeSet::new();
    for (base, adapter) in cases() {
        let folder = Folder::new();
        let name = adapter.display().to_string();
        if name.contains("/ln-") || name.contains("/beft-") {
            let error = converted(&base, &adapter, &folder.join("lora"), Wanted::Rank(4)).unwrap_err();
            assert!(error.message().contains("no linear layer"), "{error:?}");
            continue;
        }
        let found = converted(&base, &adapter, &folder.join("lora"), Wanted::Share(1.0))
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        kinds.insert(found.method.clone());
        assert!(found.kept.unwrap() > 1.0 - 1e-9, "{name}: {:?}", found.kept);
        let (want, got) =
            (merged(&base, &adapter, &folder.join("whole")), merged(&base, &folder.join("lora"), &folder.join("low")));
        assert!(want.keys().eq(got.keys()), "{name}");
        for (tensor, want) in &want {
            if found.dropped.iter().any(|dropped| dropped.name == *tensor) {
                continue;
            }
            // PaRa takes away all of a small weight; the base's values are some tenths.
            let largest = want.iter().fold(0.1_f32, |most, x| most.max(x.abs()));
            let off = crate::largest(got[tensor].iter().zip(want).map(|(a, b)| (a - b).abs()));
            // Deltas of parameters in bf16 are rounded to it, as PEFT computes them.
            let is_rounded = name.contains("peft-cases") && !name.contains("f32");
            let most = if is_rounded { 4e-3 } else { 4e-6 };
            assert!(off <= most * largest, "{name} {tensor}: {:.1e}", off / largest);
        }
        // Less rank holds less, and says how much.
        let cut = converted(&base, &adapter, &folder.join("cut"), Wanted::Rank(1)).unwrap();
        assert!(cut.rank == 1 && cut.kept.unwrap() <= found.kept.unwrap());
        let is_of_base = ["OFT", "BOFT", "HRA", "IA3", "ROAD", "HIRA", "FROD", "GLORA", "DEFT", "OSF", "PEANUT"]
            .contains(&cut.method.as_str());
        assert_eq!(
            cut.warnings.iter().any(|text| text.contains("fits no other")),
            is_of_base || name.ends_with("/dora") || name.contains("-dora-") || name.contains("miss-bat"),
            "{name}: {:?}",
            cut.warnings
        );
    }
    assert!(kinds.len() >= 18, "{kinds:?}");
}

/// What was added is subtracted: in f32 to the rounding of the sum, and nothing else changes.
#[test]
fn an_adapter_is_taken_out_of_its_merge() {
    for (base, adapter) in [
        ("peft-methods/bases/llama-f32", "combinations/adapters/d"),
        ("peft-methods/bases/llama-f32", "peft-methods/lokr-llama-f32/adapter"),
        ("peft-cases/gpt2-f32/base", "peft-cases/gpt2-f32/adapter"),
    ] {
        let (base, adapter, folder) = (data().join(base), data().join(adapter), Folder::new());
        let merged = merged(&base, &adapter, &folder.join("merged"));
        let mut inputs = inputs(&folder.join("merged"), &adapter, 1.0);
        undo(&mut inputs, &[], &Default::default()).unwrap();
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        let options = RunOptions { undoes: true, ..RunOptions::default() };
        // The merge's report knows what is in it.
        inputs.adapters[0].weight = -0.5;
        let error = merge::run(&inputs, &plan, None, &folder.join("again"), &options, &Silent).unwrap_err();
        assert!(error.message().contains("with weight 1.0, not 0.5"), "{error:?}");
        inputs.adapters[0].weight = -1.0;
        merge::run(&inputs, &plan, None, &folder.join("again"), &options, &Silent).unwrap();
        let (want, got) = (read(&base.join("model.safetensors")), read(&folder.join("again/model.safetensors")));
        assert!(want.keys().eq(got.keys()));
        let mut changed = 0;
        for (name, want) in &want {
            let merged = &merged[name];
            changed += usize::from(merged != want);
            for ((got, want), sum) in got[name].iter().zip(want).zip(merged) {
                let last_place = f32::EPSILON * want.abs().max(sum.abs());
                assert!((got - want).abs() <= last_place, "{name}: {got} {want} {sum}");
            }
        }
        assert!(changed > 0);
    }
}

/// Of every method: it gives the base back, or says that it cannot.
#[test]
fn every_method_is_taken_out_or_refused() {
    let (mut undone, mut refused) = (0, 0);
    for case in std::fs::read_dir(data().join("peft-methods")).unwrap().map(|case| case.unwrap().path()) {
        let (name, adapter) = (case.file_name().unwrap().to_str().unwrap(), case.join("adapter"));
        if !name.ends_with("-f32") {
            continue;
        }
        let base = std::fs::read_to_string(case.join("base.txt")).unwrap();
        let (base, folder) = (data().join("peft-methods/bases").join(base.trim()), Folder::new());
        let merged = merged(&base, &adapter, &folder.join("merged"));
        let mut inputs = inputs(&folder.join("merged"), &adapter, 1.0);
        if let Err(error) = undo(&mut inputs, &[], &Default::default()) {
            assert_eq!(error.kind(), Kind::Unsupported, "{name}: {error:?}");
            refused += 1;
            continue;
        }
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        let options = RunOptions { undoes: true, ..RunOptions::default() };
        merge::run(&inputs, &plan, None, &folder.join("again"), &options, &Silent).unwrap();
        let (want, got) = (read(&base.join("model.safetensors")), read(&folder.join("again/model.safetensors")));
        for (tensor, want) in &want {
            for ((got, want), sum) in got[tensor].iter().zip(want).zip(&merged[tensor]) {
                let last_place = f32::EPSILON * want.abs().max(sum.abs());
                assert!((got - want).abs() <= last_place, "{name}: {tensor}: {got} {want} {sum}");
            }
        }
        undone += 1;
    }
    assert!(undone > 10 && refused > 10, "{undone} {refused}");
}

#[test]
fn what_no_subtraction_undoes_is_refused() {
    for (base, adapter, words) in [
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/dora", "DoRA divided by norms"),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/mts-lmhead", "it replaced"),
        ("peft-methods/bases/llama-f32", "peft-methods/oft-llama-f32/adapter", "type OFT maps"),
        ("peft-methods/bases/llama-f32", "peft-methods/ia3-llama-f32/adapter", "type IA3 maps"),
        ("peft-methods/bases/llama-f32", "peft-methods/ln-llama-f32/adapter", "it replaced"),
        ("peft-methods/bases/llama-f32", "peft-methods/deft-llama-f32/adapter", "made of the original base's values"),
        ("peft-methods/bases/llama-f32", "peft-methods/peanut-llama-f32/adapter", "made of the original base's values"),
        ("peft-methods/bases/llama-f32", "peft-methods/osf-llama-f32/adapter", "made of the original base's values"),
        ("peft-cases/tokens-dict/base", "peft-cases/tokens-dict/adapter", "trained tokens"),
    ] {
        let error =
            undo(&mut inputs(&data().join(base), &data().join(adapter), 1.0), &[], &Default::default()).unwrap_err();
        assert!(error.kind() == Kind::Unsupported && format!("{error:?}").contains(words), "{adapter}: {error:?}");
    }
}
