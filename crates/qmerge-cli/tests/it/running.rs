//! `compare` and `generate` on the demo model.

use crate::model::{Folder, demo, run, stderr, stdout};

fn refused(folder: &Folder, args: &[&str], texts: &[&str]) {
    let output = run(folder.path(), args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    for text in texts {
        assert!(said.contains(text), "{args:?}: `{text}` is not in: {said}");
    }
}

const SOURCES: [&str; 4] = ["--base", "base-nf4", "--adapter", "adapter"];

#[test]
fn compare_shows_what_a_merge_lost() {
    let folder = Folder::new();
    demo(folder.path());
    for (more, out) in [(["--rounding", "nearest"], "nf4"), (["--to", "f32"], "f32"), (["--seed", "0"], "kept")] {
        let output = run(folder.path(), &[&["merge"], &SOURCES[..], &more, &["-o", out]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
    let more = [
        "--merged",
        "nf4",
        "--merged",
        "f32",
        "--merged",
        "kept",
        "--text",
        text,
        "--context",
        "128",
        "--windows",
        "6",
        "--json",
    ];
    let compare = |threads: &str| {
        let output = run(folder.path(), &[&["compare"], &SOURCES[..], &more, &["--threads", threads]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let found = compare("1");
    let model = |number: usize, key: &str| found["models"][number][key].as_f64().unwrap();
    assert_eq!(found["tokens"], 6 * 127);
    assert_eq!(found["models"][1]["name"], "apart");
    // The adapter helps; the merge into NF4 keeps little of that, the one into f32 all.
    assert!(model(1, "loss") < model(0, "loss") - 0.1);
    assert!(model(2, "gain_kept") < 0.5 && model(2, "kl") > 0.01, "{found:#}");
    assert!((model(3, "gain_kept") - 1.0).abs() < 1e-4 && model(3, "kl").abs() < 1e-6, "{found:#}");
    assert!(model(4, "gain_kept") > 0.9 && model(4, "kl") < 0.3 * model(2, "kl"), "{found:#}");
    assert_eq!(model(3, "top1"), 1.0);
    assert_eq!(found["models"][3]["generations"], found["models"][1]["generations"]);
    // The number of threads changes no figure.
    let again = compare("3");
    for number in 0..5 {
        for key in ["loss", "kl", "top1"] {
            assert_eq!(again["models"][number][key], found["models"][number][key]);
        }
    }
}

#[test]
fn generation_is_repeatable() {
    let folder = Folder::new();
    demo(folder.path());
    let generate = |more: &[&str]| {
        let args = [&["generate"], &SOURCES[..], &["--prompt", "And the", "--max-tokens", "20"], more].concat();
        let output = run(folder.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(generate(&[]), generate(&["--threads", "1", "--max-memory", "300M"]));
    let drawn = generate(&["--temperature", "1", "--seed", "3"]);
    assert_eq!(drawn, generate(&["--temperature", "1", "--seed", "3"]));
    assert_ne!(drawn, generate(&["--temperature", "1", "--seed", "4"]));
}

#[test]
fn unfit_input_is_named() {
    let folder = Folder::new();
    demo(folder.path());
    std::fs::write(folder.join("empty.txt"), " \n").unwrap();
    std::fs::write(folder.join("binary.txt"), b"abc\xff\xfe").unwrap();
    std::fs::write(folder.join("short.txt"), "In the beginning").unwrap();
    let compare = |text: &str, texts: &[&str]| {
        refused(&folder, &[&["compare"], &SOURCES[..], &["--text", text]].concat(), texts);
    };
    compare("empty.txt", &["empty.txt", "empty"]);
    compare("binary.txt", &["binary.txt", "UTF-8", "byte at 3"]);
    compare("short.txt", &["short.txt", "a window takes 512", "--context"]);
    let eval = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
    let long = [&["compare"], &SOURCES[..], &["--text", eval, "--context", "4096"]].concat();
    refused(&folder, &long, &["4096 positions", "made for"]);
    let tight = [&["compare"], &SOURCES[..], &["--text", eval, "--max-memory", "1M"]].concat();
    refused(&folder, &tight, &["--max-memory is not enough"]);
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "x", "--chat"], &["no chat template", "--chat"]);
    let config = folder.join("base-nf4/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "x"], &["`mamba` cannot be run", "llama, "]);
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5")).unwrap();
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "x"], &["model.layers.4.", "missing"]);
    std::fs::write(&config, text).unwrap();
    // A tokenizer of another model knows more tokens.
    let tokenizer = folder.join("base-nf4/tokenizer.json");
    let mut foreign: serde_json::Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    for (_, id) in foreign["model"]["vocab"].as_object_mut().unwrap() {
        *id = (id.as_u64().unwrap() + 1_000_000).into();
    }
    std::fs::write(&tokenizer, foreign.to_string()).unwrap();
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "And the"], &["token id 1000", "another model"]);
    std::fs::write(&tokenizer, "{\"model\": 5}").unwrap();
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "x"], &["tokenizer.json"]);
    std::fs::remove_file(&tokenizer).unwrap();
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", "x"], &["no tokenizer.json"]);
}
