//! Rounding from what the base was quantized from.

use std::path::Path;

use crate::model::{Folder, change, copy_folder, demo, read, run, stderr, stdout};

const MERGE: [&str; 7] = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out"];

/// Decoded values of one tensor in a folder, through a conversion to f32.
fn decoded(folder: &Folder, model: &str, tensor: &str) -> Vec<f32> {
    let to = format!("{model}-f32");
    let output = run(folder.path(), &["convert", "--base", model, "--to", "f32", "-o", &to, "--force", "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let tensors = read(&folder.join(&to).join("model.safetensors"));
    let bytes = &tensors.iter().find(|found| found.0 == tensor).unwrap().3;
    bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

/// Under the base's scales each value is the nearest to the 16-bit weight plus the delta.
#[test]
fn the_original_is_rounded_once() {
    const WEIGHT: &str = "model.layers.1.mlp.down_proj.weight";
    let folder = Folder::new();
    demo(folder.path());
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16"), &folder.join("original"));
    let output =
        run(folder.path(), &[&MERGE[..], &["--original", "original", "--rounding", "original", "--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rounding"]["method"], "original");
    assert!((report["summary"]["survival"].as_f64().unwrap() - 1.0).abs() < 0.1, "{}", report["summary"]);
    let exact = ["merge", "--base", "original", "--adapter", "adapter", "--to", "f32", "-o", "exact", "--quiet"];
    assert!(run(folder.path(), &exact).status.success());
    let [base, merged, exact] = ["base-nf4", "out", "exact"].map(|model| decoded(&folder, model, WEIGHT));
    let mut moved = 0;
    for ((base, merged), exact) in base.chunks(64).zip(merged.chunks(64)).zip(exact.chunks(64)) {
        for (value, (before, want)) in merged.iter().zip(base.iter().zip(exact)) {
            let nearest = base.iter().map(|level| (level - want).abs()).fold(f32::INFINITY, f32::min);
            // Decoded values are rounded to bf16, the middle between two of them with them.
            assert!((value - want).abs() <= nearest + want.abs() / 64.0, "{value} for {want}");
            moved += usize::from(value != before);
        }
    }
    assert!(moved > 100, "{moved}");
    for ((name, .., old), (.., new)) in
        read(&folder.join("base-nf4/model.safetensors")).iter().zip(&read(&folder.join("out/model.safetensors")))
    {
        assert!(old == new || name.ends_with("_proj.weight"), "{name}");
    }
}

#[test]
fn originals_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16"), &folder.join("original"));
    let refused = |more: &[&str], texts: &[&str]| {
        let output = run(folder.path(), &[&MERGE[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        for text in texts {
            assert!(stderr(&output).contains(text), "{more:?}: `{text}` is not in {}", stderr(&output));
        }
    };
    refused(&["--rounding", "original"], &["needs the checkpoint that the base was quantized from", "--original"]);
    refused(&["--original", "original", "--rounding", "nearest"], &["--original is of no use to rounding nearest"]);
    let file = folder.join("original/model.safetensors");
    // Rows in another order, as in a file that keeps queries otherwise: the right values in the wrong places.
    let turn = || {
        change(&file, |tensors| {
            let (.., bytes) =
                tensors.iter_mut().find(|found| found.0.ends_with("layers.1.self_attn.q_proj.weight")).unwrap();
            let half = bytes.len() / 2;
            bytes.rotate_left(half);
        });
    };
    turn();
    refused(
        &["--original", "original", "--fast"],
        &["layers.1.self_attn.q_proj", "not those that the base was quantized from", "original/model.safetensors"],
    );
    assert!(!folder.join("out").exists());
    turn();
    change(&file, |tensors| {
        let (.., bytes) = tensors.iter_mut().find(|found| found.0.ends_with("layers.2.mlp.up_proj.weight")).unwrap();
        bytes[10..12].copy_from_slice(&[0x80, 0x7f]);
    });
    refused(
        &["--original", "original", "--fast"],
        &["layers.2.mlp.up_proj", "the original holds inf", "original/model.safetensors"],
    );
    change(&file, |tensors| tensors.retain(|found| !found.0.ends_with("layers.0.mlp.up_proj.weight")));
    refused(&["--original", "original", "--fast"], &["layers.0.mlp.up_proj.weight", "is missing in the original"]);
}

/// Who gives the original gets no less: a merge that can be calibrated is, and one that is not rounds from the original.
#[test]
fn the_original_makes_no_merge_worse() {
    let folder = Folder::new();
    demo(folder.path());
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base-bf16"), &folder.join("original"));
    let plan = |more: &[&str]| {
        let args = [&MERGE[..], &["--original", "original", "--dry-run", "--json"], more].concat();
        let output = run(folder.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let left_alone = plan(&[]);
    assert_eq!(left_alone["rounding"], "adapter");
    let warnings = left_alone["warnings"].to_string();
    assert!(warnings.contains("the original is not used"), "{warnings}");
    let fast = plan(&["--fast"]);
    assert_eq!((&fast["rounding"], fast["warnings"].as_array().unwrap().len()), (&"original".into(), 0));
}
