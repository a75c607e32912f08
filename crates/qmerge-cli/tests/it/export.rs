//! Into GGUF and out of it, as a user does it. What the files consist of is held against llama.cpp's in the library's tests.

use crate::model::{Folder, demo, done, refused};

/// Merged and quantized in one command, the file runs, holds the adapter, and becomes a folder that runs.
#[test]
fn a_merge_into_gguf_runs_and_comes_back() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter"];
    let nearest = [&merge[..], &["--rounding", "nearest", "--to", "q8_0", "-o", "out.gguf"]].concat();
    let said = done(&folder, &nearest);
    assert!(
        said.contains("nf4 + bf16 → q8_0") && said.contains("verdict: the adapter's effect is most likely kept"),
        "{said}"
    );
    assert!(folder.join("out.qmerge-report.json").is_file());
    let said = done(&folder, &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out.gguf"]);
    assert!(said.contains("the adapter is applied in all 28 weights"), "{said}");
    let generate = |base: &str| done(&folder, &["generate", "--base", base, "--prompt", "The river", "-n", "12", "-q"]);
    done(&folder, &["convert", "--base", "out.gguf", "--to", "f32", "-o", "back"]);
    assert_eq!(generate("out.gguf"), generate("back"));
    done(&folder, &["convert", "--base", "out.gguf", "--to", "nf4", "-o", "back-nf4"]);
    let said = done(&folder, &["inspect", "back-nf4"]);
    assert!(said.contains("nf4") && !said.contains("q8_0"), "{said}");
    // An adapter on the way out.
    done(&folder, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "base.gguf"]);
    let out = ["merge", "--base", "base.gguf", "--adapter", "adapter", "--to", "bf16", "--fast", "-o", "merged"];
    done(&folder, &out);
    let said = done(&folder, &["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "merged"]);
    assert!(said.contains("the adapter is applied in all 28 weights"), "{said}");
}

#[test]
fn options_that_are_of_no_use_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    let convert = ["convert", "--base", "base-nf4", "-o", "out.gguf"];
    std::fs::write(folder.join("imatrix.dat"), b"no matrix").unwrap();
    let imatrix = ["--imatrix", "imatrix.dat"];
    refused(&folder, &[&convert[..], &["--to", "bf16"], &imatrix].concat(), &["--imatrix is of no use to --to bf16"]);
    refused(&folder, &[&convert[..], &["--to", "q4_0"], &imatrix].concat(), &["imatrix.dat", "importance matrix"]);
    let settings = ["--to", "q4_0", "--block-size", "32"];
    refused(&folder, &[&convert[..], &settings].concat(), &["--block-size is of no use"]);
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out.gguf"];
    refused(&folder, &[&merge[..], &["--to", "q4_0", "--rounding", "keep"]].concat(), &["keeps the base's scales"]);
    done(&folder, &["convert", "--base", "base-nf4", "--to", "q8_0", "-o", "base.gguf"]);
    assert!(!folder.join("out.gguf").exists());
}
