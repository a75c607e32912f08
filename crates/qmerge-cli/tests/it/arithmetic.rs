//! Arithmetic on adapters, as commands: combined, extracted, converted, and taken out of a merge.

use serde_json::Value;

use crate::model::{self, Folder, demo, done, run, stderr, stdout};

fn refused(folder: &Folder, args: &[&str], words: &[&str]) {
    model::refused(folder, args, words);
    assert!(!folder.join("x").exists() && !folder.join("x.partial").exists(), "{args:?}");
}

/// A half and a half are the whole: a sum of adapters is merged as the adapter is, and has its rank.
#[test]
fn halves_make_a_whole() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["combine", "--adapter", "adapter=0.5", "--adapter", "adapter=0.5", "-o", "sum"]);
    let merge = |adapter: &str, out: &str| {
        done(&folder, &["merge", "base-nf4", adapter, "--to", "f32", "-o", out]);
        crate::model::read(&folder.join(out).join("model.safetensors"))
    };
    let (whole, sum) = (merge("adapter", "whole"), merge("sum", "summed"));
    let floats =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect::<Vec<_>>();
    for (whole, sum) in whole.iter().zip(&sum) {
        let (whole, sum) = (floats(&whole.3), floats(&sum.3));
        assert!(whole.iter().zip(&sum).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(0.1)));
    }
    // The merge, less what the adapter adds, and what it differs by: the adapter again.
    let text = done(&folder, &["extract", "--base", "base-nf4", "--tuned", "whole", "--rank", "8", "-o", "again"]);
    assert!(text.contains("all 28 modules") && text.contains("100.00 %"), "{text}");
    let text = done(&folder, &["convert-adapter", "base-nf4", "adapter", "--energy", "0.9", "-o", "lora"]);
    assert!(text.contains("LORA → LORA, 28 modules, rank up to"), "{text}");
    // As llama.cpp loads it, it has its own rank, and is the adapter still.
    let text = done(&folder, &["convert-adapter", "base-nf4", "adapter", "--to", "gguf-lora", "-o", "lora.gguf"]);
    assert!(text.contains("LORA → LoRA of llama.cpp, 28 modules") && text.contains("100.00 %"), "{text}");
    assert!(merge("lora.gguf", "by-gguf") == whole);
    let output = run(folder.path(), &["unmerge", "whole", "adapter", "-o", "base-again"]);
    assert!(
        output.status.success() && stderr(&output).contains("what merging rounded off is gone"),
        "{}",
        stderr(&output)
    );
    let said = stdout(&output);
    assert!(said.contains("what the adapter adds is subtracted, at 1.00 of its strength"), "{said}");
    let card = std::fs::read_to_string(folder.join("base-again/README.md")).unwrap();
    assert!(card.contains("was subtracted") && !card.contains("- merge\n"), "{card}");
    // A merge with the opposite weight takes it out as well, and may be followed by another.
    done(&folder, &["merge", "whole", "adapter=-1", "-o", "less"]);
    done(&folder, &["merge", "less", "adapter", "-o", "more"]);
    refused(&folder, &["merge", "less", "adapter=-2", "-o", "x"], &["is merged into it already", "--force"]);
    // Once is enough, and what was taken out may be merged again.
    refused(
        &folder,
        &["unmerge", "base-again", "adapter", "-o", "x"],
        &["does not say that this adapter is merged into it", "--force"],
    );
    refused(&folder, &["unmerge", "whole", "adapter=0.5", "-o", "x"], &["with weight 1.0, not 0.5"]);
    done(&folder, &["merge", "base-again", "adapter", "-o", "merged-again"]);
}

/// In the metric of the inputs of layers a sum and a difference hold as much as the cut of the adapter that they are, which numpy judges (`benches/peers/low_rank.py`).
#[test]
fn cuts_go_by_the_inputs_of_layers() {
    let folder = Folder::new();
    demo(folder.path());
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
    let file = "moments.safetensors";
    let sources = ["calibrate", "--base", "base-nf4", "--adapter", "adapter"];
    done(&folder, &[&sources[..], &["--text", text, "--calibration-tokens", "600", "-o", file]].concat());
    let found = |args: &[&str]| -> Value {
        serde_json::from_str(&done(&folder, &[args, &["--rank", "2", "--json"]].concat())).unwrap()
    };
    let by = ["--base", "base-nf4", "--calibration", file];
    let cut = found(&[&["truncate", "--adapter", "adapter", "-o", "cut"], &by[..]].concat());
    let halves = ["combine", "--adapter", "adapter=0.5", "--adapter", "adapter=0.5", "-o", "sum"];
    let sum = found(&[&halves, &by[..]].concat());
    done(&folder, &["merge", "base-nf4", "adapter", "--to", "f32", "--rounding", "nearest", "-o", "tuned"]);
    let difference = found(&[&["extract", "--tuned", "tuned", "-o", "difference"], &by[..]].concat());
    let plain = found(&["truncate", "--adapter", "adapter", "-o", "plain"]);
    for made in [&sum, &difference] {
        assert_eq!(made["calibration"], cut["calibration"]);
        assert!((made["kept"].as_f64().unwrap() - cut["kept"].as_f64().unwrap()).abs() < 1e-4, "{made} {cut}");
        assert_eq!(made["weights"].as_array().unwrap().len(), cut["weights"].as_array().unwrap().len());
        for (made, cut) in made["weights"].as_array().unwrap().iter().zip(cut["weights"].as_array().unwrap()) {
            assert!(made["by_inputs"] == true && cut["by_inputs"] == true);
            for field in ["energy", "kept"] {
                let (made, cut) = (made[field].as_f64().unwrap(), cut[field].as_f64().unwrap());
                assert!((made / cut - 1.0).abs() < 1e-3, "{field} {made} {cut}");
            }
        }
    }
    assert!((cut["kept"].as_f64().unwrap() - plain["kept"].as_f64().unwrap()).abs() > 1e-3, "the metric is another");
    refused(
        &folder,
        &[&["combine", "--adapter", "adapter", "--method", "cat", "-o", "x"], &by[..]].concat(),
        &["cat cuts nothing", "--rank"],
    );
}

/// Tuned models are merged as adapters are: with them, verified, and in any format.
#[test]
fn tuned_models_are_merged() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["merge", "base-nf4", "adapter", "--to", "f32", "--rounding", "nearest", "-o", "tuned"]);
    let floats = |out: &str, name: &str| -> Vec<f32> {
        let tensors = crate::model::read(&folder.join(out).join("model.safetensors"));
        let (.., bytes) = tensors.into_iter().find(|(own, ..)| own == name).unwrap();
        bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    // Half of the model and half of the adapter that it was made with.
    let halves = ["merge", "base-nf4", "adapter=0.5", "--tuned", "tuned=0.5", "--to", "f32", "-o", "halves"];
    let text = done(&folder, &halves);
    assert!(text.contains("the merged delta's effect is most likely kept"), "{text}");
    assert!(near(&floats("halves", name), &floats("tuned", name)));
    // Twice is once too often, of a model as of an adapter.
    refused(&folder, &["merge", "halves", "--tuned", "tuned", "-o", "x"], &["is merged into it already", "--force"]);
    let drawn = ["--tuned", "tuned", "--tuned-method", "dare_linear", "--density", "0.5", "--tuned-seed", "3"];
    let text = done(&folder, &[&["merge", "base-nf4", "-o", "drawn", "--to", "f32"][..], &drawn].concat());
    assert!(text.contains("the task vector's effect"), "{text}");
    done(&folder, &[&["verify", "base-nf4", "--merged", "drawn"][..], &drawn].concat());
    let card = std::fs::read_to_string(folder.join("drawn/README.md")).unwrap();
    for line in [
        "What a tuned model differs from a base model by, merged into",
        "- Tuned model: `tuned`, weight 1\n",
        "- Differences joined by: dare_linear, density 0.5, seed 3\n",
        "qmerge verify --base base-nf4 --tuned tuned --tuned-method dare_linear --density 0.5 --tuned-seed 3 --merged merged",
    ] {
        assert!(card.contains(line), "{card}");
    }
    // By module: nothing of it in the attention.
    let scaled = ["merge", "base-nf4", "adapter", "--lora-scale", "self_attn=0", "--to", "f32", "-o", "scaled"];
    done(&folder, &scaled);
    let attention = "model.layers.1.self_attn.q_proj.weight";
    done(&folder, &["convert", "--base", "base-nf4", "--to", "f32", "-o", "base-f32"]);
    assert_eq!(floats("scaled", attention), floats("base-f32", attention));
    assert!(near(&floats("scaled", name), &floats("tuned", name)));
    let tuned = |more: &[&'static str]| [&["merge", "base-nf4", "-o", "x"][..], more].concat();
    for (args, words) in [
        (tuned(&["--tuned", "adapter"]), &["an adapter, where a model", "--adapter"][..]),
        (tuned(&["--tuned", "tuned=x"]), &["`x` in `tuned=x` is not a number"]),
        (tuned(&["--tuned", "tuned", "--tuned-method", "ties"]), &["which share of values stays", "--density"]),
        (tuned(&["--tuned", "tuned", "--density", "0.5"]), &["linear drops no values"]),
        (tuned(&["--tuned", "tuned", "--tuned-seed", "1"]), &["--tuned-seed is of no use: linear draws nothing"]),
        (tuned(&["--tuned", "tuned", "--original", "tuned"]), &["no use beside a tuned model", "--original"]),
        (tuned(&["adapter", "--lora-scale", "no_such=0.5"]), &["`--lora-scale no_such=0.5`: no module that is merged"]),
        (tuned(&["adapter", "--lora-scale", "mlp"]), &["`--lora-scale mlp`: it has no `=`"]),
    ] {
        refused(&folder, &args, words);
    }
    refused(&folder, &["merge", "--tuned", "tuned", "-o", "x"], &["the base is not named", "--base"]);
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    for (args, words) in [
        (&["combine", "-o", "x"][..], &["ADAPTER[=WEIGHT]"][..]),
        (&["combine", "--adapter", "adapter", "--method", "best", "-o", "x"], &["dare_ties_svd"]),
        (&["combine", "--adapter", "adapter", "--method", "ties", "-o", "x"], &["ties needs", "--density"]),
        (&["combine", "--adapter", "adapter=x", "-o", "x"], &["not a number"]),
        (&["combine", "--adapter", "base-nf4", "-o", "x"], &["not an adapter"]),
        (&["combine", "--adapter", "adapter", "--adapter", "missing", "-o", "x"], &["missing"]),
        (&["combine", "--adapter", "adapter", "--force", "-o", "adapter"], &["made from"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "--rank", "2", "-o", "x"], &["do not differ"]),
        (&["extract", "--base", "base-nf4", "--tuned", "adapter", "--rank", "2", "-o", "x"], &["adapter"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "-o", "x"], &["--rank"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "--energy", "2", "-o", "x"], &["between 0 and 1"]),
        (
            &[
                "convert-adapter",
                "--base",
                "base-nf4",
                "--adapter",
                "adapter",
                "--adapter",
                "adapter",
                "--rank",
                "1",
                "-o",
                "x",
            ],
            &["qmerge combine"],
        ),
        (&["convert-adapter", "base-nf4", "adapter", "-o", "x"], &["which rank", "--energy"]),
        (&["convert-adapter", "base-nf4", "adapter", "--to", "gguf-lora", "-o", "x"], &["one file", ".gguf"]),
        (&["unmerge", "adapter", "-o", "x"], &["the merge is not named"]),
    ] {
        refused(&folder, args, words);
    }
}
