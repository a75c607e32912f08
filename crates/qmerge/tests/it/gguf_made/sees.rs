//! Models that see: a file of their language model, and what becomes of adapters of the rest.

use super::*;

/// What an adapter for a model that sees is called since transformers 4.52, and before, is the language model's own in a file of it.
#[test]
fn an_adapter_for_a_model_that_sees_goes_into_its_file() {
    let base = Path::new(MADE).join("gemma3sees");
    let [file, one, other, wanted] = ["", "-one", "-other", "-wanted"].map(|end| place(&format!("sees{end}.gguf")));
    let run = RunOptions::default();
    let f32 = Options { export: Some(export("f32")), ..Options::default() };
    write(&base, &f32, &file, &run).unwrap();
    let adapter = renamed_copy(&base, "self_attn.v_proj");
    let merge = |base: &Path, adapter: &Path, options: &Options, output: &Path| {
        let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
        let plan = Plan::new(&inputs, options).unwrap();
        merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap();
        std::fs::read(output).unwrap()
    };
    let [older, newer] = ["language_model.model.layers", "model.language_model.layers"].map(adapter);
    let merged = merge(&file, &older, &Options::default(), &one);
    assert!(merged == merge(&file, &newer, &Options::default(), &other));
    assert!(merged != std::fs::read(&file).unwrap());
    // In f32 nothing is rounded between the two.
    assert!(merged == merge(&base, &newer, &f32, &wanted));
    for file in [&file, &one, &other, &wanted] {
        std::fs::remove_file(file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
    }
    for folder in [older, newer] {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Makes adapters of the layers of a model that sees, under the names that are asked for.
fn renamed_copy(base: &Path, target: &str) -> impl Fn(&str) -> PathBuf {
    let made = adapter_of(base, &[&format!("model.layers.0.{target}"), &format!("model.layers.1.{target}")], false);
    let [tensors, config] =
        ["adapter_model.safetensors", "adapter_config.json"].map(|name| std::fs::read(made.join(name)).unwrap());
    std::fs::remove_dir_all(made).unwrap();
    move |layers| {
        let folder = place(&format!("adapter-{layers}"));
        std::fs::create_dir_all(&folder).unwrap();
        let own = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        let all =
            own.tensors().into_iter().map(|(name, view)| (name.replace("language_model.model.layers", layers), view));
        safetensors::serialize_to_file(all, None, &folder.join("adapter_model.safetensors")).unwrap();
        std::fs::write(folder.join("adapter_config.json"), &config).unwrap();
        folder
    }
}

/// A tower is not in the file: what an adapter changes there is refused by name, or left out where that is asked for.
#[test]
fn an_adapter_of_a_tower_is_not_dropped() {
    let base = Path::new(MADE).join("gemma4sees");
    let plan = |targets: &[&str], allow_unused: bool| {
        let adapter = adapter_of(&base, targets, false);
        let inputs =
            Inputs::new(Checkpoint::open(&base).unwrap(), vec![Adapter::open(&adapter, 1.0).unwrap()]).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        Plan::new(&inputs, &Options { export: Some(export("q8_0")), allow_unused, ..Options::default() })
    };
    let both = ["mlp.up_proj.linear", "language_model.layers.0.self_attn.v_proj", "embedding_projection"];
    for (targets, allow_unused) in [(&both[..], false), (&both[..1], false), (&both[..1], true)] {
        let error = plan(targets, allow_unused).unwrap_err();
        let text = error.to_string();
        assert!(error.kind() == Kind::Mismatch && text.contains("mmproj"), "{text}");
        assert!(text.contains("base_model.model.model."), "{text}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("--mmproj") && hint.contains("--allow-unused") == (targets.len() > 1), "{hint}");
    }
    let plan = plan(&both, true).unwrap();
    assert_eq!((plan.accounting[0].merged, plan.accounting[0].unused.len()), (2, 4));
    assert!(plan.warnings.iter().any(|text| text.starts_with("4 of 6 adapter tensors")), "{:?}", plan.warnings);
}

#[test]
fn an_adapter_of_what_leads_from_a_tower_is_not_dropped() {
    for (model, target) in [
        ("qwen2vlsees", "attn.qkv"),
        ("qwen3vlsees", "linear_fc1"),
        ("smolvlmsees", "modality_projection.proj"),
        ("llavanextsees", "linear_1"),
    ] {
        let base = Path::new(MADE).join(model);
        let adapter = adapter_of(&base, &[target], false);
        let inputs =
            Inputs::new(Checkpoint::open(&base).unwrap(), vec![Adapter::open(&adapter, 1.0).unwrap()]).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        let options = Options { export: Some(export("q8_0")), ..Options::default() };
        let error = Plan::new(&inputs, &options).unwrap_err();
        assert!(error.kind() == Kind::Mismatch && error.to_string().contains("mmproj"), "{model}: {error}");
    }
}

/// Qwen 3 VL's experts are published with inputs as rows, and transformers saves them as they lie in memory: by their dimensions it is known which.
#[test]
fn experts_of_either_order_make_the_same_file() {
    let folder = changed("qwen3vlmoesees", "config.json", |text| text);
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let turn = |shape: &[usize], data: &[u8]| -> Vec<u8> {
        let &[experts, rows, columns] = shape else { panic!("{shape:?}") };
        let at = |expert, row, column| 2 * ((expert * rows + row) * columns + column);
        let order = (0..experts).flat_map(|e| (0..columns).flat_map(move |c| (0..rows).map(move |r| at(e, r, c))));
        order.flat_map(|at| [data[at], data[at + 1]]).collect()
    };
    let turned: Vec<written::Tensor> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| match view.shape() {
            &[experts, rows, columns] if name.contains(".experts.") => {
                (name, view.dtype(), vec![experts, columns, rows], turn(view.shape(), view.data()))
            }
            shape => (name, view.dtype(), shape.to_vec(), view.data().to_vec()),
        })
        .collect();
    written::tensors(&weights, &turned);
    let own = Checkpoint::open(&folder).unwrap();
    let published = Checkpoint::open(&Path::new(MADE).join("qwen3vlmoesees")).unwrap();
    let name = "model.language_model.layers.0.mlp.experts.down_proj";
    assert_ne!(own.get(name).unwrap().shape, published.get(name).unwrap().shape);
    let written = |name: &str| {
        let path = place(name);
        let base = if name.starts_with("turned") { folder.clone() } else { Path::new(MADE).join("qwen3vlmoesees") };
        std::fs::write(&path, made(&base, "f16", None, &RunOptions::default()).unwrap()).unwrap();
        let file = Checkpoint::open_weights(&path).unwrap();
        let read = |entry: &qmerge::open::Entry| (entry.name.clone(), file.read_small(entry, entry.bytes).unwrap());
        let tensors: Vec<_> = file.entries.iter().map(read).collect();
        std::fs::remove_file(&path).unwrap();
        tensors
    };
    assert!(written("turned.gguf") == written("published.gguf"));
    std::fs::remove_dir_all(&folder).unwrap();
}
