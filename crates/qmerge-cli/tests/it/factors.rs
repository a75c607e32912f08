//! What multiplies a quantized weight: factors on the inputs of a feed-forward (IA³), which are factors on the outputs of the layer before, and rotations (OFT) that move values
//! far or hardly.

use serde_json::Value;

use crate::model::{Folder, Tensor, demo, done, f32s, json, noise, qmerge, read, write};

const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
const ORIGINAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/base-bf16");
const MERGE: [&str; 5] = ["merge", "--base", "base-nf4", "--adapter", "ia3"];

/// An IA³ of the demo model on `k_proj` and `down_proj`, with factors from 0.7 to 1.3.
fn adapter(folder: &Folder) {
    demo(folder.path());
    let factors = |module: String, shape: [usize; 2], layer: usize| {
        let name = format!("base_model.model.model.layers.{layer}.{module}.ia3_l");
        f32s(&name, &shape, move |i| 1.0 + 0.3 * noise(i + 1000 * layer))
    };
    let of_layer =
        |layer| [factors("self_attn.k_proj".into(), [64, 1], layer), factors("mlp.down_proj".into(), [1, 384], layer)];
    std::fs::create_dir(folder.join("ia3")).unwrap();
    write(&folder.join("ia3/adapter_model.safetensors"), &(0..4).flat_map(of_layer).collect::<Vec<_>>());
    let config =
        r#"{"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}"#;
    std::fs::write(folder.join("ia3/adapter_config.json"), config).unwrap();
}

fn changed(base: &[Tensor], merged: &[Tensor], ends: &str) -> bool {
    let own =
        |tensors: &[Tensor]| tensors.iter().filter(|tensor| tensor.0.ends_with(ends)).cloned().collect::<Vec<_>>();
    let (base, merged) = (own(base), own(merged));
    assert_eq!((base.len(), merged.len()), (4, 4), "{ends}");
    base != merged
}

#[test]
fn a_quantized_feed_forward_has_them_in_scales() {
    let folder = Folder::new();
    adapter(&folder);
    let base = read(&folder.join("base-nf4/model.safetensors"));
    for (out, options) in [("nearest", ["--rounding", "nearest"].as_slice()), ("fast", &["--fast"]), ("default", &[])] {
        done(&folder, &[&MERGE[..], &["-o", out], options].concat());
        let merged = read(&folder.join(out).join("model.safetensors"));
        for part in ["weight", "weight.absmax", "weight.nested_absmax"] {
            assert!(!changed(&base, &merged, &format!("down_proj.{part}")), "{out}: {part}");
        }
        assert!(changed(&base, &merged, "up_proj.weight.absmax"), "{out}");
        // Every tensor of the adapter has been taken, and another run says so.
        let report: Value =
            serde_json::from_slice(&std::fs::read(folder.join(out).join("qmerge-report.json")).unwrap()).unwrap();
        let weights = report["weights"].as_array().unwrap();
        assert!(weights.iter().any(|weight| weight["name"] == "model.layers.3.mlp.up_proj.weight"), "{report}");
        // What the base was quantized from has them in place.
        for base in ["base-nf4", ORIGINAL] {
            done(&folder, &["verify", "--base", base, "--adapter", "ia3", "--merged", out]);
        }
    }
    // The reference leaves them where they were trained: in 16 bits, which PEFT can.
    done(&folder, &[&MERGE[..], &["-o", "plain", "--to", "f32"][..]].concat());
    let found = json(
        &folder,
        &[
            "compare",
            "--base",
            "base-nf4",
            "--adapter",
            "ia3",
            "--merged",
            "plain",
            "--merged",
            "nearest",
            "--merged",
            "fast",
            "--merged",
            "default",
            "--text",
            EVAL,
            "--windows",
            "4",
            "--context",
            "128",
            "--continuation",
            "0",
        ],
    );
    let kl: Vec<f64> = found["models"].as_array().unwrap().iter().map(|model| model["kl"].as_f64().unwrap()).collect();
    let &[base, _, plain, ref quantized @ ..] = kl.as_slice() else { panic!("{found}") };
    assert!(base > 0.01 && plain < 1e-6, "{found}");
    assert!(quantized.iter().all(|kl| *kl < 0.03 * base), "{found}");
}

#[test]
fn a_merge_that_leaves_them_in_place_is_known_too() {
    let folder = Folder::new();
    adapter(&folder);
    done(&folder, &[&MERGE[..], &["-o", "plain", "--to", "f32"][..]].concat());
    done(&folder, &["convert", "--base", "base-nf4", "--to", "f32", "-o", "base"]);
    let (base, merged) = (read(&folder.join("base/model.safetensors")), read(&folder.join("plain/model.safetensors")));
    assert!(changed(&base, &merged, "down_proj.weight") && !changed(&base, &merged, "up_proj.weight"));
    done(&folder, &["verify", "--base", "base-nf4", "--adapter", "ia3", "--merged", "plain"]);
    // The base is no merge in either way.
    let output = qmerge(folder.path(), &["verify", "--base", "base-nf4", "--adapter", "ia3", "--merged", "base"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// What another adapter adds to `down_proj` is not to be multiplied.
#[test]
fn beside_another_adapter_they_stay() {
    let folder = Folder::new();
    adapter(&folder);
    done(&folder, &[&MERGE[..], &["--adapter", "adapter", "-o", "both", "--rounding", "nearest"][..]].concat());
    let (base, merged) =
        (read(&folder.join("base-nf4/model.safetensors")), read(&folder.join("both/model.safetensors")));
    assert!(changed(&base, &merged, "down_proj.weight"));
}

/// Without data what multiplies is drawn at random where it is small against the steps of the grid, and lies as near as it can where it is not.
#[test]
fn rotations_are_drawn_where_they_are_small() {
    let folder = Folder::new();
    demo(folder.path());
    let base = read(&folder.join("base-nf4/model.safetensors"));
    for (out, size, is_far) in [("far", 0.02, true), ("near", 0.001, false)] {
        let of_layer = |layer: usize| {
            ["self_attn.q_proj", "mlp.up_proj"].map(|module| {
                let name = format!("base_model.model.model.layers.{layer}.{module}.oft_R.weight");
                f32s(&name, &[4, 496], move |i| size * noise(i + 2000 * layer))
            })
        };
        std::fs::create_dir(folder.join(out)).unwrap();
        let tensors: Vec<Tensor> = (0..4).flat_map(of_layer).collect();
        write(&folder.join(out).join("adapter_model.safetensors"), &tensors);
        let config = r#"{"peft_type": "OFT", "r": 0, "oft_block_size": 32, "target_modules": ["q_proj", "up_proj"]}"#;
        std::fs::write(folder.join(out).join("adapter_config.json"), config).unwrap();
        let merged = |options: &[&str], name: &str| {
            let name = format!("{out}-{name}");
            done(&folder, &[&["merge", "--base", "base-nf4", "--adapter", out, "-o", &name], options].concat());
            (read(&folder.join(&name).join("model.safetensors")), name)
        };
        let (fast, fast_name) = merged(&["--fast", "--no-run"], "fast");
        let (drawn, drawn_name) = merged(&["--rounding", "stochastic"], "drawn");
        assert!(changed(&base, &fast, "up_proj.weight") && changed(&base, &drawn, "up_proj.weight"), "{out}");
        assert_eq!(fast != drawn, is_far, "{out}");
        if is_far {
            let words =
                ["compare", "--base", "base-nf4", "--adapter", out, "--merged", &fast_name, "--merged", &drawn_name];
            let text = ["--text", EVAL, "--windows", "4", "--context", "128", "--continuation", "0"];
            let found = json(&folder, &[&words[..], &text].concat());
            let kl = |number: usize| found["models"][number]["kl"].as_f64().unwrap();
            assert!(kl(2) < 0.8 * kl(3), "{found}");
        }
    }
}
