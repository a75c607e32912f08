//! What is asked for in other words than the program has, or not at all.

use crate::model::{Folder, demo, refused, run, stderr, stdout};

#[test]
fn a_format_by_another_word_is_told_what_is_meant() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = |to| ["merge", "base-nf4", "adapter", "-o", "out", "--to", to];
    for (to, words) in [
        ("int4", &["q4_k_m", "`nf4`", "`ct-int4`", "`gptq`"][..]),
        ("4BIT", &["q4_k_m", "`nf4`"]),
        ("8bit", &["`int8`", "q8_0"]),
        ("nvfp4", &["`ct-nvfp4`"]),
        ("bnb", &["`nf4`", "`int8`"]),
        ("awq", &["`gptq`"]),
        ("q3_k_xs", &["q4_k_m"]),
    ] {
        let text = refused(&folder, &merge(to), words);
        assert!(!text.contains("similar value"), "{text}");
    }
    // A word that is nearly one of ours.
    refused(&folder, &merge("nf5"), &["similar value", "'nf4'"]);
    refused(
        &folder,
        &["merge", "base-nf4", "adapter", "-o", "x.gguf", "--promote", "foo"],
        &["auto", "q8_0", "f16", "bf16"],
    );
}

#[test]
fn what_is_not_there_is_said_alike() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = ["merge", "base-nf4", "adapter", "-o", "out"];
    let said: Vec<String> = ["--calibrate", "--calibration", "--imatrix"]
        .iter()
        .map(|option| {
            refused(&folder, &[&merge[..], &[option, "nope"]].concat(), &["nope: no such file", "check the path"])
        })
        .collect();
    assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
    refused(&folder, &["calibrate", "base-nf4", "--add", "nope", "-o", "x"], &["nope: no such file"]);
}

/// A plan writes nothing, and needs no place.
#[test]
fn a_plan_needs_no_output() {
    let folder = Folder::new();
    demo(folder.path());
    let plan = |more: &[&str]| {
        let output = run(folder.path(), &[&["plan", "base-nf4", "adapter"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(plan(&[]), plan(&["-o", "merged"]));
    assert!(plan(&[]).contains("would write merged"), "{}", plan(&[]));
    assert!(!folder.join("merged").exists());
    refused(&folder, &["merge", "base-nf4", "adapter"], &["--output"]);
}

/// Words without options that leave something unnamed.
#[test]
fn what_is_not_named_is_said() {
    let folder = Folder::new();
    demo(folder.path());
    for (args, words) in [
        (&["extract", "--tuned", "base-bf16", "-r", "1", "-o", "out"][..], "a base and one tuned model"),
        (&["extract", "base-bf16", "-r", "1", "-o", "out"], "a base and one tuned model"),
        (&["verify", "base-nf4", "adapter"], "the merge is not named"),
        (&["verify", "base-nf4"], "no adapter is named"),
    ] {
        let output = run(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
    }
}
