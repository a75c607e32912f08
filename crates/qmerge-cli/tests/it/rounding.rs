//! The default rounding on the demo model: what it leaves alone, what it needs, and how it goes on after an interruption.

use std::time::{Duration, Instant};

use crate::model::{Folder, demo, qmerge, read, run, stderr, stdout};

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
    refused(&["--calibrate", "short.txt"], &["short.txt", "needs at least 1024"]);
    refused(&["--calibrate", TEXT, "--rounding", "nearest"], &["--calibrate is of no use to rounding nearest"]);
    refused(&["--calibrate", TEXT, "--fast"], &["--fast"]);
    // A model that cannot be run is merged without data, and the report says why.
    let config = folder.join("base-nf4/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    let output = run(folder.path(), &[&MERGE[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["method"], "stochastic");
    assert!(report["rounding"]["reason"].as_str().unwrap().contains("`mamba` cannot be run"), "{report:#}");
}

#[test]
fn finished_layers_are_not_done_again() {
    let folder = Folder::new();
    demo(folder.path());
    let args = [&MERGE[..], &["--calibrate", TEXT, "--threads", "1"]].concat();
    let started = Instant::now();
    assert!(run(folder.path(), &args).status.success());
    let whole = started.elapsed();
    let weights = || std::fs::read(folder.join("out/model.safetensors")).unwrap();
    let want = weights();
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    let mut resumed = 0;
    for share in [0.5, 0.7, 0.85, 0.95] {
        let mut child = qmerge(folder.path(), &args).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share).max(Duration::from_millis(1)));
        let _ = child.kill();
        child.wait().unwrap();
        let journal = std::fs::read_to_string(folder.join("out.partial/qmerge-journal.jsonl")).unwrap_or_default();
        resumed += usize::from(journal.lines().count() > 1);
        let output = run(folder.path(), &[&args[..], &["--resume"]].concat());
        // A kill that came too late finds the output there.
        assert!(output.status.success() || folder.join("out").exists(), "{}", stderr(&output));
        assert!(weights() == want, "killed at {share}");
        std::fs::remove_dir_all(folder.join("out")).unwrap();
    }
    assert!(resumed > 0, "no kill came between the first layer and the end ({whole:?})");
}
