//! Adapters that go into files, at their types or into other ones.

use super::*;

/// An adapter's weights are rounded once, from the file's values with what it adds to them; all others are what they are without an adapter.
#[test]
fn an_adapter_goes_into_a_file_of_other_types() {
    let (adapter, base) = (adapter("other-types"), place("codes-for-merge.gguf"));
    let (merged, plain, floats) = (place("other-merged.gguf"), place("other-plain.gguf"), place("other-floats.gguf"));
    let run = RunOptions::default();
    let to = |name: &str| Options { export: Some(export(name)), ..Options::default() };
    write(&Path::new(MADE).join("llama-pieces"), &to("q8_0"), &base, &run).unwrap();
    write(&base, &to("q5_0"), &plain, &run).unwrap();
    for (options, output) in [(to("q5_0"), &merged), (to("f32"), &floats)] {
        let adapter = Adapter::open(&adapter, 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter]).unwrap();
        let plan = Plan::new(&inputs, &options).unwrap();
        merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap();
    }
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    let files = [open(&base), open(&plain), open(&merged), open(&floats)];
    let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
    let keys = |file: &Checkpoint| file.gguf.as_ref().unwrap().integer("general.file_type");
    assert_eq!(files.each_ref().map(keys), [Some(7), Some(8), Some(8), Some(0)]);
    let mut changed = Vec::new();
    for entry in &files[2].entries {
        let name = entry.name.as_str();
        if read(&files[1], name) != read(&files[2], name) {
            changed.push(name);
        }
        if entry.shape.len() == 1 {
            assert_eq!(read(&files[0], name), read(&files[2], name), "{name}");
        }
    }
    assert_eq!(changed, ["blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"]);
    // The file of floats has the values that were rounded.
    let again = place("other-again.gguf");
    write(&floats, &to("q5_0"), &again, &run).unwrap();
    let again_file = open(&again);
    for name in changed {
        assert_eq!(read(&again_file, name), read(&files[2], name), "{name}");
    }
    for file in [&base, &plain, &merged, &floats, &again] {
        std::fs::remove_file(file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
    }
    std::fs::remove_dir_all(&adapter).unwrap();
}

/// A LoRA of all experts' gate and up projections, as PEFT has it for a bare parameter.
fn of_experts(experts: usize, inputs: usize, outputs: usize) -> PathBuf {
    let folder = place("adapter-experts");
    let factor = |part: &str, shape: [usize; 2]| {
        let values = (0..shape[0] * shape[1]).map(|i| ((i * 37 % 101) as f32 - 50.0) / 400.0);
        f32s(format!("base_model.model.model.layers.1.mlp.experts.lora_{part}.weight"), &shape, values)
    };
    let tensors = [factor("A", [2 * experts, inputs]), factor("B", [outputs, 2 * experts])];
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [],
                         "target_parameters": ["mlp.experts.gate_up_proj"] });
    written::adapter(&folder, config, &tensors);
    folder
}

/// Experts lie in one tensor of the file and are weights of their own in the model: a merge into the one is a merge into the other.
#[test]
fn experts_in_a_file_are_the_models() {
    let run = RunOptions::default();
    // What is added to a bare parameter is rounded to the base's type, so both bases have the file's.
    let base = place("experts-base");
    let to_f32 = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    write(&Path::new(MADE).join("qwen3moe"), &to_f32, &base, &run).unwrap();
    let parameters = of_experts(12, 32, 64);
    for (number, adapter) in [Path::new("testdata/gguf/lora/qwen3moe"), &parameters].into_iter().enumerate() {
        let [file, folder, merged, wanted] =
            ["experts.gguf", "experts-merged", "experts-merged.gguf", "experts-wanted.gguf"]
                .map(|name| place(&format!("{number}-{name}")));
        let f32 = Options { export: Some(export("f32")), ..Options::default() };
        write(&base, &f32, &file, &run).unwrap();
        let merge = |base: &Path, options: &Options, output: &Path| {
            let adapter = Adapter::open(adapter, 1.0).unwrap();
            let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter]).unwrap();
            let plan = Plan::new(&inputs, options).unwrap();
            merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap()
        };
        let report = merge(&file, &Options::default(), &merged);
        assert_eq!(report.weights.iter().filter(|weight| weight.name.contains(".experts.")).count(), [72, 24][number]);
        merge(&base, &to_f32, &folder);
        write(&folder, &f32, &wanted, &run).unwrap();
        let (one, other) = (Checkpoint::open(&merged).unwrap(), Checkpoint::open(&wanted).unwrap());
        let before = Checkpoint::open(&file).unwrap();
        let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
        let mut changed = 0;
        for entry in &one.entries {
            assert!(read(&one, &entry.name) == read(&other, &entry.name), "{}", entry.name);
            changed += usize::from(read(&one, &entry.name) != read(&before, &entry.name));
        }
        assert_eq!(changed, [74, 24][number]);
        // The header is as it was: stacks, not experts.
        let head = |path: &Path| std::fs::read(path).unwrap()[..before.entries[0].start as usize].to_vec();
        assert!(head(&merged) == head(&file));
        for file in [&file, &merged, &wanted] {
            std::fs::remove_file(file).unwrap();
            std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::remove_dir_all(&parameters).unwrap();
    std::fs::remove_dir_all(&base).unwrap();
}

/// A merge into a file is the merge into a folder that becomes a file, and it is found there.
#[test]
fn an_adapter_goes_into_the_file() {
    let (adapter, folder, output) = (adapter("made"), place("merged"), place("merged.gguf"));
    let base = Path::new(MADE).join("llama-pieces");
    let inputs = || {
        let adapter = Adapter::open(&adapter, 1.0).unwrap();
        Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter]).unwrap()
    };
    let merge = |options: &Options, output: &Path| {
        let inputs = inputs();
        let plan = Plan::new(&inputs, options).unwrap();
        merge::run(&inputs, &plan, None, output, &RunOptions::default(), &Silent).unwrap();
    };
    merge(&Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() }, &folder);
    for name in ["f32", "q4_0"] {
        let existing = qmerge::write::Existing { force: true, resume: false };
        let inputs = inputs();
        let options = Options { export: Some(export(name)), ..Options::default() };
        let plan = Plan::new(&inputs, &options).unwrap();
        let run = RunOptions { existing, ..RunOptions::default() };
        merge::run(&inputs, &plan, None, &output, &run, &Silent).unwrap();
        let merged = Checkpoint::open(&output).unwrap();
        let wanted = place("wanted.gguf");
        write(&folder, &options, &wanted, &run).unwrap();
        let other = Checkpoint::open(&wanted).unwrap();
        for entry in &merged.entries {
            let same = other.get(&entry.name).unwrap();
            let read = |checkpoint: &Checkpoint, entry| checkpoint.read_small(entry, 1 << 20).unwrap();
            assert_eq!(read(&merged, entry), read(&other, same), "{name}: {}", entry.name);
        }
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        let options = qmerge::verify::VerifyOptions::default();
        let found = qmerge::verify::verify(&inputs, &plan, &merged, &options, &Silent).unwrap();
        assert_eq!(found.answer, qmerge::verify::Answer::Yes, "{name}: {}", found.text);
        for file in [&wanted, &qmerge::write::path_beside(&wanted)] {
            std::fs::remove_file(file).unwrap();
        }
    }
    for file in [&output, &qmerge::write::path_beside(&output)] {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::remove_dir_all(&adapter).unwrap();
}

/// A merge into a file is the merge into the folder that becomes a file, whatever the file has in another order, turned or in other dimensions.
#[test]
fn a_merge_into_a_file_is_the_merge_into_its_folder() {
    let run = RunOptions::default();
    let f32 = Options { export: Some(export("f32")), ..Options::default() };
    let to_f32 = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    for (model, targets, is_conv1d) in [
        ("gptneox", &["query_key_value", "dense_h_to_4h"][..], false),
        ("falcon", &["query_key_value", "self_attention.dense"], false),
        ("gpt2", &["c_attn", "mlp.c_proj"], true),
        ("granite", &["q_proj", "k_proj"], false),
        ("glm4", &["gate_up_proj", "o_proj"], false),
        ("lfm2", &["in_proj", "out_proj", "w2"], false),
        ("phi", &["dense", "fc1"], false),
        ("deepseek2", &["kv_b_proj", "kv_a_proj_with_mqa"], false),
        ("deepseek3", &["kv_b_proj", "q_b_proj", "shared_experts.up_proj"], false),
        ("granitehybrid", &["q_proj", "shared_mlp.input_linear", "shared_mlp.output_linear"], false),
        ("granitemoe", &["q_proj", "k_proj"], false),
        ("granitemoeshared", &["shared_mlp.input_linear", "shared_mlp.output_linear"], false),
        ("olmoe", &["q_proj", "o_proj"], false),
        ("minimax_m2", &["k_proj", "o_proj"], false),
        ("glm4moe", &["q_proj", "shared_experts.down_proj"], false),
        ("gptoss", &["q_proj", "o_proj", PARAMETERS[0]], false),
        ("gptoss", &["k_proj", PARAMETERS[1]], false),
        ("gemma4", &["q_proj", "down_proj", "per_layer_projection", "per_layer_model_projection"], false),
        ("gemma4moe", &["k_proj", "router.proj", PARAMETERS[4]], false),
        ("gemma4moe", &["o_proj", PARAMETERS[5]], false),
        (
            "gemma3n",
            &["q_proj", "modality_router", "linear_left", "altup_projections.1", "per_layer_model_projection"],
            false,
        ),
        ("llama4", &["q_proj", "shared_expert.up_proj", PARAMETERS[2]], false),
        ("llama4", &["k_proj", PARAMETERS[3]], false),
        ("ernie4_5moe", &["o_proj", "shared_experts.down_proj", "gate_proj"], false),
        ("hunyuanmoe", &["q_proj", "shared_mlp.up_proj", "wg"], false),
        ("phimoe", &["q_proj", "w1", "w2"], false),
        ("gemma3sees", &["model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"], false),
        ("gemma4sees", &["language_model.layers.1.self_attn.q_proj", "per_layer_projection"], false),
        ("mistral3sees", &["self_attn.k_proj", "mlp.up_proj"], false),
        ("ministral3sees", &["self_attn.q_proj", "mlp.down_proj"], false),
        ("llama4sees", &["model.layers.1.self_attn.o_proj", PARAMETERS[2]], false),
        ("qwen35sees", &["in_proj_qkv", "linear_attn.out_proj"], false),
        ("qwen2vlsees", &["self_attn.q_proj", "mlp.down_proj"], false),
        ("qwen25vlsees", &["self_attn.k_proj", "self_attn.o_proj"], false),
        ("qwen3vlsees", &["self_attn.q_proj", "mlp.up_proj"], false),
        ("qwen3vlmoesees", &["self_attn.v_proj", PARAMETERS[0]], false),
        ("qwen3vlmoesees", &["self_attn.o_proj", PARAMETERS[1]], false),
        ("llavasees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("llavanextsees", &["mlp.gate_proj", "mlp.down_proj"], false),
        ("llavaonevisionsees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("internvlsees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("idefics3sees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("smolvlmsees", &["mlp.down_proj", "self_attn.o_proj"], false),
        ("qwen3next", &["in_proj_qkvz", "in_proj_ba", "linear_attn.out_proj"], false),
        ("qwen35", &["in_proj_qkv", "in_proj_z", "in_proj_a", "linear_attn.out_proj"], false),
        ("qwen35moe", &["in_proj_qkv", "in_proj_b", "linear_attn.out_proj"], false),
    ] {
        let [base, file, folder, merged, wanted] =
            ["", ".gguf", "-merged", "-merged.gguf", "-wanted.gguf"].map(|end| place(&format!("into-{model}{end}")));
        write(&Path::new(MADE).join(model), &to_f32, &base, &run).unwrap();
        write(&base, &f32, &file, &run).unwrap();
        let adapter = adapter_of(&base, targets, is_conv1d);
        let merge = |base: &Path, options: &Options, output: &Path| {
            let adapter = Adapter::open(&adapter, 1.0).unwrap();
            let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter]).unwrap();
            let plan = Plan::new(&inputs, options).unwrap();
            merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap()
        };
        merge(&file, &Options::default(), &merged);
        merge(&base, &to_f32, &folder);
        write(&folder, &f32, &wanted, &run).unwrap();
        let [before, one, other] = [&file, &merged, &wanted].map(|file| Checkpoint::open(file).unwrap());
        let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
        let mut changed = 0;
        for entry in &one.entries {
            assert!(read(&one, &entry.name) == read(&other, &entry.name), "{model}: {}", entry.name);
            changed += usize::from(read(&one, &entry.name) != read(&before, &entry.name));
        }
        assert!(changed >= targets.len(), "{model}: {changed}");
        for file in [&file, &merged, &wanted] {
            std::fs::remove_file(file).unwrap();
            std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
        }
        for folder in [&base, &folder, &adapter] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}
