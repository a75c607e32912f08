//! Adapters beside a model: cut to a lower rank, and holding what rounding left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::interrupted::killed_and_resumed;
use crate::model::{
    Folder, Tensor, change, copy_folder, demo, done, f32s, json, plain_model, qmerge, read, run, stderr,
};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata")
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let (name, dtype, _, bytes) = tensor;
    assert_eq!(*dtype, safetensors::Dtype::F32, "{name}");
    bytes.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect()
}

fn named<'t>(tensors: &'t [Tensor], name: &str) -> &'t Tensor {
    tensors.iter().find(|tensor| tensor.0 == name).unwrap_or_else(|| panic!("{name}"))
}

/// Merged into f32, an adapter that is cut to its own rank gives what it gave before: factors, scaling, patterns, names and all that is copied are right.
#[test]
fn a_cut_to_the_whole_rank_changes_nothing() {
    let cases = [
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/plain", 8),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/rslora", 8),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/patterns", 0),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/plain-bf16file", 8),
        ("tiny-llama/bases/base-bias-bf16", "tiny-llama/adapters/lorabias", 8),
        ("tiny-llama/bases/base-bias-bf16", "tiny-llama/adapters/bias-all", 8),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/embed-target", 0),
        ("tiny-llama/bases/base-bf16", "tiny-llama/adapters/mts-lmhead", 0),
        ("peft-cases/conv-f32/base", "peft-cases/conv-f32/adapter", 0),
        ("peft-cases/gpt2-f32/base", "peft-cases/gpt2-f32/adapter", 0),
        ("peft-cases/embedding-f32/base", "peft-cases/embedding-f32/adapter", 0),
        ("peft-cases/mha-f32/base", "peft-cases/mha-f32/adapter", 0),
        ("peft-cases/mixtral-parameters/base", "peft-cases/mixtral-parameters/adapter", 0),
        ("peft-cases/gpt-oss-per-expert-f32/base", "peft-cases/gpt-oss-per-expert-f32/adapter", 0),
        ("peft-cases/tokens-dict/base", "peft-cases/tokens-dict/adapter", 0),
        ("peft-cases/bin-bf16/base", "peft-cases/bin-bf16/adapter", 0),
    ];
    for (base, adapter, rank) in cases {
        let folder = Folder::new();
        let (base, adapter) = (testdata().join(base), testdata().join(adapter));
        let inspected = json(&folder, &["inspect", adapter.to_str().unwrap()]);
        let rank = if rank > 0 { rank } else { largest_rank(&adapter, &inspected) };
        let words = [
            "truncate",
            "--adapter",
            adapter.to_str().unwrap(),
            "-o",
            "cut",
            "--rank",
            &rank.to_string(),
            "--dtype",
            "f32",
        ];
        let found = json(&folder, &words);
        assert!(found["kept"].as_f64().unwrap() > 1.0 - 1e-9, "{found}");
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("cut/adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&rank.into(), &rank.into()));
        assert_eq!((&config["use_rslora"], config["rank_pattern"].as_object().unwrap().len()), (&false.into(), 0));
        let merged = |adapter: &str, output: &str| {
            let words = ["merge", "--base", base.to_str().unwrap(), "--adapter", adapter, "--to", "f32", "-o", output];
            done(&folder, &words);
            read(&folder.join(output).join("model.safetensors"))
        };
        let (before, after) = (merged(adapter.to_str().unwrap(), "before"), merged("cut", "after"));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((&before.0, &before.2), (&after.0, &after.2));
            let (old, new) = (floats(before), floats(after));
            let largest = old.iter().fold(1e-3_f64, |most, x| most.max(x.abs()));
            // Where PEFT rounds the delta to 16 bits before it adds, a last bit may differ.
            let rounded = ["embed-target", "mixtral-parameters"]
                .iter()
                .any(|name| adapter.ends_with(name) || adapter.parent().unwrap().ends_with(name));
            let tolerance = largest * if rounded { 1.0 / 128.0 } else { 2e-6 };
            for (old, new) in old.iter().zip(&new) {
                assert!((old - new).abs() <= tolerance, "{}: {}: {old} {new}", adapter.display(), before.0);
            }
        }
    }
}

fn largest_rank(adapter: &Path, inspected: &Value) -> u64 {
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap();
    let patterns = config["rank_pattern"].as_object().into_iter().flatten().filter_map(|(_, rank)| rank.as_u64());
    patterns.chain(inspected["r"].as_u64()).max().unwrap()
}

/// Measured beside the base: the more rank the closer, and all of it is the adapter.
#[test]
fn a_cut_is_judged_beside_the_base() {
    let folder = Folder::new();
    demo(folder.path());
    let cut = |rank: &str, output: &str, more: &[&str]| {
        json(&folder, &[&["truncate", "--adapter", "adapter", "--rank", rank, "-o", output][..], more].concat())
    };
    let calibrated = ["--base", "base-nf4", "--calibrate", TEXT];
    let reports = ["1", "2", "4", "8"].map(|rank| cut(rank, &format!("r{rank}"), &calibrated));
    for report in &reports {
        assert!(report["calibration"].as_str().unwrap().ends_with("calibration.txt"));
        assert!(report["weights"].as_array().unwrap().iter().all(|weight| weight["by_inputs"] == true));
        assert!(report["advice"].as_str().unwrap().contains("beside the untouched base"));
    }
    assert!(cut("2", "plain", &[])["reason"].as_str().unwrap().contains("plain norm"));
    let words =
        ["compare", "--base", "base-nf4", "--adapter", "adapter", "--text", EVAL, "--windows", "8", "--context"];
    let more = ["64", "--continuation", "0", "--beside", "r1", "--beside", "r2", "--beside", "r4", "--beside", "r8"];
    let found = json(&folder, &[&words[..], &more, &["--beside", "plain"]].concat());
    let kl = |name: &str| {
        let models = found["models"].as_array().unwrap();
        models.iter().find(|model| model["name"] == name).unwrap()["kl"].as_f64().unwrap()
    };
    assert!(kl("base") > kl("r1") && kl("r1") > kl("r2") && kl("r2") > kl("r4") && kl("r4") > kl("r8"), "{found}");
    assert!(kl("r8") < 1e-6 && kl("plain") < 0.1 * kl("base"), "{found}");
}

/// Stored moments give what the same text gives, whatever the threads.
#[test]
fn a_cut_is_the_same_every_time() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["calibrate", "--base", "base-nf4", "--adapter", "adapter", "--text", TEXT, "-o", "m.safetensors"]);
    let words = ["truncate", "--base", "base-nf4", "--adapter", "adapter", "--rank", "3", "-o"];
    done(&folder, &[&words[..], &["a", "--calibrate", TEXT, "--threads", "1"]].concat());
    done(&folder, &[&words[..], &["b", "--calibration", "m.safetensors", "--threads", "3"]].concat());
    let [a, b] = ["a", "b"].map(|name| std::fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap());
    assert!(a == b);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let folder = Folder::new();
    demo(folder.path());
    let adapters = testdata().join("tiny-llama/adapters");
    copy_folder(&adapters.join("dora"), &folder.join("dora"));
    plain_model(folder.path(), 2, 16, 24);
    std::fs::rename(folder.join("adapter"), folder.join("broken")).unwrap();
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/adapter"), &folder.join("adapter"));
    change(&folder.join("broken/adapter_model.safetensors"), |tensors| drop(tensors.pop()));
    std::fs::create_dir(folder.join("ia3")).unwrap();
    std::fs::copy(folder.join("adapter/adapter_model.safetensors"), folder.join("ia3/adapter_model.safetensors"))
        .unwrap();
    std::fs::write(folder.join("ia3/adapter_config.json"), r#"{"peft_type": "IA3"}"#).unwrap();
    std::fs::create_dir(folder.join("pissa")).unwrap();
    std::fs::copy(folder.join("adapter/adapter_model.safetensors"), folder.join("pissa/adapter_model.safetensors"))
        .unwrap();
    let config = std::fs::read_to_string(folder.join("adapter/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["init_lora_weights"] = "pissa".into();
    std::fs::write(folder.join("pissa/adapter_config.json"), config.to_string()).unwrap();
    done(&folder, &["calibrate", "--base", "base-nf4", "--text", TEXT, "-o", "m.safetensors"]);
    let refused = |adapter: &str, more: &[&str], words: &[&str]| {
        let output = run(folder.path(), &[&["truncate", "--adapter", adapter, "-o", "out"][..], more].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in {text}"));
        assert!(!folder.join("out").exists() && !folder.join("out.partial").exists() && !text.contains("panicked"));
    };
    refused("adapter", &["--rank", "0"], &["--rank"]);
    refused("adapter", &["--rank", "9"], &["rank 9 is above the adapter's own, 8"]);
    refused("dora", &["--rank", "2"], &["dora/adapter_config.json", "DoRA", "norms"]);
    refused("ia3", &["--rank", "2"], &["IA3 adapter has no factors"]);
    refused("pissa", &["--rank", "2"], &["pissa", "--base-is-residual"]);
    refused("broken", &["--rank", "2"], &["lora_A", "the B factor", "incomplete"]);
    refused("adapter", &["--rank", "2", "--calibrate", TEXT], &["--base"]);
    refused("adapter", &["--rank", "2", "--base", "base"], &["trained on another base"]);
    // Moments of another base.
    copy_folder(&folder.join("base-nf4"), &folder.join("other"));
    let weights = folder.join("other/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let codes = header["model.layers.0.mlp.down_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[data + codes] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let others = ["--rank", "2", "--base", "other", "--calibration", "m.safetensors"];
    refused("adapter", &others, &["the calibration belongs to another model"]);
    // NaN, and values beyond f16.
    let poked = |value: f32| {
        change(&folder.join("adapter/adapter_model.safetensors"), |tensors| {
            let tensor = tensors.iter_mut().find(|tensor| tensor.0.contains("lora_A")).unwrap();
            *tensor = f32s(&tensor.0.clone(), &tensor.2.clone(), |i| if i == 3 { value } else { 1.0 });
        });
    };
    poked(f32::NAN);
    refused("adapter", &["--rank", "2"], &["lora_A", "NaN"]);
    poked(3e38);
    refused("adapter", &["--rank", "2", "--dtype", "f16"], &["lora_A", "overflows in F16", "--dtype f32"]);
    // An output that exists, and the adapter itself.
    std::fs::create_dir(folder.join("there")).unwrap();
    std::fs::write(folder.join("there/notes.txt"), "mine").unwrap();
    for (output, word) in [("there", "does not look like a model"), ("dora", "would replace the adapter")] {
        let adapter = if output == "dora" { "dora" } else { "adapter" };
        let words = ["truncate", "--adapter", adapter, "-o", output, "--rank", "2", "--force"];
        let output = run(folder.path(), &words);
        assert!(output.status.code() == Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(word) || stderr(&output).contains("DoRA"), "{}", stderr(&output));
    }
    assert!(folder.join("there/notes.txt").exists());
}

const MERGE: [&str; 7] = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out"];

/// Without data the share that the residual holds is that of the plain norm, and can be recomputed from decoded weights.
#[test]
fn the_residual_is_what_rounding_left() {
    let folder = Folder::new();
    demo(folder.path());
    let report = json(&folder, &[&MERGE[..], &["--rounding", "stochastic", "--residual-rank", "6"]].concat());
    assert_eq!((&report["residual"]["path"], &report["residual"]["rank"]), (&"residual-adapter".into(), &6.into()));
    assert_eq!(report["residual"]["weights"], 28);
    done(&folder, &["merge", "--base", "base-nf4", "--adapter", "adapter", "--to", "f32", "-o", "exact"]);
    done(&folder, &["convert", "--base", "out", "--to", "f32", "-o", "decoded"]);
    let [exact, decoded] = ["exact", "decoded"].map(|name| read(&folder.join(name).join("model.safetensors")));
    let factors = read(&folder.join("out/residual-adapter/adapter_model.safetensors"));
    assert_eq!(factors.len(), 2 * 28);
    for weight in report["weights"].as_array().unwrap() {
        let name = weight["name"].as_str().unwrap();
        let module = name.strip_suffix(".weight").unwrap();
        let factor = |which: &str| named(&factors, &format!("base_model.model.{module}.lora_{which}.weight"));
        let (a, b) = (floats(factor("A")), floats(factor("B")));
        let cols = factor("A").2[1];
        let error: Vec<f64> =
            floats(named(&exact, name)).iter().zip(floats(named(&decoded, name))).map(|(x, y)| x - y).collect();
        let all: f64 = error.iter().map(|x| x * x).sum();
        let product = |at: usize| (0..6).map(|k| b[at / cols * 6 + k] * a[k * cols + at % cols]).sum::<f64>();
        let rest = |(at, x): (usize, &f64)| x - product(at);
        let left: f64 = error.iter().enumerate().map(rest).map(|x| x * x).sum();
        let kept = weight["residual_kept"].as_f64().unwrap();
        assert!((1.0 - left / all - kept).abs() < 1e-3, "{name}: {kept} {}", 1.0 - left / all);
        assert!(kept > 0.05, "{name}: {kept}");
    }
}

/// Calibrated, output and residual together come closer to the adapter apart; the weights are those of a merge without, and the threads change nothing.
#[test]
fn a_residual_brings_the_merge_closer() {
    let folder = Folder::new();
    demo(folder.path());
    let words = [&MERGE[..], &["--calibrate", TEXT]].concat();
    let report = json(&folder, &[&words[..], &["--residual-rank", "4", "--threads", "1"]].concat());
    assert!(report["residual"]["kept"].as_f64().unwrap() > 0.1, "{}", report["residual"]);
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (weights, residual) = (bytes("out/model.safetensors"), bytes("out/residual-adapter/adapter_model.safetensors"));
    assert!(!folder.join("out/qmerge-residual").exists());
    done(&folder, &[&words[..], &["--residual-rank", "4", "--threads", "3", "--force"]].concat());
    assert!(residual == bytes("out/residual-adapter/adapter_model.safetensors"));
    let found = json(
        &folder,
        &[
            "compare",
            "--base",
            "base-nf4",
            "--adapter",
            "adapter",
            "--merged",
            "out",
            "--text",
            EVAL,
            "--windows",
            "8",
            "--context",
            "64",
            "--continuation",
            "0",
        ],
    );
    let models = found["models"].as_array().unwrap();
    let kl = |name: &str| models.iter().find(|model| model["name"] == name).unwrap()["kl"].as_f64().unwrap();
    assert!(kl("out + residual-adapter") < 0.95 * kl("out"), "{models:?}");
    done(&folder, &[&words[..], &["--force"]].concat());
    assert!(weights == bytes("out/model.safetensors") && !folder.join("out/residual-adapter").exists());
}

#[test]
fn a_resumed_merge_has_the_same_residual() {
    let folder = Folder::new();
    demo(folder.path());
    let args = [&MERGE[..], &["--calibrate", TEXT, "--threads", "1", "--residual-rank", "2"]].concat();
    let files = || {
        ["model.safetensors", "residual-adapter/adapter_model.safetensors", "residual-adapter/adapter_config.json"]
            .map(|name| std::fs::read(folder.join("out").join(name)).unwrap())
    };
    let shares = || -> Vec<Value> {
        let report: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("out/qmerge-report.json")).unwrap()).unwrap();
        report["weights"].as_array().unwrap().iter().map(|weight| weight["residual_kept"].clone()).collect()
    };
    // Behind the head, and the seven weights of each layer.
    killed_and_resumed(&folder, &args, &[2, 9, 16, 23], || (files(), shares()));
}

/// A merge that stops between its residual adapter and its name still has what the residual is made from.
#[test]
fn a_merge_that_stops_after_its_residual_adapter_has_the_same() {
    let folder = Folder::new();
    demo(folder.path());
    let args = [&MERGE[..], &["--calibrate", TEXT, "--threads", "1", "--residual-rank", "2"]].concat();
    done(&folder, &args);
    let residual = || std::fs::read(folder.join("out/residual-adapter/adapter_model.safetensors")).unwrap();
    let want = residual();
    let written = folder.join("out.partial/residual-adapter/adapter_config.json");
    loop {
        std::fs::remove_dir_all(folder.join("out")).unwrap();
        let mut child = qmerge(folder.path(), &args).stdout(std::process::Stdio::null()).spawn().unwrap();
        while !written.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        let _ = child.kill();
        child.wait().unwrap();
        // A kill that came too late is tried again.
        if written.exists() && folder.join("out.partial/qmerge-journal.jsonl").exists() {
            break;
        }
        done(&folder, &[&args[..], &["--resume", "--force"]].concat());
    }
    done(&folder, &[&args[..], &["--resume"]].concat());
    assert!(residual() == want);
    assert!(!folder.join("out/qmerge-scratch").exists());
    // What it is made from is not made again without the inputs that it was cut by.
    let again = [&args[..], &["--force"]].concat();
    let mut child = qmerge(folder.path(), &again).stdout(std::process::Stdio::null()).spawn().unwrap();
    let journal = folder.join("out.partial/qmerge-journal.jsonl");
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before a layer was listed");
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    std::fs::remove_dir_all(folder.join("out.partial/qmerge-scratch")).unwrap();
    let output = run(folder.path(), &[&args[..], &["--resume", "--force"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("what rounding left of a finished weight is gone"), "{}", stderr(&output));
}

#[test]
fn a_residual_that_would_hold_nothing_is_refused() {
    let folder = Folder::new();
    demo(folder.path());
    for (more, word) in [
        (&["--residual-rank", "0"][..], "--residual-rank"),
        (&["--residual-rank", "4", "--to", "bf16"], "coarser than 16 bits"),
        (&["--residual-rank", "100000"], "above the rank of every merged weight"),
    ] {
        let output = run(folder.path(), &[&MERGE[..], &["--fast"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
        assert!(!folder.join("out").exists() && !folder.join("out.partial").exists());
    }
    let single = ["merge", "--base", "base-nf4", "--adapter", "adapter", "--fast", "-o", "out.safetensors"];
    let output = run(folder.path(), &[&single[..], &["--residual-rank", "2"]].concat());
    assert!(stderr(&output).contains("which is a single file"), "{}", stderr(&output));
}

/// What a cut adapter would cost was not measured in a merge, nor what it costs in a cut: neither says so.
#[test]
fn nothing_is_claimed_of_a_side_adapter_that_was_not_measured() {
    let folder = Folder::new();
    demo(folder.path());
    for more in [&["--fast"][..], &["--to", "int8"], &["--to", "bf16"]] {
        let text = done(&folder, &[&MERGE[..], &["--force", "--measure", "never"], more].concat());
        assert!(!text.contains("truncate") && !text.contains("do not merge"), "{text}");
    }
    let text = done(&folder, &["truncate", "--adapter", "adapter", "--rank", "1", "-o", "cut"]);
    assert!(text.contains("qmerge compare --beside") && !text.contains("came closer"), "{text}");
}
