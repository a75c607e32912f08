//! Into GGUF and out of it, as a user does it. What the files consist of is held against llama.cpp's in the library's tests.

use crate::model::{Folder, change, demo, done, f32s, noise, read, refused, run, stdout};

/// Merged and quantized in one command, the file runs, holds the adapter, and becomes a folder that runs.
#[test]
fn a_merge_into_gguf_runs_and_comes_back() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter"];
    let nearest = [&merge[..], &["--rounding", "nearest", "--to", "q8_0", "-o", "out.gguf"]].concat();
    let said = done(&folder, &nearest);
    assert!(
        said.contains("nf4 + bf16 → q8_0") && said.contains("verdict: the adapter's effect is most likely kept"),
        "{said}"
    );
    assert!(folder.join("out.qmerge-report.json").is_file());
    let said = done(&folder, &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out.gguf"]);
    assert!(said.contains("the adapter is applied in all 28 weights"), "{said}");
    let generate = |base: &str| done(&folder, &["generate", "--base", base, "--prompt", "The river", "-n", "12", "-q"]);
    done(&folder, &["convert", "--base", "out.gguf", "--to", "f32", "-o", "back"]);
    assert_eq!(generate("out.gguf"), generate("back"));
    done(&folder, &["convert", "--base", "out.gguf", "--to", "nf4", "-o", "back-nf4"]);
    let said = done(&folder, &["inspect", "back-nf4"]);
    assert!(said.contains("nf4") && !said.contains("q8_0"), "{said}");
    // An adapter on the way out.
    done(&folder, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "base.gguf"]);
    let out = ["merge", "--base", "base.gguf", "--adapter", "adapter", "--to", "bf16", "--fast", "-o", "merged"];
    done(&folder, &out);
    let said = done(&folder, &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "merged"]);
    assert!(said.contains("the adapter is applied in all 28 weights"), "{said}");
}

/// What the adapter has in place of a tensor is found in few bits, and not where the base's lies instead.
#[test]
fn a_replaced_tensor_is_found_in_few_bits() {
    let folder = Folder::new();
    demo(folder.path());
    let table = "model.embed_tokens.weight";
    done(&folder, &["convert", "--base", "base-nf4", "--to", "f32", "-o", "plain", "-q"]);
    let old = read(&folder.join("plain/model.safetensors")).into_iter().find(|found| found.0 == table).unwrap();
    let (.., shape, bytes) = old;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    let size = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    let trained = f32s(&format!("base_model.model.{table}"), &shape, |i| values[i] + 0.05 * size * noise(i));
    change(&folder.join("adapter/adapter_model.safetensors"), |tensors| tensors.push(trained.clone()));
    let config = folder.join("adapter/adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["modules_to_save"] = serde_json::json!(["embed_tokens"]);
    std::fs::write(&config, json.to_string()).unwrap();
    let sources = ["--base", "base-nf4", "--adapter", "adapter"];
    for to in ["q8_0", "q4_0", "q2_k"] {
        let merge = ["--to", to, "--rounding", "nearest", "--measure", "never", "-o", "out.gguf", "--force", "-q"];
        done(&folder, &[&["merge"], &sources[..], &merge].concat());
        let said = done(&folder, &[&["verify", "--merged", "out.gguf"], &sources[..]].concat());
        assert!(said.contains("yes: the adapter is applied in all 29 weights"), "{to}: {said}");
        done(&folder, &["convert", "--base", "base-nf4", "--to", to, "-o", "unmerged.gguf", "--force", "-q"]);
        let output = run(folder.path(), &[&["verify", "--merged", "unmerged.gguf", "--json"], &sources[..]].concat());
        let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        let of_table = found["weights"].as_array().unwrap().iter().find(|weight| weight["name"] == table).unwrap();
        assert_eq!(of_table["state"], "not_replaced", "{to}: {of_table}");
    }
}

#[test]
fn options_that_are_of_no_use_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    let convert = ["convert", "--base", "base-nf4", "-o", "out.gguf"];
    std::fs::write(folder.join("imatrix.dat"), b"no matrix").unwrap();
    let imatrix = ["--imatrix", "imatrix.dat"];
    refused(&folder, &[&convert[..], &["--to", "bf16"], &imatrix].concat(), &["--imatrix is of no use to --to bf16"]);
    refused(&folder, &[&convert[..], &["--to", "q4_0"], &imatrix].concat(), &["imatrix.dat", "importance matrix"]);
    let settings = ["--to", "q4_0", "--block-size", "32"];
    refused(&folder, &[&convert[..], &settings].concat(), &["--block-size is of no use"]);
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out.gguf"];
    refused(&folder, &[&merge[..], &["--to", "q4_0", "--rounding", "keep"]].concat(), &["keeps the base's scales"]);
    done(&folder, &["convert", "--base", "base-nf4", "--to", "q8_0", "-o", "base.gguf"]);
    assert!(!folder.join("out.gguf").exists());
}
