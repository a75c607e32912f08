//! A merge measures itself, and its verdict and thresholds rest on that.

use serde_json::Value;

use crate::model::{Folder, change, copy_folder, demo, run, stderr, stdout};

const MERGE: [&str; 6] = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o"];
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");

fn report(folder: &Folder, output: &str, more: &[&str]) -> Value {
    let done = run(folder.path(), &[&MERGE[..], &[output, "--json", "--force"], more].concat());
    assert!(done.status.success(), "{more:?}: {}", stderr(&done));
    let report: Value = serde_json::from_str(&stdout(&done)).unwrap();
    if !output.ends_with(".safetensors") {
        let path = folder.join(output).join("qmerge-report.json");
        let written: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(report, written);
    }
    report
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value:#}"))
}

/// What is the adapter kept apart to the bit has a KL of nothing, and what is the base has the base's.
#[test]
fn the_ends_of_the_scale_are_the_adapter_apart_and_the_base() {
    let folder = Folder::new();
    demo(folder.path());
    let exact = report(&folder, "exact", &["--to", "f32", "--measure", "always"]);
    let found = &exact["behaviour"];
    assert!(number(found, "kl").abs() < 1e-6 && number(found, "kl_share").abs() < 1e-5, "{found:#}");
    assert_eq!((number(found, "top1"), number(found, "tokens")), (1.0, 1120.0));
    assert_eq!((&exact["verdict"]["effect"], &exact["verdict"]["by"]), (&"kept".into(), &"behaviour".into()));
    // A delta so weak that no code reaches the next level under the base's scales.
    let nothing = ["merge", "--base", "base-nf4", "--adapter", "adapter=0.05", "-o", "base-again", "--json"];
    let done = run(folder.path(), &[&nothing[..], &["--rounding", "keep", "--measure", "always"]].concat());
    let lost: Value = serde_json::from_str(&stdout(&done)).unwrap();
    let weights = |name: &str| std::fs::read(folder.join(name).join("model.safetensors")).unwrap();
    assert!(weights("base-again") == weights("base-nf4"));
    let found = &lost["behaviour"];
    assert!(
        number(found, "kl_base") > 1e-6 && found["kl"] == found["kl_base"] && found["kl_share"] == 1.0,
        "{found:#}"
    );
    assert_eq!((&lost["verdict"]["effect"], &lost["verdict"]["kept"]), (&"lost".into(), &0.0.into()));
}

/// The report says what `compare` says of the same kind of text, and the verdict follows it.
#[test]
fn verdicts_are_in_the_order_of_kl() {
    let folder = Folder::new();
    demo(folder.path());
    let merges: [(&str, &[&str]); 5] = [
        ("bf16", &["--to", "bf16"]),
        ("int8", &["--to", "int8"]),
        ("nf4", &[]),
        ("fast", &["--fast"]),
        ("nearest", &["--rounding", "nearest"]),
    ];
    let reports: Vec<Value> = merges
        .iter()
        .map(|(name, more)| report(&folder, name, &[more, &["--measure", "always"][..]].concat()))
        .collect();
    let mut compare: Vec<&str> =
        "compare --base base-nf4 --adapter adapter --windows 8 --continuation 0 --json --text".split(' ').collect();
    compare.push(EVAL);
    for (name, _) in &merges {
        compare.extend(["--merged", name]);
    }
    let output = run(folder.path(), &compare);
    let compared: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let kl = |at: usize| number(&compared["models"][at + 2], "kl");
    let kept = |at: usize| number(&reports[at]["verdict"], "kept");
    for (at, (name, _)) in merges.iter().enumerate().skip(1) {
        assert!(kl(at - 1) < kl(at) && kept(at - 1) > kept(at), "{name}: {} {}", kl(at), kept(at));
    }
    for (report, model) in reports.iter().zip(compared["models"].as_array().unwrap().iter().skip(2)) {
        // On other text the share is another, of the same size.
        let (a, b) = (number(&report["behaviour"], "kl_share"), number(model, "kl_share"));
        assert!(a < 3.0 * b + 1e-4 && b < 3.0 * a + 1e-4, "{a} {b}");
    }
}

/// Where nothing is calibrated the model is not run, unless that was asked for; a calibrated merge can do without.
#[test]
fn a_merge_is_measured_where_the_model_is_run_or_on_demand() {
    let folder = Folder::new();
    demo(folder.path());
    let behaviour = |more: &[&str]| report(&folder, "out", more)["behaviour"].clone();
    assert!(behaviour(&["--rounding", "nearest"]).is_null() && behaviour(&["--measure", "never"]).is_null());
    let default = behaviour(&[]);
    assert!(!default.is_null());
    // Neither threads nor memory nor the form of the output change a figure.
    assert_eq!(behaviour(&["--threads", "1"]), default);
    assert_eq!(behaviour(&["--threads", "3", "--max-memory", "60M"]), default);
    assert_eq!(report(&folder, "out.safetensors", &[])["behaviour"], default);
    let unknown = report(&folder, "out", &["--measure", "never"]);
    assert_eq!((&unknown["verdict"]["effect"], &unknown["verdict"]["by"]), (&"unknown".into(), &"kept_output".into()));
    // A stored calibration is measured on text that is not in it.
    let store = ["calibrate", "--base", "base-nf4", "-o", "moments.safetensors"];
    assert!(run(folder.path(), &store).status.success());
    let stored = behaviour(&["--calibration", "moments.safetensors"]);
    assert_eq!((&stored["tokens"], &stored["kl_base"]), (&default["tokens"], &default["kl_base"]));
    assert!(stored["text"].as_str().unwrap().contains("not calibrated on"), "{stored:#}");
}

/// Another end of the text gives the same weights and other figures; another beginning gives other weights.
#[test]
fn the_end_of_a_text_is_held_back() {
    let folder = Folder::new();
    demo(folder.path());
    let text = std::fs::read_to_string(TEXT).unwrap();
    let merge = |text: String| {
        std::fs::write(folder.join("text.txt"), text).unwrap();
        let report = report(&folder, "out", &["--calibrate", "text.txt"]);
        assert!(report["behaviour"]["text"].as_str().unwrap().starts_with("at the end of text.txt"), "{report:#}");
        (std::fs::read(folder.join("out/model.safetensors")).unwrap(), report["behaviour"].clone())
    };
    let (weights, figures) = merge(text.clone());
    // Words change places, so that there are as many tokens as before, or about as many.
    let mut words: Vec<&str> = text.split(' ').collect();
    let all = words.len();
    words[all - 220..all - 160].reverse();
    let (same, other_figures) = merge(words.join(" "));
    assert!(same == weights, "the end of the text went into the calibration");
    assert_ne!(other_figures, figures);
    let changed: String = text.chars().enumerate().map(|(at, c)| if at < 2000 && c == 'e' { 'i' } else { c }).collect();
    let (other, _) = merge(changed);
    assert!(other != weights);
}

#[test]
fn thresholds_name_the_figure_that_they_compare() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = |more: &[&str]| run(folder.path(), &[&MERGE[..], &["out", "--force"], more].concat());
    let failed = |more: &[&str], text: &str| {
        let output = merge(more);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{more:?}: `{text}` is not in {}", stderr(&output));
        assert!(folder.join("out/model.safetensors").is_file());
    };
    failed(&["--rounding", "nearest", "--min-survival", "0.9"], "warning: survival 0.196 is below --min-survival 0.9");
    failed(&["--rounding", "nearest", "--min-kept", "0.9"], "is below --min-kept 0.9");
    failed(&["--min-survival", "1"], "warning: what is kept in behaviour 0.9");
    failed(&["--rounding", "descent", "--min-survival", "1", "--measure", "never"], "warning: kept output 0.85");
    assert!(merge(&["--min-kept", "0.9", "--min-survival", "0.9"]).status.success());
    for share in ["nan", "1.5", "-0.1", "190%"] {
        for option in ["--min-survival", "--min-kept"] {
            let output = merge(&[&format!("{option}={share}")]);
            assert_eq!(output.status.code(), Some(2));
            assert!(stderr(&output).contains("a share lies between 0 and 1"), "{}", stderr(&output));
        }
    }
    let output = run(
        folder.path(),
        &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out", "--min-survival", "nan"],
    );
    assert!(stderr(&output).contains("a share lies between 0 and 1"), "{}", stderr(&output));
    // What cannot be known is refused before anything is written.
    let output = merge(&["--min-kept", "0.9", "--measure", "never"]);
    assert_eq!(output.status.code(), Some(2));
    let config = folder.join("base-nf4/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    for more in [["--min-kept", "0.9"], ["--measure", "always"]] {
        let output = merge(&more);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("`mamba` cannot be run"), "{}", stderr(&output));
        assert!(!folder.join("out").exists() && !folder.join("out.partial").exists());
    }
}

/// A model whose predictions are not numbers has no figures and a verdict in words; what others are measured against must have them.
#[test]
fn broken_models_are_called_broken() {
    let folder = Folder::new();
    demo(folder.path());
    report(&folder, "out", &["--rounding", "nearest"]);
    let nan = |model: &str| {
        change(&folder.join(model).join("model.safetensors"), |tensors| {
            let norm = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
            let n = norm.3.len();
            norm.3[n - 2..].copy_from_slice(&[0xc0, 0x7f]);
        });
    };
    nan("out");
    let compare = ["compare", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out", "--text", EVAL];
    let compare = [&compare[..], &["--context", "64", "--windows", "2", "--continuation", "4"]].concat();
    let output = run(folder.path(), &compare);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("verdict: the merged model is broken: its predictions are not finite numbers"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    let output = run(folder.path(), &[&compare[..], &["--json"]].concat());
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(found["models"][2]["kl"].is_null() && found["models"][2]["verdict"]["effect"] == "broken", "{found:#}");
    copy_folder(&folder.join("base-nf4"), &folder.join("base-sound"));
    nan("base-nf4");
    let output = run(folder.path(), &compare);
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    assert!(stderr(&output).contains("the base predicts what is not finite"), "{}", stderr(&output));
}

/// A conversion has no adapter, and nothing is said of one.
#[test]
fn a_conversion_has_no_adapter_to_judge() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(folder.path(), &["convert", "--base", "base-nf4", "--to", "int8", "-o", "int8", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["verdict"]["effect"], "converted");
    assert!(!report["verdict"]["text"].as_str().unwrap().contains("delta"), "{}", report["verdict"]);
}

#[test]
fn comparisons_end_in_a_verdict() {
    let folder = Folder::new();
    demo(folder.path());
    report(&folder, "out", &["--rounding", "nearest"]);
    let compare = |more: &[&str]| {
        let args = ["compare", "--base", "base-nf4", "--adapter", "adapter", "--text", EVAL, "--context", "64"];
        let output = run(folder.path(), &[&args[..], &["--windows", "4", "--continuation", "4"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let text = compare(&["--merged", "out"]);
    // The verdict, and what to do then: this merge lost it.
    let last = |text: &str| text.trim_end().lines().rev().take(2).map(str::to_owned).collect::<Vec<_>>();
    let [next, verdict] = last(&text).try_into().unwrap();
    assert!(
        verdict.starts_with("verdict: the adapter's effect is ") && verdict.contains("what the adapter gains in loss"),
        "{verdict}"
    );
    let merge = "next: qmerge merge --base base-nf4 --adapter adapter -o merged";
    assert_eq!(next, merge);
    // The prompt stands beside the continuation's number.
    let prompt = text.lines().find_map(|line| line.strip_prefix("continuation 2 of “")?.strip_suffix('”')).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(prompt.len() > 20 && words(&std::fs::read_to_string(EVAL).unwrap()).contains(prompt), "{prompt}");
    let [next, verdict] = last(&compare(&[])).try_into().unwrap();
    assert!(verdict.starts_with("verdict: the adapter lowers the loss"), "{verdict}");
    assert_eq!(next, merge);
}
