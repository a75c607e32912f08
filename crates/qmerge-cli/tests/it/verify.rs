//! `verify` on merges whose outcome is known: yes to what holds the adapter, no to what lost it, and no name for a weight that is not true of it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::model::{Folder, demo, done, run, stderr, stdout};

/// The answer, and the states of weights.
fn verified(folder: &Folder, adapter: &str, merged: &str) -> (String, BTreeSet<String>, String) {
    let output =
        run(folder.path(), &["verify", "--base", "base-nf4", "--adapter", adapter, "--merged", merged, "--json"]);
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let states = found["weights"].as_array().unwrap().iter().map(|weight| word(&weight["state"])).collect();
    (word(&found["answer"]), states, word(&found["text"]))
}

fn merged(folder: &Folder, adapter: &str, output: &str, more: &[&str]) {
    let merge = ["merge", "--base", "base-nf4", "--adapter", adapter, "-o", output, "--measure", "never", "--quiet"];
    done(folder, &[&merge[..], more].concat());
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn what_keeps_the_adapter_is_a_merge() {
    let folder = Folder::new();
    demo(folder.path());
    for (output, more) in [
        ("bf16", &["--to", "bf16"][..]),
        ("int8", &["--to", "int8"]),
        ("nf4", &[]),
        ("fast", &["--fast"]),
        ("fp4", &["--to", "fp4"]),
    ] {
        merged(&folder, "adapter", output, more);
        let (answer, states, text) = verified(&folder, "adapter", output);
        assert_eq!(answer, "yes", "{output}: {text}");
        assert!(states.is_subset(&set(&["applied", "moved"])), "{output}: {states:?}");
    }
}

/// A weak delta, whose merge leaves next to nothing of it along the delta in a weight: chosen values are told from rounded ones.
#[test]
fn chosen_values_are_told_from_lost_ones() {
    let folder = Folder::new();
    demo(folder.path());
    const WEAK: &str = "adapter=0.15";
    merged(&folder, WEAK, "nearest", &["--rounding", "nearest"]);
    let (answer, states, text) = verified(&folder, WEAK, "nearest");
    assert_eq!(answer, "no", "{text}");
    // Nine values in ten are others than the base's, so no weight was left out of the merge.
    assert!(states.is_subset(&set(&["lost", "erased", "scaled"])), "{states:?}");
    merged(&folder, WEAK, "adapter-out", &["--rounding", "adapter"]);
    assert_eq!(verified(&folder, WEAK, "adapter-out").0, "yes");
    // These leave an eighth and a fifth of the delta in the weights, and more than that in the layers' outputs: which is not for the weights to tell.
    const WEAKER: &str = "adapter=0.4";
    for method in ["gptq", "descent"] {
        merged(&folder, WEAKER, method, &["--rounding", method]);
        let (answer, states, text) = verified(&folder, WEAKER, method);
        assert_eq!(answer, "undecided", "{method}: {text}");
        assert!(states.is_subset(&set(&["applied", "moved"])), "{method}: {states:?} {text}");
        assert!(text.contains("`qmerge compare` does"), "{text}");
    }
}

/// A strong delta makes scales others than the base's, under which rounding to the nearest gives other levels: no method chose them.
#[test]
fn what_was_rounded_to_the_nearest_is_not_called_chosen() {
    let folder = Folder::new();
    demo(folder.path());
    for to in ["same", "nf4", "fp4", "int8"] {
        for strength in ["adapter=0.5", "adapter", "adapter=3"] {
            let output = format!("{to}-{strength}");
            merged(&folder, strength, &output, &["--rounding", "nearest", "--to", to]);
            let (answer, states, text) = verified(&folder, strength, &output);
            assert!(!states.contains("moved"), "{output}: {states:?} {text}");
            if output == "same-adapter" {
                assert_eq!((answer.as_str(), states), ("no", set(&["applied", "lost"])), "{text}");
                assert!(text.contains("rounding took most of it in 27 of 28 weights (survival 0.20)"), "{text}");
            }
        }
    }
}

/// One weight is told of in the singular.
#[test]
fn one_weight_is_not_some_weights() {
    let folder = Folder::new();
    demo(folder.path());
    crate::model::copy_folder(&folder.join("adapter"), &folder.join("one"));
    crate::model::change(&folder.join("one/adapter_model.safetensors"), |tensors| {
        tensors.retain(|tensor| tensor.0.contains("layers.0.self_attn.q_proj"));
    });
    let base = ["--base", "base-nf4", "--adapter", "one"];
    let mut said = String::new();
    for words in [
        &["merge", "-o", "nearest", "--rounding", "nearest"][..],
        &["merge", "-o", "gptq", "--rounding", "gptq", "--measure", "never"],
        &["merge", "-o", "fast", "--fast"],
        &["merge", "-o", "dry", "--dry-run"],
        &["truncate", "-o", "cut", "--rank", "1"],
        &["verify", "--merged", "nearest"],
        &["verify", "--merged", "gptq"],
        &["verify", "--merged", "fast"],
        &["verify", "--merged", "base-nf4"],
    ] {
        let output = run(folder.path(), &[&words[..1], &base, &words[1..]].concat());
        said += &stdout(&output);
        said += &stderr(&output);
    }
    let next = |at: usize| said[at + 2..].split_whitespace().next().unwrap_or_default();
    let plurals: BTreeSet<&str> = said
        .match_indices("1 ")
        .filter(|(at, _)| !said[..*at].ends_with(|last: char| last.is_ascii_digit() || last == '.'))
        .map(|(at, _)| next(at).trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|word| word.ends_with('s'))
        .collect();
    assert!(plurals.is_empty() && !said.contains("all 1"), "{plurals:?} in {said}");
}

/// The base in another format, without the adapter.
#[test]
fn what_was_never_merged_is_not_called_a_merge() {
    let folder = Folder::new();
    demo(folder.path());
    let (answer, states, text) = verified(&folder, "adapter", "base-nf4");
    assert_eq!((answer.as_str(), states), ("no", set(&["absent"])));
    assert!(text.contains("the adapter is not in 28 of 28 weights: the values are the base's"), "{text}");
    for to in ["bf16", "int8", "fp4"] {
        done(&folder, &["convert", "--base", "base-nf4", "--to", to, "-o", to, "--quiet"]);
        for adapter in ["adapter", "adapter=0.05"] {
            let (answer, states, text) = verified(&folder, adapter, to);
            assert_ne!(answer, "yes", "{to} {adapter}: {text}");
            assert!(!states.contains("moved") && !states.contains("applied"), "{to} {adapter}: {states:?}");
        }
    }
}

#[test]
fn another_strength_is_recognised() {
    let folder = Folder::new();
    demo(folder.path());
    for (weight, to, said) in [
        ("adapter=0.3", "f32", "(survival 0.30)"),
        ("adapter=2", "f32", "(survival 2.00)"),
        ("adapter=2", "bf16", "(survival 2.00)"),
        // Rounding to bf16 leaves more than that.
        ("adapter=0.5", "bf16", "(survival 0.5"),
        ("adapter=-1", "bf16", "(survival -1.00)"),
    ] {
        let output = format!("{weight}-{to}");
        merged(&folder, weight, &output, &["--to", to]);
        let (answer, states, text) = verified(&folder, "adapter", &output);
        assert_eq!((answer.as_str(), states), ("no", set(&["scaled"])), "{output}: {text}");
        assert!(text.contains("28 weights hold the delta at another strength"), "{output}: {text}");
        assert!(text.contains(said), "{output}: {text}");
    }
}

/// Values that were rounded by chance hide the strength of no weight that has enough of them, in any format.
#[test]
fn one_strength_in_all_weights_is_no_methods_doing() {
    let folder = Folder::new();
    demo(folder.path());
    for (weight, strength) in [("adapter=2", 2.0), ("adapter=-1", -1.0)] {
        merged(&folder, weight, weight, &["--rounding", "stochastic"]);
        let (answer, _, text) = verified(&folder, "adapter", weight);
        assert_eq!(answer, "no", "{weight}: {text}");
        let about = text.split(" times its strength").next().and_then(|text| text.rsplit(' ').next());
        let about: f64 = about.and_then(|about| about.parse().ok()).unwrap_or_else(|| panic!("{text}"));
        assert!((about - strength).abs() < 0.1, "{weight}: {text}");
    }
}

/// Rounding to 16 bits is bounded value by value, so what goes beyond it is something else.
#[test]
fn what_rounding_does_not_explain_is_found() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "base-bf16", "--quiet"]);
    merged(&folder, "adapter", "whole", &["--to", "bf16", "--rounding", "nearest"]);
    assert_eq!(verified(&folder, "adapter", "whole").0, "yes");
    let name = "model.layers.1.mlp.up_proj.weight";
    let damaged = |output: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        crate::model::copy_folder(&folder.join("whole"), &folder.join(output));
        crate::model::change(&folder.join(output).join("model.safetensors"), |tensors| {
            tensors.iter_mut().filter(|tensor| tensor.0 == name).for_each(|tensor| edit(&mut tensor.3));
        });
    };
    // A row of zeros, and a single value of 0.5.
    damaged("row", &|bytes| bytes[..128].fill(0));
    damaged("value", &|bytes| bytes[6..8].copy_from_slice(&[0x00, 0x3f]));
    for output in ["row", "value"] {
        let (answer, states, text) = verified(&folder, "adapter", output);
        assert_eq!((answer.as_str(), states), ("no", set(&["applied", "differs"])), "{output}: {text}");
        assert!(text.contains("the adapter is there (survival 1.00), but 1 of 28 weights holds values"), "{text}");
        assert!(text.contains(name), "{text}");
    }
    // A merge into few bits that was stored in 16 afterwards is judged as one into few bits.
    for (output, more) in [("few", &[][..]), ("few-nearest", &["--rounding", "nearest"])] {
        merged(&folder, "adapter", output, more);
        let wide = format!("{output}-bf16");
        done(&folder, &["convert", "--base", output, "--to", "bf16", "-o", &wide, "--quiet"]);
        let (answer, states, text) = verified(&folder, "adapter", &wide);
        assert!(!states.contains("differs") && !states.contains("scaled"), "{wide}: {states:?} {text}");
        assert_eq!(answer == "yes", output == "few", "{wide}: {text}");
    }
    // A merge into another base: that which was rounded to fp4 in between.
    done(&folder, &["convert", "--base", "base-nf4", "--to", "fp4", "-o", "other-base", "--quiet"]);
    let onto = ["merge", "--base", "other-base", "--adapter", "adapter", "-o", "other", "--to", "bf16", "--quiet"];
    done(&folder, &onto);
    let (answer, states, text) = verified(&folder, "adapter", "other");
    assert_eq!((answer.as_str(), states), ("no", set(&["differs"])), "{text}");
    assert!(text.contains("merged into another base"), "{text}");
}

/// The row of sums names the formats of the weights it sums, not those of the rest of the model.
#[test]
fn sums_name_the_formats_of_what_they_sum() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(folder.path(), &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--fast"]);
    let said = stdout(&output);
    let row = said.lines().find(|line| line.starts_with("all 28 merged weights")).unwrap();
    assert!(row.contains("nf4") && !row.contains("bf16"), "{row}");
    let output = run(folder.path(), &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out"]);
    let said = stdout(&output);
    let row = said.lines().find(|line| line.starts_with("all 28 weights")).unwrap();
    assert!(row.contains("nf4") && !row.contains("bf16"), "{row}");
}

/// An adapter that was never merged is not said to be, whatever is in the weights.
#[test]
fn the_merge_of_another_adapter_is_none_of_this() {
    let folder = Folder::new();
    demo(folder.path());
    merged(&folder, "adapter", "out", &[]);
    merged(&folder, "adapter", "nearest", &["--rounding", "nearest"]);
    crate::model::copy_folder(&folder.join("adapter"), &folder.join("other"));
    crate::model::change(&folder.join("other/adapter_model.safetensors"), |tensors| {
        for (name, _, _, bytes) in tensors.iter_mut().filter(|tensor| tensor.0.contains("lora_B")) {
            assert!(name.ends_with(".weight"));
            let values: Vec<[u8; 4]> = bytes.as_chunks().0.iter().rev().copied().collect();
            *bytes = values.concat();
        }
    });
    let (answer, _, text) = verified(&folder, "other", "out");
    assert!(answer == "undecided" && text.contains("names the file of another adapter"), "{answer}: {text}");
    for output in ["out", "nearest"] {
        std::fs::remove_file(folder.join(output).join("qmerge-report.json")).unwrap();
        let (answer, _, text) = verified(&folder, "other", output);
        assert_ne!(answer, "yes", "{output}: {text}");
        assert!(!text.contains("adapter is merged") && !text.contains("was applied"), "{output}: {text}");
    }
}
