//! Base and adapters as people name them: without options, with other tools' names, or the adapter alone.

use crate::model::{Folder, demo, run, stderr, stdout};

/// The base and the adapters that a dry run reports.
fn planned(folder: &Folder, words: &[&str]) -> (String, usize, String) {
    let output = run(folder.path(), &[words, &["-o", "out", "--dry-run", "--json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let adapters = plan["weights"][0]["adapters"].as_array().unwrap().len();
    (plan["base"]["path"].as_str().unwrap().to_owned(), adapters, plan["output"]["format"].as_str().unwrap().to_owned())
}

#[test]
fn base_and_adapter_may_be_named_in_many_ways() {
    let folder = Folder::new();
    demo(folder.path());
    for words in [
        &["merge", "base-nf4", "adapter"][..],
        &["merge", "base-nf4", "--adapter", "adapter"],
        &["merge", "adapter", "--base", "base-nf4"],
        &["merge", "-m", "base-nf4", "-a", "adapter"],
        &["fuse", "--model", "base-nf4", "--adapter-path", "adapter"],
        &["merge", "--base_model", "base-nf4", "--lora_model_dir", "adapter"],
    ] {
        assert_eq!(planned(&folder, words), ("base-nf4".into(), 1, "nf4 + bf16".into()), "{words:?}");
    }
    assert_eq!(planned(&folder, &["merge", "base-nf4", "adapter=0.5", "adapter=0.25"]).1, 2);
    for format in [&["--dtype", "bfloat16"][..], &["--to", "merged_16bit"], &["--dequantize"], &["--de-quantize"]] {
        let words = [&["merge", "base-nf4", "adapter"], format].concat();
        assert_eq!(planned(&folder, &words).2, "bf16", "{words:?}");
    }
    assert_eq!(planned(&folder, &["merge", "base-nf4", "adapter", "--to", "fp16"]).2, "f16");
}

/// What llama.cpp's users ask for, and what they get or hear.
#[test]
fn types_of_gguf_are_made_or_refused_with_the_way_there() {
    let folder = Folder::new();
    demo(folder.path());
    let asked = |words: &[&str], to: &str, output: &str| {
        let output = run(folder.path(), &[words, &["--to", to, "-o", output]].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?} {to}");
        stderr(&output)
    };
    for words in [&["merge", "base-nf4", "adapter"][..], &["convert", "--base", "base-nf4"]] {
        for to in ["gguf", "iq2_xs", "Q4_0_4_4"] {
            let said = asked(words, to, "out");
            assert!(said.contains("--to q4_k_m") && said.contains("llama-quantize"), "{said}");
        }
        assert!(!asked(words, "q4", "out").contains("llama-quantize"));
        let plan = |to: &str, output: &str| {
            let words = [words, &["--to", to, "-o", output, "--dry-run", "--json"]].concat();
            let plan: serde_json::Value = serde_json::from_str(&stdout(&run(folder.path(), &words))).unwrap();
            plan["output"]["format"].as_str().unwrap().to_owned()
        };
        for to in ["Q4_K_M", "q4_k_m"] {
            assert_eq!((plan(to, "out.gguf"), plan(to, "out")), ("q5_0 + q8_0".into(), "q5_0 + q8_0".into()));
        }
        assert_eq!(plan("bf16", "out.gguf"), "bf16");
        let said = asked(words, "nf4", "out.gguf");
        assert!(said.contains("name a folder") && said.contains("--to q4_k_m"), "{said}");
        let said = asked(words, "q4_k_m", "out.safetensors");
        assert!(said.contains("as --to says") && said.contains(".gguf"), "{said}");
    }
    assert!(!folder.join("out").exists() && !folder.join("out.gguf").exists());
}

#[test]
fn an_adapter_names_its_base() {
    let folder = Folder::new();
    demo(folder.path());
    let config = folder.join("adapter/adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let mut name = |base: serde_json::Value| {
        json["base_model_name_or_path"] = base;
        std::fs::write(&config, json.to_string()).unwrap();
    };
    name("base-nf4".into());
    for words in [&["merge", "adapter"][..], &["merge", "--adapter", "adapter"]] {
        assert_eq!(planned(&folder, words).0, "base-nf4");
        let output = run(folder.path(), &[words, &["-o", "out", "--dry-run"]].concat());
        assert!(stderr(&output).contains("the base is base-nf4, as the adapter says"), "{}", stderr(&output));
    }
    let refused = |words: &[&str], texts: &[&str]| {
        let output = run(folder.path(), &[words, &["-o", "out"]].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        for text in texts {
            assert!(stderr(&output).contains(text), "{words:?}: `{text}` is not in {}", stderr(&output));
        }
    };
    name("nowhere/such-a-model".into());
    refused(&["merge", "adapter"], &["nowhere/such-a-model"]);
    // Who wrote the adapter does not decide which servers are asked, nor reads what is secret in an address.
    for address in ["https://user:hunter2@127.0.0.1:9/m?X-Amz-Signature=hunter2", "s3://bucket/m", "hf://org/name"] {
        name(address.into());
        refused(&["merge", "adapter"], &["the adapter names an address", "--base"]);
        let output = run(folder.path(), &["merge", "adapter", "-o", "out"]);
        assert!(!stderr(&output).contains("hunter2"), "{}", stderr(&output));
    }
    name(serde_json::Value::Null);
    refused(&["merge", "adapter"], &["the adapter names none", "--base"]);
    refused(&["merge", "base-nf4"], &["no base is given, and base-nf4 has no adapter_config.json", "`BASE ADAPTER`"]);
    refused(&["merge"], &["no adapter is named"]);
    refused(&["merge", "--base", "base-nf4"], &["no adapter is named"]);
}
