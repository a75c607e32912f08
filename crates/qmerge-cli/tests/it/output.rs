//! What the program writes: the same bytes on any number of threads and at any vector level, in bounded memory, complete folders.

use std::path::Path;

use crate::model::{
    Folder, Tensor, bf16s, change, copy_folder, demo, f32s, noise, plain_model, qmerge, read, run, stderr, write,
};

#[test]
fn bytes_do_not_depend_on_threads_levels_or_memory() {
    let folder = Folder::new();
    demo(folder.path());
    let base = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--force"];
    let model = |extra: &[&str], level: &str| {
        let mut command = qmerge(folder.path(), &[&base[..], extra].concat());
        command.env("QMERGE_SIMD", level);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("out/qmerge-report.json")).unwrap()).unwrap();
        (std::fs::read(folder.join("out/model.safetensors")).unwrap(), report["weights"].clone())
    };
    let nearest = ["--rounding", "nearest", "--to"];
    for to in ["same", "bf16", "f16", "f32", "fp4", "int8"] {
        let to = &[&nearest[..], &[to]].concat()[..];
        let want = model(&[to, &["--threads", "1"]].concat(), "scalar");
        for level in ["scalar", "avx2", "avx512"] {
            for threads in ["1", "2", "7"] {
                assert_eq!(model(&[to, &["--threads", threads]].concat(), level), want, "{to:?} {level} {threads}");
            }
        }
        // Less memory means smaller chunks: the bytes stay, the sums may differ in their last digits.
        let report = run(folder.path(), &[&base[..], to, &["--dry-run", "--json"]].concat());
        let plan: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        let less = (plan["memory_bytes"].as_u64().unwrap() - 100_000).to_string();
        assert_eq!(model(&[to, &["--max-memory", &less]].concat(), "avx512").0, want.0, "{to:?}");
    }
    for method in ["keep", "stochastic"] {
        let method = ["--rounding", method];
        assert_eq!(model(&method, "scalar").0, model(&method, "avx512").0);
    }
    // Without vector instructions a pass over the model takes a minute.
    let want = model(&["--threads", "1"], "avx512");
    assert_eq!(model(&["--threads", "3"], "avx512"), want);
    assert_eq!(model(&["--threads", "2"], "avx2"), want);
    assert_ne!(model(&["--seed", "1"], "avx512").0, want.0);
}

/// `keep` changes codes only: scales, states and everything untouched stay byte for byte.
#[test]
fn keeping_scales_changes_codes_only() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(
        folder.path(),
        &["merge", "--base", "base-nf4", "--adapter", "adapter=20", "-o", "out", "--rounding", "keep"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let (before, after) =
        (read(&folder.join("base-nf4/model.safetensors")), read(&folder.join("out/model.safetensors")));
    let changed: Vec<&str> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
    assert_eq!(changed.len(), 28);
    assert!(changed.iter().all(|name| name.ends_with("proj.weight")));
    // An adapter of weight zero changes nothing at all.
    let output = run(
        folder.path(),
        &["merge", "--base", "base-nf4", "--adapter", "adapter=0", "-o", "same", "--rounding", "keep"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        std::fs::read(folder.join("same/model.safetensors")).unwrap(),
        std::fs::read(folder.join("base-nf4/model.safetensors")).unwrap()
    );
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let folder = Folder::new();
    let peak = |layers: usize| -> u64 {
        plain_model(folder.path(), layers, 2048, 1024);
        let output = run(
            folder.path(),
            &["merge", "-m", "base", "--adapter", "adapter", "-o", "out", "--force", "--threads", "2", "--json"],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["summary"]["peak_rss_bytes"].as_u64().unwrap_or(0)
    };
    let (small, large) = (peak(4), peak(24));
    assert!(large < 64 << 20, "{large}");
    // What waits to be written takes up to 4 MiB, and more of it may have waited in the longer run.
    assert!(large < small + (8 << 20), "{small} {large}");
}

#[test]
fn conversions_keep_what_they_can() {
    let folder = Folder::new();
    demo(folder.path());
    let convert = |from: &str, to: &str, out: &str| {
        let output = run(folder.path(), &["convert", "--base", from, "--to", to, "-o", out]);
        assert!(output.status.success(), "{from} {to}: {}", stderr(&output));
    };
    // Decoded and encoded again without a change, NF4 gives the same codes, and f32 holds bf16 exactly.
    convert("base-nf4", "bf16", "bf16");
    convert("bf16", "f32", "f32");
    convert("f32", "bf16", "bf16-again");
    assert_eq!(read(&folder.join("bf16/model.safetensors")), read(&folder.join("bf16-again/model.safetensors")));
    convert("bf16", "nf4", "nf4");
    let codes = |name: &str| -> Vec<_> {
        read(&folder.join(name))
            .into_iter()
            .filter(|(name, ..)| name.ends_with("proj.weight"))
            .map(|(.., bytes)| bytes)
            .collect()
    };
    let (before, after) = (codes("base-nf4/model.safetensors"), codes("nf4/model.safetensors"));
    let bytes: usize = before.iter().map(Vec::len).sum();
    let different: usize =
        before.iter().zip(&after).map(|(a, b)| a.iter().zip(b).filter(|(a, b)| a != b).count()).sum();
    assert!(different * 1000 < bytes, "{different} of {bytes}");
    for to in ["fp4", "int8", "f16"] {
        convert("base-nf4", to, to);
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join(to).join("config.json")).unwrap()).unwrap();
        match to {
            "fp4" => assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], "fp4"),
            "int8" => assert_eq!(config["quantization_config"]["load_in_8bit"], true),
            _ => {
                assert!(config.get("quantization_config").is_none());
                assert_eq!(config["dtype"], "float16");
            }
        }
    }
    // Embeddings and norms are not quantized.
    let names: Vec<String> = read(&folder.join("fp4/model.safetensors")).into_iter().map(|(name, ..)| name).collect();
    assert!(
        names.contains(&"model.embed_tokens.weight".to_owned())
            && !names.contains(&"model.embed_tokens.weight.absmax".to_owned())
    );
}

#[test]
fn shards_names_index_and_other_files_are_the_base_s() {
    let folder = Folder::new();
    let layer = |i: usize| format!("model.layers.{i}.self_attn.q_proj.weight");
    for i in 0..2 {
        let file = format!("base/model-0000{}-of-00002.safetensors", i + 1);
        write(&folder.join(&file), &[bf16s(&layer(i), &[64, 64], noise), f32s(&format!("extra.{i}"), &[3], noise)]);
    }
    let index = format!(
        r#"{{"metadata": {{"total_size": 1, "other": "kept"}}, "weight_map": {{"{}": "model-00001-of-00002.safetensors", "extra.0": "model-00001-of-00002.safetensors", "{}": "model-00002-of-00002.safetensors", "extra.1": "model-00002-of-00002.safetensors"}}}}"#,
        layer(0),
        layer(1)
    );
    std::fs::write(folder.join("base/model.safetensors.index.json"), index).unwrap();
    for (name, text) in [
        ("config.json", "{}"),
        ("tokenizer.json", "base"),
        ("generation_config.json", "{\"a\":1}"),
        ("chat_template.jinja", "base"),
    ] {
        std::fs::write(folder.join("base").join(name), text).unwrap();
    }
    std::fs::create_dir(folder.join("base/1_Pooling")).unwrap();
    std::fs::write(folder.join("base/1_Pooling/config.json"), "{}").unwrap();
    std::fs::write(folder.join("base/pytorch_model.bin"), "old weights").unwrap();
    let adapter_for_two = Folder::new();
    plain_model(adapter_for_two.path(), 2, 64, 64);
    copy_folder(&adapter_for_two.join("adapter"), &folder.join("adapter"));
    std::fs::write(folder.join("adapter/chat_template.jinja"), "adapter").unwrap();
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "out"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut names: Vec<String> = std::fs::read_dir(folder.join("out"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "1_Pooling",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "qmerge-report.json",
            "tokenizer.json",
        ]
    );
    assert_eq!(std::fs::read_to_string(folder.join("out/chat_template.jinja")).unwrap(), "adapter");
    let index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("out/model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], 2 * (64 * 64 * 2 + 12));
    assert_eq!(index["metadata"]["other"], "kept");
    assert_eq!(index["weight_map"][&layer(1)], "model-00002-of-00002.safetensors");
    assert_eq!(read(&folder.join("out/model-00001-of-00002.safetensors")).len(), 2);
    // With --tokenizer base the adapter's template stays out.
    assert!(
        run(folder.path(), &["merge", "-m", "base", "--lora", "adapter", "-o", "out2", "--tokenizer", "base"])
            .status
            .success()
    );
    assert_eq!(std::fs::read_to_string(folder.join("out2/chat_template.jinja")).unwrap(), "base");
}

#[test]
fn single_files_and_hub_ids() {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 64, 64);
    let output = run(
        folder.path(),
        &[
            "merge",
            "-m",
            "base/model.safetensors",
            "--adapter",
            "adapter/adapter_model.safetensors",
            "-o",
            "merged.safetensors",
        ],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(folder.join("merged.qmerge-report.json").is_file());
    assert!(!folder.join("merged.safetensors.partial").exists());
    assert!(run(folder.path(), &["merge", "-m", "base", "--adapter", "adapter", "-o", "out"]).status.success());
    assert_eq!(
        std::fs::read(folder.join("merged.safetensors")).unwrap(),
        std::fs::read(folder.join("out/model.safetensors")).unwrap()
    );
    // The same through a cache as the hub's library lays it out.
    let snapshot = folder.join("cache/models--org--base/snapshots/abc123");
    std::fs::create_dir_all(folder.join("cache/models--org--base/refs")).unwrap();
    std::fs::write(folder.join("cache/models--org--base/refs/main"), "abc123\n").unwrap();
    copy_folder(&folder.join("base"), &snapshot);
    let hub = |id: &str, out: &str| {
        qmerge(folder.path(), &["merge", "-m", id, "--adapter", "adapter", "-o", out])
            .env("HF_HUB_CACHE", folder.join("cache"))
            .output()
            .unwrap()
    };
    assert!(hub("org/base", "out-main").status.success());
    assert!(hub("org/base@abc123", "out-commit").status.success());
    let missing = hub("org/other", "out-none");
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("not in the cache"));
}

#[test]
fn names_are_translated_on_demand() {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 64, 64);
    change(&folder.join("base/model.safetensors"), |tensors| {
        for (name, ..) in tensors {
            *name = name.replace("model.layers", "decoder.blocks").replace("self_attn.q_proj", "attention.query");
        }
    });
    let args = ["merge", "-m", "base", "--adapter", "adapter", "-o", "out"];
    assert_eq!(run(folder.path(), &args).status.code(), Some(2));
    let map = r"^model\.layers\.(\d+)\.self_attn\.q_proj=>decoder.blocks.$1.attention.query";
    let output = run(folder.path(), &[&args[..], &["--map", map]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_threshold_on_survival_fails_with_status_1_and_writes_the_output() {
    let folder = Folder::new();
    demo(folder.path());
    let args = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--force", "--min-survival", "0.9"];
    let output = run(folder.path(), &[&args[..], &["--rounding", "nearest"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(run(folder.path(), &args).status.code(), Some(0), "by its outputs the adapter survives");
    assert!(folder.join("out/model.safetensors").is_file());
    assert_eq!(run(folder.path(), &[&args[..], &["--to", "bf16"]].concat()).status.code(), Some(0));
}

#[test]
fn two_adapters_are_summed() {
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    copy_folder(&folder.join("adapter"), &folder.join("other"));
    let merged = |adapters: &[&str], out: &str| {
        let mut args = vec!["merge", "-m", "base", "-o", out, "--to", "f32"];
        for adapter in adapters {
            args.extend(["--adapter", adapter]);
        }
        let output = run(folder.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        read(&folder.join(out).join("model.safetensors"))
    };
    assert_eq!(merged(&["adapter=0.75", "other=0.25"], "sum"), merged(&["adapter"], "one"));
    assert_eq!(merged(&["adapter", "other=-1"], "zero"), merged(&["adapter=0"], "none"));
}

/// GPT-2's layers are stored (in, out) while they are plain, and (out, in) as codes: a format turns them, and a plain one turns them back, with an
/// adapter's delta and without.
#[test]
fn conv1d_layers_are_turned_and_turned_back() {
    let folder = Folder::new();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata/peft-cases/gpt2-f32");
    for name in ["base", "adapter"] {
        copy_folder(&cases.join(name), &folder.join(name));
    }
    let done = |args: &[&str]| {
        let output = run(folder.path(), args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])).collect()
    };
    done(&["convert", "--base", "base", "--to", "int8", "-o", "int8"]);
    done(&["convert", "--base", "int8", "--to", "f32", "-o", "back"]);
    let [plain, codes, back] = ["base", "int8", "back"].map(|name| read(&folder.join(name).join("model.safetensors")));
    let find = |tensors: &[Tensor], name: &str| tensors.iter().find(|tensor| tensor.0 == name).unwrap().clone();
    let mut turned = 0;
    for (name, dtype, shape, bytes) in &plain {
        let ((_, coded, code_shape, code), (_, _, back_shape, back)) = (find(&codes, name), find(&back, name));
        assert_eq!(&back_shape, shape, "{name}");
        if coded == *dtype {
            assert_eq!((&code, &back), (bytes, bytes), "{name}");
            continue;
        }
        turned += 1;
        let [inputs, outputs] = shape[..] else { panic!("{name}: {shape:?}") };
        assert_eq!(code_shape, [outputs, inputs], "{name}");
        let (values, decoded) = (floats(bytes), floats(&back));
        let scales = floats(&find(&codes, &name.replace(".weight", ".SCB")).3);
        for (at, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
            let (i, o) = (at / outputs, at % outputs);
            let wanted = f32::from(code[o * inputs + i] as i8) * scales[o] / 127.0;
            assert!((decoded - wanted).abs() <= 1e-6 * scales[o], "{name} {at}: {decoded}, {wanted} from its code");
            // Half a step, and what bitsandbytes loses as it rounds values to 16 bits first.
            assert!((value - decoded).abs() <= 0.6 * scales[o] / 127.0, "{name} {at}: {decoded} of {value}");
        }
    }
    assert!(turned > 0);
    // The delta of a layer belongs to it in both orders: merged into codes and decoded, or decoded and merged.
    done(&["merge", "--base", "int8", "--adapter", "adapter", "--to", "f32", "-o", "one"]);
    done(&["merge", "--base", "back", "--adapter", "adapter", "--rounding", "nearest", "-o", "two"]);
    let [one, two] = ["one", "two"].map(|name| read(&folder.join(name).join("model.safetensors")));
    assert_ne!(two, back);
    for ((name, _, shape, one), (_, _, other, two)) in one.iter().zip(&two) {
        assert_eq!(shape, other, "{name}");
        for (one, two) in floats(one).into_iter().zip(floats(two)) {
            assert!((one - two).abs() <= 1e-6 * (1.0 + one.abs()), "{name}: {one} {two}");
        }
    }
}
