//! What vLLM, SGLang and transformers require of a checkpoint (docs/src/serving.md has the rules and their versions), held against outputs.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::model::{Folder, Tensor, change, copy_folder, demo, done, read, run, stderr};

/// Tensors by name, from the files that the index names where there is one.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let index = folder.join("model.safetensors.index.json");
    let listed: Option<Value> =
        index.is_file().then(|| serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap());
    let mut found = BTreeMap::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "safetensors") {
            continue;
        }
        for tensor in read(&path) {
            let file = path.file_name().unwrap().to_str().unwrap();
            assert!(listed.as_ref().is_none_or(|index| index["weight_map"][&tensor.0] == file), "{}", tensor.0);
            assert!(found.insert(tensor.0.clone(), tensor).is_none());
        }
    }
    if let Some(index) = listed {
        assert_eq!(index["weight_map"].as_object().unwrap().len(), found.len());
        let bytes: usize = found.values().map(|tensor| tensor.3.len()).sum();
        assert_eq!(index["metadata"]["total_size"], bytes);
    }
    found
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Codes as a column of bytes, and beside them one state with all that it promises and nothing else.
fn four_bit(found: &BTreeMap<String, Tensor>, quantization: &Value) -> usize {
    let kind = quantization["bnb_4bit_quant_type"].as_str().unwrap();
    let end = format!(".quant_state.bitsandbytes__{kind}");
    let mut weights = 0;
    for (name, state) in found {
        let Some(weight) = name.strip_suffix(&end) else { continue };
        weights += 1;
        let says: Value = serde_json::from_slice(&state.3).unwrap();
        let size = |value: &Value| value.as_u64().unwrap() as usize;
        let elements: usize = says["shape"].as_array().unwrap().iter().map(size).product();
        assert_eq!((found[weight].1, &found[weight].2[..]), (Dtype::U8, &[elements / 2, 1][..]), "{weight}");
        assert_eq!(says["quant_type"], kind);
        assert!(["bfloat16", "float16", "float32"].contains(&says["dtype"].as_str().unwrap()), "{says}");
        let nested = quantization["bnb_4bit_use_double_quant"] == true;
        let blocks = elements.div_ceil(size(&says["blocksize"]));
        let absmax = if nested { Dtype::U8 } else { Dtype::F32 };
        let mut parts = vec![(".absmax", absmax, blocks), (".quant_map", Dtype::F32, 16)];
        if nested {
            let outer = blocks.div_ceil(size(&says["nested_blocksize"]));
            parts.extend([(".nested_absmax", Dtype::F32, outer), (".nested_quant_map", Dtype::F32, 256)]);
            assert!(says["nested_offset"].is_f64() && says["nested_dtype"] == "float32", "{says}");
        }
        for (part, dtype, count) in &parts {
            let tensor = &found[&format!("{weight}{part}")];
            assert_eq!((tensor.1, &tensor.2[..]), (*dtype, &[*count][..]), "{weight}{part}");
        }
        let beside = found.keys().filter(|key| key.starts_with(&format!("{weight}."))).count();
        assert_eq!(beside, parts.len() + 1, "{weight}");
    }
    weights
}

/// A weight of bytes and a scale per row, found by its name in lower case.
fn eight_bit(found: &BTreeMap<String, Tensor>) -> usize {
    let scales: Vec<_> = found.iter().filter(|(name, _)| name.ends_with(".SCB")).collect();
    for (name, scale) in &scales {
        let weight = &found[&name.to_lowercase().replace(".scb", ".weight")];
        assert_eq!((weight.1, scale.1, &scale.2[..]), (Dtype::I8, Dtype::F32, &weight.2[..1]), "{name}");
    }
    scales.len()
}

#[test]
fn outputs_are_what_loaders_require() {
    let folder = Folder::new();
    demo(folder.path());
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata/tiny-llama");
    for name in ["base-nf4dq-sharded", "base-tied-nf4dq"] {
        copy_folder(&tiny.join("bases").join(name), &folder.join(name));
    }
    for name in ["plain", "lmhead-target-tied"] {
        copy_folder(&tiny.join("adapters").join(name), &folder.join(name));
    }
    let demo = ["merge", "--base", "base-nf4", "--adapter", "adapter"];
    let cases: [(&[&str], &[&str], &str, usize); 8] = [
        (&demo, &["--fast"], "nf4", 28),
        (&demo, &["--rounding", "nearest"], "nf4", 28),
        (&demo, &["--to", "fp4", "--double-quant", "false"], "fp4", 28),
        (&demo, &["--to", "int8"], "int8", 28),
        (&demo, &["--to", "bf16"], "bfloat16", 0),
        (&["merge", "--base", "base-nf4dq-sharded", "--adapter", "plain"], &["--fast"], "nf4", 14),
        (&["merge", "--base", "base-tied-nf4dq", "--adapter", "lmhead-target-tied"], &["--fast"], "nf4", 14),
        (&["convert", "--base", "plain-base"], &["--to", "nf4"], "nf4", 28),
    ];
    done(&folder, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "plain-base"]);
    for (number, (command, more, kind, weights)) in cases.into_iter().enumerate() {
        let out = format!("out-{number}");
        done(&folder, &[command, more, &["-o", &out]].concat());
        let (found, config) = (tensors(&folder.join(&out)), config(&folder.join(&out)));
        let quantization = &config["quantization_config"];
        let quantized = match kind {
            "bfloat16" => {
                assert!(quantization.is_null() && config["dtype"] == kind, "{config}");
                assert!(found.values().all(|tensor| tensor.1 == Dtype::BF16));
                0
            }
            _ => {
                assert_eq!(quantization["quant_method"], "bitsandbytes");
                assert_eq!(quantization["load_in_8bit"], kind == "int8");
                assert_eq!(quantization["load_in_4bit"], kind != "int8");
                assert_eq!(quantization["bnb_4bit_quant_storage"], "uint8");
                if kind == "int8" { eight_bit(&found) } else { four_bit(&found, quantization) }
            }
        };
        assert_eq!(quantized, weights, "{out}");
        // Without a head of its own a model must say that it shares the embedding, and the other way round.
        assert_eq!(config["tie_word_embeddings"] == false, found.contains_key("lm_head.weight"), "{out}");
    }
}

/// Of a matrix without values there are no codes: it stays what it is, whatever the rest becomes.
#[test]
fn an_empty_matrix_stays_plain() {
    const NAME: &str = "model.layers.9.self_attn.v_proj.weight";
    let folder = Folder::new();
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16"), &folder.join("base"));
    change(&folder.join("base/model.safetensors"), |tensors| {
        let (_, dtype, ..) = tensors[0].clone();
        tensors.push((NAME.into(), dtype, vec![4, 0], Vec::new()));
    });
    for format in ["nf4", "fp4", "int8"] {
        let output = run(folder.path(), &["convert", "--base", "base", "--to", format, "-o", format]);
        assert!(output.status.success(), "{format}: {}", stderr(&output));
        let tensors = read(&folder.join(format).join("model.safetensors"));
        let found = tensors.iter().find(|found| found.0 == NAME).unwrap();
        assert_eq!(found.2, [4, 0], "{format}");
    }
}
