//! Checkpoints and adapters of other tools: each is named, with a way out, by every command, and nothing is written.

mod stored;

use std::path::Path;
use std::process::Output;

use safetensors::Dtype;

use crate::model::{Folder, Tensor, change, f16s, f32s, plain_model, read, run, stderr, stdout, write};

const Q: &str = "model.layers.0.self_attn.q_proj";

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let bits: usize = shape.iter().product::<usize>() * dtype.bitsize();
    (name.to_owned(), dtype, shape.to_vec(), vec![1; bits / 8])
}

/// What a merge has always copied, it copies.
#[test]
fn buffers_that_are_no_weights_are_harmless() {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 40, 48);
    let buffers = [
        tensor("embeddings.position_ids", Dtype::I64, &[1, 16]),
        tensor("bn.num_batches_tracked", Dtype::I64, &[]),
        tensor("model.layers.0.self_attn.masked_bias", Dtype::U8, &[1, 1, 4, 4]),
        tensor("model.layers.0.self_attn.bias", Dtype::BOOL, &[1, 1, 4, 4]),
        tensor("attn.relative_position_index", Dtype::I64, &[4, 4]),
        f32s("attn.logit_scale", &[4], |i| i as f32),
        tensor("rotary.inv_freq", Dtype::F64, &[8, 2]),
        tensor("tokens.ids", Dtype::I32, &[2, 2]),
    ];
    change(&folder.join("base/model.safetensors"), |tensors| tensors.extend(buffers.iter().cloned()));
    std::fs::write(
        folder.join("base/config.json"),
        r#"{"model_type": "llama", "quantization_config": null, "x_config": {}}"#,
    )
    .unwrap();
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let got = read(&folder.join("out/model.safetensors"));
    for buffer in &buffers {
        assert!(got.contains(buffer), "{} changed", buffer.0);
    }
}

fn refused(folder: &Path, args: &[&str], words: &[&str]) {
    let output = run(folder, args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}{text}", stdout(&output));
    for word in [words, &["hint: "]].concat() {
        assert!(text.contains(word), "{args:?}: `{word}` is missing in: {text}");
    }
    assert!(!folder.join("out").exists() && !folder.join("out.partial").exists(), "{args:?}");
}

/// Both options with this path; an adapter needs its own words.
fn as_base_and_adapter(folder: &Folder, path: &str, base: &[&str], adapter: &[&str]) {
    refused(folder.path(), &["merge", "--base", path, "--adapter", "adapter", "-o", "out"], base);
    refused(folder.path(), &["merge", "--base", "base", "--adapter", path, "-o", "out"], adapter);
}

fn model() -> Folder {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 40, 48);
    folder
}

#[test]
fn gguf_files() {
    let folder = model();
    std::fs::create_dir(folder.join("g")).unwrap();
    std::fs::write(folder.join("g/x.gguf"), b"GGUF\x03\x00\x00\x00\x00\x00").unwrap();
    for path in ["g/x.gguf", "g"] {
        let words = if path == "g" { ["g: ", "not an adapter"] } else { ["x.gguf", "truncated"] };
        as_base_and_adapter(&folder, path, &["x.gguf", "truncated"], &words);
    }
    refused(folder.path(), &["inspect", "g/x.gguf"], &["x.gguf", "truncated"]);
    // Whatever it is called.
    std::fs::copy(folder.join("g/x.gguf"), folder.join("base/model.safetensors")).unwrap();
    refused(folder.path(), &["inspect", "base"], &["model.safetensors", "a GGUF file"]);
}

#[test]
fn pointers_that_git_lfs_left() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    for (file, args) in [
        ("base/model.safetensors", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
        ("base/config.json", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
        ("base/tokenizer.json", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
        ("base/tokenizer.model", ["convert", "--base", "base", "--to", "f16", "-o", "out"]),
        ("adapter/adapter_model.safetensors", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
        ("adapter/adapter_config.json", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
        ("adapter/tokenizer.json", ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]),
    ] {
        let folder = model();
        std::fs::write(folder.join(file), pointer).unwrap();
        refused(folder.path(), &args, &[file, "a Git LFS pointer", "git lfs pull"]);
    }
    // A file that is neither read nor copied may be one.
    let folder = model();
    std::fs::write(folder.join("base/pytorch_model.bin"), pointer).unwrap();
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn adapters_of_other_tools() {
    let folder = model();
    let pair = |a: &str, b: &str| [f32s(a, &[8, 48], |_| 1.0), f32s(b, &[40, 8], |_| 1.0)];
    let mlx = pair(&format!("{Q}.lora_a"), &format!("{Q}.lora_b"));
    write(&folder.join("mlx/adapters.safetensors"), &mlx);
    std::fs::write(
        folder.join("mlx/adapter_config.json"),
        r#"{"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0}}"#,
    )
    .unwrap();
    let kohya = pair("lora_unet_down_0_attn_to_q.lora_down.weight", "lora_unet_down_0_attn_to_q.lora_up.weight");
    write(
        &folder.join("kohya/style.safetensors"),
        &[&kohya[..], &[f32s("lora_unet_down_0_attn_to_q.alpha", &[], |_| 4.0)]].concat(),
    );
    let diffusers = pair("unet.down.0.to_q.lora.down.weight", "unet.down.0.to_q.lora.up.weight");
    write(&folder.join("diffusers/pytorch_lora_weights.safetensors"), &diffusers);
    let flux = pair("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight");
    write(&folder.join("flux/pytorch_lora_weights.safetensors"), &flux);
    // As a base each is named, and as an adapter it is read: none fits this base.
    for (path, what, why) in [
        ("mlx", "", "the other factor"),
        ("mlx/adapters.safetensors", "an MLX adapter", "the other factor"),
        ("kohya", "kohya", "no part of one"),
        ("kohya/style.safetensors", "kohya", "no part of one"),
        ("diffusers", "a diffusers LoRA", "no part of one"),
        ("flux/pytorch_lora_weights.safetensors", "a diffusers LoRA", "no part of one"),
    ] {
        refused(folder.path(), &["merge", "--base", path, "--adapter", "adapter", "-o", "out"], &[what, "the base"]);
        refused(folder.path(), &["merge", "--base", "base", "--adapter", path, "-o", "out"], &[why]);
    }
    let output = run(folder.path(), &["inspect", "kohya"]);
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("LORA, rank 8, alpha 4"), "{text}");
    assert!(text.contains("written as kohya's sd-scripts or LyCORIS does"), "{text}");
    refused(
        folder.path(),
        &["truncate", "--adapter", "kohya", "--rank", "1", "-o", "out"],
        &["style.safetensors", "names of modules"],
    );
    // PEFT's own, without its configuration: nothing is said of options that `inspect` lacks.
    std::fs::remove_file(folder.join("adapter/adapter_config.json")).unwrap();
    refused(folder.path(), &["inspect", "adapter"], &["no adapter_config.json", "copy adapter_config.json"]);
    let output = run(folder.path(), &["inspect", "adapter"]);
    assert!(!stderr(&output).contains("--"), "{}", stderr(&output));
    refused(
        folder.path(),
        &["merge", "--base", "adapter/adapter_model.safetensors", "--adapter", "adapter", "-o", "out"],
        &["an adapter, not a model"],
    );
}

#[test]
fn parameters_that_zero_3_did_not_gather() {
    let folder = model();
    change(&folder.join("adapter/adapter_model.safetensors"), |tensors| {
        for tensor in tensors {
            (tensor.2, tensor.3) = (vec![0], Vec::new());
        }
    });
    refused(
        folder.path(),
        &["merge", "--base", "base", "--adapter", "adapter", "-o", "out"],
        &["adapter_model.safetensors", "shape [0]", "4 of 4", "zero_to_fp32.py"],
    );
    let folder = model();
    change(&folder.join("base/model.safetensors"), |tensors| (tensors[1].2, tensors[1].3) = (vec![0], Vec::new()));
    refused(
        folder.path(),
        &["convert", "--base", "base", "--to", "f16", "-o", "out"],
        &["1 of 2", "stage3_gather_16bit_weights"],
    );
}

/// transformers takes `model.safetensors` where it exists and does not look at an index then.
#[test]
fn two_sets_of_weights() {
    let folder = model();
    let merge = |out: &str| run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", out]);
    assert!(merge("alone").status.success());
    let old: Vec<Tensor> =
        (0..2).map(|i| f16s(&format!("model.layers.{i}.self_attn.q_proj.weight"), &[40, 48], 0x3c00)).collect();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (name, tensor) in names.iter().zip(&old) {
        write(&folder.join("base").join(name), std::slice::from_ref(tensor));
        map.insert(tensor.0.clone(), (*name).into());
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.join("base/model.safetensors.index.json"), &index).unwrap();
    let same = |output: Output, out: &str| {
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(read(&folder.join("alone/model.safetensors")) == read(&folder.join(out).join("model.safetensors")));
        assert!(!folder.join(out).join("model.safetensors.index.json").exists());
    };
    same(merge("both"), "both");
    // The shards are gone, the index is not.
    names.iter().for_each(|name| std::fs::remove_file(folder.join("base").join(name)).unwrap());
    same(merge("index"), "index");
    // Shards without an index: a whole set, or nothing.
    let folder = model();
    std::fs::remove_file(folder.join("base/model.safetensors")).unwrap();
    for (name, tensor) in names.iter().zip(&old) {
        write(&folder.join("base").join(name), std::slice::from_ref(tensor));
    }
    // The same model whole, under other names.
    write(&folder.join("base/consolidated.safetensors"), &[f16s("layers.0.attention.wq.weight", &[40, 48], 0)]);
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "whole", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(folder.join("whole").join(names[1]).exists() && !folder.join("whole/consolidated.safetensors").exists());
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"];
    write(&folder.join("base/model-00001-of-00003.safetensors"), &old[..1]);
    refused(folder.path(), &args, &["two sets of weights", "of-00002", "of-00003"]);
    std::fs::remove_file(folder.join("base/model-00001-of-00003.safetensors")).unwrap();
    std::fs::remove_file(folder.join("base").join(names[0])).unwrap();
    refused(folder.path(), &args, &["shard 1 of 00002 is missing"]);
}

#[test]
fn shard_names_that_are_no_plain_names() {
    for name in ["C:x", "c:\\x", "/etc/passwd", "..", "a/b", "a\0b", "nul.safetensors", "COM1", "x.", ""] {
        let folder = model();
        std::fs::rename(folder.join("base/model.safetensors"), folder.join("base/x.safetensors")).unwrap();
        let index = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        std::fs::write(folder.join("base/model.safetensors.index.json"), index).unwrap();
        let output = run(folder.path(), &["inspect", "base"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is not a plain file name"), "{name:?}: {}", stderr(&output));
    }
}

/// What Python's `json` writes comes through, copied or rewritten.
#[test]
fn infinities_and_nan_in_configurations() {
    let folder = model();
    let config = "{\n  \"model_type\": \"llama\",\n  \"time_step_limit\": [\n    0.0,\n    Infinity\n  ],\n  \"low\": -Infinity,\n  \"odd\": NaN,\n  \"text\": \"NaN, Infinity\",\n  \"torch_dtype\": \"bfloat16\"\n}\n";
    std::fs::write(folder.join("base/config.json"), config).unwrap();
    let generation = "{\"temperature\": NaN}";
    std::fs::write(folder.join("base/generation_config.json"), generation).unwrap();
    std::fs::write(
        folder.join("adapter/adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "note": NaN}"#,
    )
    .unwrap();
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    for to in ["same", "f16"] {
        let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", to, "--to", to]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(file(&format!("{to}/generation_config.json")), generation);
    }
    assert_eq!(file("same/config.json"), config);
    assert_eq!(file("f16/config.json"), config.replace("bfloat16", "float16"));
    // A field that is read must still be a number.
    std::fs::write(
        folder.join("adapter/adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": Infinity}"#,
    )
    .unwrap();
    refused_plainly(&folder, &["`lora_alpha` is Infinity, expected a number"]);
    // The index is rewritten.
    std::fs::write(folder.join("adapter/adapter_config.json"), r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#)
        .unwrap();
    std::fs::rename(folder.join("base/model.safetensors"), folder.join("base/a.safetensors")).unwrap();
    let map: serde_json::Map<_, _> =
        (0..2).map(|i| (format!("model.layers.{i}.self_attn.q_proj.weight"), "a.safetensors".into())).collect();
    let index = serde_json::json!({ "metadata": { "x": 7 }, "weight_map": map }).to_string().replace(":7", ":NaN");
    std::fs::write(folder.join("base/model.safetensors.index.json"), index).unwrap();
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "indexed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(file("indexed/model.safetensors.index.json").contains("\"x\": NaN"));
}

fn refused_plainly(folder: &Folder, words: &[&str]) {
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]);
    assert_eq!(output.status.code(), Some(2));
    words.iter().for_each(|word| assert!(stderr(&output).contains(word), "{}", stderr(&output)));
}

#[test]
fn files_that_are_too_large_to_be_what_they_are_called() {
    for file in ["base/config.json", "adapter/adapter_config.json"] {
        let folder = model();
        let long = std::fs::OpenOptions::new().write(true).open(folder.join(file)).unwrap();
        long.set_len(1 << 33).unwrap();
        refused_plainly(&folder, &[file, "larger than"]);
    }
}

/// A dimension of 0 does not let the others be anything.
#[test]
fn shapes_that_overflow_behind_a_zero() {
    for shape in
        ["[0,9223372036854775808]", "[9223372036854775808,0]", "[0,4294967296,4294967296]", "[4294967296,4294967296,0]"]
    {
        let folder = model();
        let json = format!(r#"{{"a.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        std::fs::write(folder.join("base/model.safetensors"), &bytes).unwrap();
        refused_plainly(&folder, &["`a.weight`", "is too large"]);
    }
}

#[test]
fn inspect_says_what_a_file_is() {
    let folder = model();
    let inspect = |path: &str| {
        let output = run(folder.path(), &["inspect", path]);
        assert!(output.status.success(), "{}", stderr(&output));
        let output_json = run(folder.path(), &["inspect", path, "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output_json.stdout).unwrap();
        (stdout(&output), json)
    };
    // What was converted was not merged.
    assert!(run(folder.path(), &["convert", "--base", "base", "--to", "f16", "-o", "converted"]).status.success());
    let (text, json) = inspect("converted");
    assert!(!text.contains("merged") && text.contains("it was converted"), "{text}");
    assert_eq!((&json["merged_by_qmerge"], &json["converted_by_qmerge"]), (&false.into(), &true.into()));
    assert!(run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "merged"]).status.success());
    let (text, json) = inspect("merged");
    assert!(text.contains("an adapter was merged into it"), "{text}");
    assert_eq!((&json["merged_by_qmerge"], &json["converted_by_qmerge"]), (&true.into(), &false.into()));
    assert_eq!(inspect("base").1["merged_by_qmerge"], false);
    // A kind of adapter without ranks, which cannot be merged.
    write(
        &folder.join("psoft/adapter_model.safetensors"),
        &[f32s(&format!("base_model.model.{Q}.psoft_vector_a"), &[40, 1], |_| 1.0)],
    );
    std::fs::write(folder.join("psoft/adapter_config.json"), r#"{"peft_type": "PSOFT", "target_modules": ["q_proj"]}"#)
        .unwrap();
    let (text, json) = inspect("psoft");
    assert!(!text.contains("rank") && !text.contains("alpha") && text.contains("cannot be merged"), "{text}");
    assert!(text.contains("q_proj") && text.contains("40 × 1"), "{text}");
    assert_eq!((&json["r"], &json["lora_alpha"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert!(json["refused"]["reason"].as_str().unwrap().contains("PSOFT"), "{json}");
    assert!(inspect("adapter").1["refused"].is_null());
}

#[test]
fn a_calibration_is_no_model() {
    let folder = Folder::new();
    crate::model::demo(folder.path());
    std::fs::write(folder.join("text.txt"), "Some words to calibrate on, and some more of them. ".repeat(80)).unwrap();
    let args = ["calibrate", "--base", "base-nf4", "-o", "cal.safetensors", "--text", "text.txt"];
    let output = run(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(folder.path(), &["inspect", "cal.safetensors"]);
    let text = stdout(&output);
    assert!(text.contains("a calibration, for --calibration") && text.contains("taken from"), "{text}");
    assert!(!text.contains("parameters"), "{text}");
    refused(
        folder.path(),
        &["merge", "--base", "cal.safetensors", "--adapter", "adapter", "-o", "out"],
        &["cal.safetensors", "a calibration", "--calibration"],
    );
}
