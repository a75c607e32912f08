//! Adapters of models that see, where a GGUF file has the language model alone: as base, and as what llama.cpp's adapter goes with.

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::arithmetic::{Conversion, ConvertOptions, Wanted, convert_to_gguf};
use qmerge::dtype::Dtype;
use qmerge::error::Result;
use qmerge::merge::RunOptions;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::SafeTensors;

use crate::folder::Folder;
use crate::gguf_made::{adapter_of, made};
use crate::written;

/// A folder of a model that sees, of its own, and an adapter of some of its layers.
fn model(folder: &Folder, name: &str, own: &str, targets: &[&str]) -> (PathBuf, PathBuf) {
    let to = folder.join(own);
    written::copy(&Path::new("testdata/gguf/made").join(name), &to);
    let made = adapter_of(&to, targets, false);
    let adapter = folder.join(format!("adapter-{own}"));
    std::fs::rename(made, &adapter).unwrap();
    (to, adapter)
}

/// The same adapter without what it changes of towers.
fn of_language_model(folder: &Folder, both: &Path) -> PathBuf {
    let to = folder.join("alone");
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(both.join("adapter_config.json"), to.join("adapter_config.json")).unwrap();
    let bytes = std::fs::read(both.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let own = tensors.tensors().into_iter().filter(|(name, _)| name.contains(".layers.0.self_attn.q_proj."));
    safetensors::serialize_to_file(own, None, &to.join("adapter_model.safetensors")).unwrap();
    to
}

fn inputs(base: &Path, adapter: &Path) -> Inputs {
    Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap()
}

fn converted(base: &Path, adapter: &Path, to: &Path, allow_unused: bool) -> Result<Conversion> {
    let inputs = inputs(base, adapter);
    let plan = Plan::new(&inputs, &Options { allow_unused, ..Options::default() })?;
    let options = ConvertOptions {
        wanted: Wanted::Share(1.0),
        dtype: Dtype::F32,
        seed: 0,
        force: true,
        allow_unused,
        threads: 2,
    };
    convert_to_gguf(&inputs, &plan, to, &options, &Silent)
}

/// With a folder as base what towers are changed by is left out where that is asked for: the file is that of the rest.
#[test]
fn what_an_adapter_changes_of_a_tower_is_left_out_of_llama_cpps() {
    for (name, language, tower) in [
        ("qwen2vlsees", "model.layers.0.self_attn.q_proj", "attn.qkv"),
        ("smolvlmsees", "text_model.layers.0.self_attn.q_proj", "modality_projection.proj"),
        ("gemma4sees", "language_model.layers.0.self_attn.q_proj", "embedding_projection"),
    ] {
        let folder = Folder::new();
        let (base, both) = model(&folder, name, &format!("both-{name}"), &[language, tower]);
        let alone = of_language_model(&folder, &both);
        let (of_both, of_alone) = (folder.join("both.gguf"), folder.join("alone.gguf"));
        let error = converted(&base, &both, &of_both, false).unwrap_err();
        assert!(error.hint().unwrap().contains("--allow-unused"), "{name}: {error:?}");
        let found = converted(&base, &both, &of_both, true).unwrap();
        let told = found.warnings.iter().filter(|text| text.contains("is left out") && text.contains("mmproj"));
        assert_eq!((told.count(), found.weights.len()), (1, 1), "{name}: {:?}", found.warnings);
        assert!(converted(&base, &alone, &of_alone, true).unwrap().warnings.is_empty());
        assert!(std::fs::read(&of_both).unwrap() == std::fs::read(&of_alone).unwrap(), "{name}");
        // Nothing but towers is nothing.
        let (base, only) = model(&folder, name, &format!("only-{name}"), &[tower]);
        let error = converted(&base, &only, &folder.join("only.gguf"), true).unwrap_err();
        assert!(!error.hint().unwrap().contains("--allow-unused"), "{name}: {error:?}");
    }
}

/// With a file as base the remedy is not a translation of names.
#[test]
fn an_adapter_of_a_tower_is_told_that_a_file_has_none() {
    for (name, targets) in [
        ("qwen2vlsees", ["model.layers.0.self_attn.q_proj", "attn.qkv"]),
        ("llavanextsees", ["model.layers.0.self_attn.q_proj", "linear_1"]),
    ] {
        let folder = Folder::new();
        let (base, both) = model(&folder, name, &format!("file-{name}"), &targets);
        let file = folder.join("base.gguf");
        std::fs::write(&file, made(&base, "f16", None, &RunOptions::default()).unwrap()).unwrap();
        let inputs = inputs(&file, &both);
        let error = Plan::new(&inputs, &Options::default()).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(hint.contains("the language model alone") && hint.contains("--allow-unused"), "{name}: {hint}");
        assert!(!hint.contains("--map"), "{name}: {hint}");
        let plan = Plan::new(&inputs, &Options { allow_unused: true, ..Options::default() }).unwrap();
        assert!(plan.accounting[0].merged > 0 && !plan.accounting[0].unused.is_empty());
    }
}
