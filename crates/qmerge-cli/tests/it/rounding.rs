//! The default rounding on the demo model: what it leaves alone, what it needs, and how it goes on after an interruption.

use std::path::Path;

use crate::interrupted::killed_and_resumed;
use crate::model::{Folder, change, copy_folder, demo, read, run, stderr, stdout};

const MERGE: [&str; 7] = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out"];
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");

/// Codes and the codes of block maxima differ from the base; all else is the base's to the byte.
#[test]
fn only_codes_and_scales_move() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(folder.path(), &[&MERGE[..], &["--calibrate", TEXT, "--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let before = read(&folder.join("base-nf4/model.safetensors"));
    let after = read(&folder.join("out/model.safetensors"));
    assert_eq!(before.len(), after.len());
    let mut codes = 0;
    for ((name, dtype, shape, old), (other, other_dtype, other_shape, new)) in before.iter().zip(&after) {
        assert_eq!((name, dtype, shape), (other, other_dtype, other_shape));
        if old != new {
            assert!(name.ends_with("_proj.weight") || name.ends_with("_proj.weight.absmax"), "{name}");
            codes += usize::from(name.ends_with(".weight"));
        }
    }
    assert_eq!(codes, 28);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["method"], "adapter");
    assert!(report["rounding"]["calibration"].as_str().unwrap().ends_with("calibration.txt"));
    for weight in report["weights"].as_array().unwrap() {
        assert_eq!(weight["rounding"], "adapter");
        assert!(weight["kept_output"].as_f64().unwrap() > 0.9, "{weight}");
    }
}

/// Stored moments give the bytes that the same text gives, and belong to their base.
#[test]
fn a_calibration_is_stored_for_reuse() {
    let folder = Folder::new();
    demo(folder.path());
    let calibrate =
        ["calibrate", "--base", "base-nf4", "--adapter", "adapter", "--text", TEXT, "-o", "moments.safetensors"];
    let output = run(folder.path(), &calibrate);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(folder.path(), &calibrate);
    assert!(stderr(&output).contains("--force replaces it"), "{}", stderr(&output));
    let output = run(folder.path(), &[&MERGE[..], &["--calibration", "moments.safetensors", "--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["rounding"]["calibration"].as_str().unwrap().ends_with("stored in moments.safetensors"));
    let text = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "text", "--calibrate", TEXT];
    assert!(run(folder.path(), &text).status.success());
    let [stored, fresh] = ["out", "text"].map(|name| read(&folder.join(name).join("model.safetensors")));
    assert!(stored == fresh);
    // Another model: here the same with one weight changed.
    let weights = folder.join("base-nf4/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let codes = &header["model.layers.0.mlp.down_proj.weight"]["data_offsets"][0];
    bytes[data + codes.as_u64().unwrap() as usize] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let again = ["--calibration", "moments.safetensors", "--force"];
    let output = run(folder.path(), &[&MERGE[..], &again].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the calibration belongs to another model"), "{}", stderr(&output));
}

#[test]
fn methods_without_what_they_need_say_so() {
    let folder = Folder::new();
    demo(folder.path());
    std::fs::write(folder.join("short.txt"), "And God said").unwrap();
    let refused = |more: &[&str], texts: &[&str]| {
        let output = run(folder.path(), &[&MERGE[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        for text in texts {
            assert!(stderr(&output).contains(text), "{more:?}: `{text}` is not in {}", stderr(&output));
        }
        assert!(!folder.join("out").exists() && !folder.join("out.partial").exists());
    };
    refused(&["--calibrate", "short.txt"], &["short.txt", "of the 1024 tokens that calibration needs"]);
    refused(&["--calibrate", TEXT, "--rounding", "nearest"], &["--calibrate is of no use to rounding nearest"]);
    refused(&["--calibrate", TEXT, "--fast"], &["--fast"]);
    let tokens = ["--calibration-tokens", "2048"];
    refused(&[&tokens[..], &["--to", "bf16"]].concat(), &["--calibration-tokens is of no use to rounding feedback"]);
    // A model that cannot be run is rounded by what the adapter reads, and the report says why.
    let config = folder.join("base-nf4/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    refused(&tokens, &["--calibration-tokens is of no use", "`mamba` cannot be run"]);
    let output = run(folder.path(), &[&MERGE[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["calibration"], "nothing but what the adapter reads");
    assert!(report["rounding"]["reason"].as_str().unwrap().contains("`mamba` cannot be run"), "{report:#}");
    // A method that goes by inputs alone has nothing to go by.
    let output = run(folder.path(), &[&MERGE[..], &["--json", "--force", "--rounding", "gptq"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["method"], "stochastic");
    assert!(report["rounding"]["reason"].as_str().unwrap().contains("`mamba` cannot be run"), "{report:#}");
}

/// A classifier or an encoder has no head to write text with: it is rounded by what the adapter reads, and the report says why.
#[test]
fn a_model_without_a_language_model_head_is_merged() {
    let folder = Folder::new();
    demo(folder.path());
    change(&folder.join("base-nf4/model.safetensors"), |tensors| tensors.retain(|found| found.0 != "lm_head.weight"));
    let config = folder.join("base-nf4/config.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    json["tie_word_embeddings"] = false.into();
    json["architectures"] = serde_json::json!(["LlamaForSequenceClassification"]);
    std::fs::write(&config, json.to_string()).unwrap();
    let output = run(folder.path(), &[&MERGE[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["calibration"], "nothing but what the adapter reads");
    let reason = report["rounding"]["reason"].as_str().unwrap();
    assert!(reason.contains("the model cannot be run") && reason.contains("lm_head.weight"), "{reason}");
}

#[test]
fn finished_layers_are_not_done_again() {
    let folder = Folder::new();
    demo(folder.path());
    let args = [&MERGE[..], &["--calibrate", TEXT, "--threads", "1"]].concat();
    // Behind the head, and the seven weights of each layer.
    killed_and_resumed(&folder, &args, &[2, 9, 16, 23], || {
        std::fs::read(folder.join("out/model.safetensors")).unwrap()
    });
}

/// Each weight's method is decided on its own: one that has none of the base's codes takes fresh scales, and the others keep theirs.
#[test]
fn a_replaced_weight_does_not_decide_for_the_others() {
    const REPLACED: &str = "model.layers.1.mlp.down_proj";
    let folder = Folder::new();
    demo(folder.path());
    let base = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16/model.safetensors"));
    let (_, dtype, shape, bytes) = base.iter().find(|found| found.0 == format!("{REPLACED}.weight")).unwrap().clone();
    change(&folder.join("adapter/adapter_model.safetensors"), |tensors| {
        tensors.retain(|found| !found.0.contains(REPLACED));
        tensors.push((format!("base_model.model.{REPLACED}.weight"), dtype, shape.clone(), bytes.clone()));
    });
    let config = folder.join("adapter/adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    json["modules_to_save"] = serde_json::json!(["down_proj"]);
    std::fs::write(&config, json.to_string()).unwrap();
    for (more, others) in [
        (&["--fast"][..], "adapter"),
        (&["--rounding", "stochastic"], "stochastic"),
        (&["--rounding", "keep"], "keep"),
        (&["--calibrate", TEXT], "adapter"),
    ] {
        let args = [&MERGE[..], &["--json", "--force"], more].concat();
        let planned = run(folder.path(), &[&args[..], &["--dry-run"]].concat());
        let merged = run(folder.path(), &args);
        for output in [planned, merged] {
            assert!(output.status.success(), "{more:?}: {}", stderr(&output));
            let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            let weights = document["weights"].as_array().unwrap();
            assert_eq!(weights.len(), 28);
            for weight in weights {
                let replaced = weight["name"].as_str().unwrap().starts_with(REPLACED);
                assert_eq!(weight["rounding"], if replaced { "nearest" } else { others }, "{more:?}: {weight}");
            }
            if let Some(method) = document["rounding"].get("method") {
                assert_eq!(method, others);
                let survival = document["summary"]["survival"].as_f64().unwrap();
                let least = if more == ["--fast"] { 0.8 } else { 0.9 };
                assert!(others == "keep" || survival > least, "{more:?}: {survival}");
            }
        }
    }
}

/// What is given and can have no effect is refused by name.
#[test]
fn options_without_effect_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    let refused = |more: &[&str], text: &str| {
        let output = run(folder.path(), &[&MERGE[..], more, &["--dry-run"]].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{more:?}: `{text}` is not in {}", stderr(&output));
    };
    for method in ["adapter", "descent", "gptq"] {
        refused(&["--fast", "--rounding", method], "--fast chooses the method");
    }
    refused(&["--block-size", "128"], "--block-size is of no use");
    refused(&["--block-size", "63", "--to", "nf4"], "--block-size is of no use");
    refused(&["--double-quant", "false"], "--double-quant is of no use");
    refused(&["--quant-storage", "bfloat16", "--to", "bf16"], "--quant-storage is of no use");
    refused(&["--torch-threads", "4", "--fast"], "--torch-threads is of no use");
    refused(&["--block-size", "63", "--to", "fp4"], "63");
    let output = run(folder.path(), &[&MERGE[..], &["--torch-threads", "4", "--rounding", "nearest"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// NF4 made plain is rounded by the method that was asked for, and the report names what was done. Left to itself it keeps what the nearest values lose.
#[test]
fn sixteen_bits_are_rounded_as_asked() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = |name: &str, more: &[&str]| {
        let args = ["merge", "--base", "base-nf4", "--adapter", "adapter", "--to", "bf16", "--json", "-o", name];
        let output = run(folder.path(), &[&args[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let own = merge("own", &[]);
    assert_eq!(own["rounding"]["method"], "feedback");
    let nearest = merge("nearest", &["--rounding", "nearest"]);
    assert_eq!(nearest["rounding"]["method"], "nearest");
    let rounded = merge("rounded", &["--rounding", "adapter", "--calibrate", TEXT]);
    assert_eq!(rounded["rounding"]["method"], "adapter");
    let noise = |report: &serde_json::Value| report["summary"]["noise_output"].as_f64();
    assert_eq!(noise(&nearest), None);
    assert!(noise(&rounded).unwrap() < 1e-3, "{}", rounded["summary"]);
    let bytes = |name: &str| read(&folder.join(name).join("model.safetensors"));
    assert!(
        bytes("nearest") != bytes("rounded") && bytes("nearest") != bytes("own") && bytes("own") != bytes("rounded")
    );
}

/// A coarser format than the base's is rounded by the same method, from what the reference quantizer makes of the merged weight.
#[test]
fn another_format_is_rounded_as_a_whole() {
    let folder = Folder::new();
    demo(folder.path());
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16"), &folder.join("base"));
    let merge = |output: &str, more: &[&str]| {
        let args = ["merge", "--base", "base", "--adapter", "adapter", "--to", "nf4", "-o", output, "--json"];
        let output = run(folder.path(), &[&args[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    assert_eq!(merge("nearest", &["--fast"])["rounding"]["method"], "nearest");
    let report = merge("rounded", &["--calibrate", TEXT]);
    assert_eq!(report["rounding"]["method"], "adapter");
    for weight in report["weights"].as_array().unwrap().iter().filter(|weight| weight["to"] == "nf4") {
        assert_eq!(weight["rounding"], "adapter", "{weight}");
        assert!((weight["kept_output"].as_f64().unwrap() - 1.0).abs() < 0.1, "{weight}");
    }
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
    let compare =
        "compare --base base --adapter adapter --merged nearest --merged rounded --windows 4 --continuation 0 --json";
    let args: Vec<&str> = compare.split(' ').chain(["--text", text]).collect();
    let output = run(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let kl = |at: usize| found["models"][at]["kl"].as_f64().unwrap();
    assert!(kl(3) < 0.85 * kl(2), "{found:#}");
}

/// Every family, format and kind of weight comes out with its adapter: what cannot be rounded as a whole falls back, and nothing is lost.
#[test]
fn weights_that_cannot_be_rounded_as_a_whole_keep_the_adapter_too() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge-run/testdata/tiny");
    for name in ["gpt2_lora", "mixtral_expert_lora", "qwen3_moe_lora", "phi3_lora", "llama_dora", "llama_nf4_lora"] {
        let folder = Folder::new();
        let base = std::fs::read_to_string(tiny.join(name).join("base.txt")).unwrap();
        copy_folder(&tiny.join(base.trim()), &folder.join("base"));
        copy_folder(&tiny.join(name).join("adapter"), &folder.join("adapter"));
        for more in [["--to", "nf4"], ["--to", "int8"], ["--rounding", "adapter"], ["--rounding", "gptq"]] {
            let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--json", "--force"];
            let output = run(folder.path(), &[&args[..], &more].concat());
            assert!(output.status.success(), "{name} {more:?}: {}", stderr(&output));
            let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            for weight in report["weights"].as_array().unwrap() {
                // A delta that is as large as these is far above half a step.
                let survival = weight["survival"].as_f64().unwrap_or(1.0);
                assert!((survival - 1.0).abs() < 0.4, "{name} {more:?}: {weight:#}");
            }
        }
    }
}

/// What a dry run says of memory holds, for calibrated rounding too, and so does a bound on it.
#[test]
fn memory_is_as_predicted_and_stays_below_its_bound() {
    let folder = Folder::new();
    demo(folder.path());
    let json = |extra: &[&str]| -> Result<serde_json::Value, String> {
        let output = run(folder.path(), &[&MERGE[..], &["--force", "--json", "--threads", "2"], extra].concat());
        if output.status.success() { Ok(serde_json::from_str(&stdout(&output)).unwrap()) } else { Err(stderr(&output)) }
    };
    let bytes = || std::fs::read(folder.join("out/model.safetensors")).unwrap();
    for method in [&[][..], &["--calibrate", TEXT], &["--residual-rank", "2"], &["--fast"], &["--to", "int8"]] {
        let predicted = json(&[method, &["--dry-run"]].concat()).unwrap()["memory_bytes"].as_u64().unwrap();
        let report = json(method).unwrap();
        let Some(truth) = report["summary"]["peak_rss_bytes"].as_u64() else { return };
        let ratio = predicted as f64 / truth as f64;
        assert!((0.8..2.0).contains(&ratio), "{method:?}: {predicted} predicted, {truth} taken");
        let whole = bytes();
        // The least that it says it needs is enough, gives the same bytes, and is held.
        let refusal = json(&[method, &["--max-memory", "1M"]].concat()).unwrap_err();
        let least = refusal.split("at least ").nth(1).and_then(|rest| rest.split('M').next()).unwrap();
        let least: u64 = least.parse().unwrap();
        let report = json(&[method, &["--max-memory", &format!("{least}MiB")]].concat()).unwrap();
        assert!(bytes() == whole, "{method:?}");
        let truth = report["summary"]["peak_rss_bytes"].as_u64().unwrap();
        assert!(truth < (least << 20) * 11 / 10, "{method:?}: {truth} taken of {least} MiB");
        assert!(json(&[method, &["--max-memory", &format!("{}MiB", least - 1)]].concat()).is_err());
    }
    assert!(!folder.join("out.partial").exists());
}

/// `--fast` rounds by few tokens that the model writes and does not measure; where the model cannot be run, or shall not be, it goes by what the adapter reads, which keeps less, and
/// more than chance does.
#[test]
fn what_the_adapter_reads_stands_for_inputs() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = |name: &str, more: &[&str]| {
        let args = ["merge", "--base", "base-nf4", "--adapter", "adapter", "--json", "-o", name];
        let output = run(folder.path(), &[&args[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let fast = merge("fast", &["--fast"]);
    assert_eq!(fast["rounding"]["method"], "adapter");
    assert_eq!(fast["rounding"]["calibration"], "384 tokens that the model wrote (seed 0)");
    assert!(fast["behaviour"].is_null(), "{}", fast["behaviour"]);
    merge("one", &["--fast", "--threads", "1"]);
    merge("drawn", &["--rounding", "stochastic"]);
    let config = folder.join("base-nf4/config.json");
    let own = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    let alone = merge("alone", &[]);
    assert!(alone["rounding"]["reason"].as_str().unwrap().contains("cannot be run"), "{}", alone["rounding"]);
    assert_eq!(merge("alone-fast", &["--fast"])["rounding"]["calibration"], "nothing but what the adapter reads");
    std::fs::write(&config, own).unwrap();
    merge("no-run", &["--fast", "--no-run"]);
    std::fs::copy(&config, folder.join("alone/config.json")).unwrap();

    let merged = ["fast", "alone", "drawn"].into_iter().flat_map(|name| ["--merged", name]);
    let args = ["compare", "--base", "base-nf4", "--adapter", "adapter"].into_iter().chain(merged);
    let text = ["--text", concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt"), "--windows", "8"];
    let args: Vec<&str> = args.chain(text).chain(["--continuation", "0", "--json"]).collect();
    let output = run(folder.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let kl = |at: usize| found["models"][at]["kl"].as_f64().unwrap();
    assert!(kl(2) < 0.9 * kl(3) && kl(3) < 0.9 * kl(4), "{} {} {}", kl(2), kl(3), kl(4));

    // The same bytes by any number of threads.
    let bytes = |name: &str| std::fs::read(folder.join(name).join("model.safetensors")).unwrap();
    assert!(bytes("fast") == bytes("one") && bytes("fast") != bytes("alone"));
    assert!(bytes("alone") == bytes("alone-fast") && bytes("alone") == bytes("no-run"));
}

/// What is reported is what was done: adapters that together read more directions than a row is chosen by are rounded at random.
#[test]
fn too_many_directions_are_rounded_at_random() {
    let folder = Folder::new();
    demo(folder.path());
    let copies: Vec<String> = (0..9).map(|number| format!("copy-{number}")).collect();
    copies.iter().for_each(|copy| copy_folder(&folder.join("adapter"), &folder.join(copy)));
    let merge = |count: usize, more: &[&str]| {
        let adapters = copies[..count].iter().flat_map(|copy| ["--adapter", copy]);
        let args = ["merge", "--base", "base-nf4", "--json", "--force", "-o", "out"].into_iter().chain(adapters);
        let output = run(folder.path(), &args.chain(more.iter().copied()).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", stderr(&output));
        let report = serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap();
        (report["weights"][0]["rounding"].clone(), report["rounding"]["seed"].clone())
    };
    // Of rank 8 each, and a row has 128 inputs at least.
    for more in [&["--to", "bf16"][..], &["--to", "bf16", "--rounding", "feedback"], &["--rounding", "feedback"]] {
        assert_eq!(merge(8, more), ("feedback".into(), serde_json::Value::Null), "{more:?}");
        assert_eq!(merge(9, &[more, &["--seed", "3"]].concat()).1, 3, "{more:?}");
    }
}
