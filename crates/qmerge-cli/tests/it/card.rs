//! The README.md of a merge, as the hub reads it.

use crate::model::{Folder, copy_folder, demo, plain_model, qmerge, run, stderr, stdout};

fn merged(folder: &Folder, args: &[&str]) -> String {
    let output = run(folder.path(), &[&["merge", "-o", "out", "--force"], args].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    std::fs::read_to_string(folder.join("out/README.md")).unwrap()
}

#[test]
fn the_card_says_what_was_merged_and_what_is_left() {
    let folder = Folder::new();
    demo(folder.path());
    let sources = ["--base", "base-nf4", "--adapter", "adapter"];
    let card = merged(&folder, &sources);
    insta::assert_snapshot!("card", card);
    // The same in every run, on any number of threads.
    assert_eq!(merged(&folder, &[&sources[..], &["--threads", "1"]].concat()), card);
    let command = card.lines().find(|line| line.starts_with("qmerge verify")).unwrap();
    std::fs::rename(folder.join("out"), folder.join("merged")).unwrap();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(run(folder.path(), &words).status.code(), Some(0), "{command}");
    // A merge that is undone is none.
    let unmerge = ["unmerge", "merged", "adapter", "-o", "undone", "--to", "bf16"];
    assert!(run(folder.path(), &unmerge).status.success());
    let card = std::fs::read_to_string(folder.join("undone/README.md")).unwrap();
    for said in
        ["# merged − adapter", "was subtracted", "- Merge: `merged` (", "(LORA), weight 1, SHA-256", "Verdict: "]
    {
        assert!(card.contains(said), "{said}: {card}");
    }
    assert!(!card.contains("- merge\n") && !card.contains("base_model") && !card.contains("qmerge verify"), "{card}");
    // What comes out of a file has no card beside it.
    assert!(run(folder.path(), &["convert", "--base", "base-nf4", "-o", "base.gguf", "--to", "f16"]).status.success());
    assert!(run(folder.path(), &["convert", "--base", "base.gguf", "-o", "back", "--to", "bf16"]).status.success());
    let card = std::fs::read_to_string(folder.join("back/README.md")).unwrap();
    for said in
        ["# base.gguf", "Nothing was merged", "- Model: `base.gguf` (", "- Format: bf16", "tags:\n- qmerge\n---"]
    {
        assert!(card.contains(said), "{said}: {card}");
    }
    // A conversion makes no other model: its card is the base's.
    std::fs::write(folder.join("base-nf4/README.md"), "of the base").unwrap();
    assert!(run(folder.path(), &["convert", "--base", "base-nf4", "-o", "f16", "--to", "f16"]).status.success());
    assert_eq!(std::fs::read_to_string(folder.join("f16/README.md")).unwrap(), "of the base");
}

#[test]
fn it_takes_the_place_of_the_base_s_and_keeps_the_licence() {
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    let base = "---\nlicense: other\nlicense_name: some\ntags:\n- base\nbase_model: a/b\n---\n# The base\n";
    std::fs::write(folder.join("base/README.md"), base).unwrap();
    // Read-only, as in some caches: what is written in its place must not depend on that.
    let mut permissions = std::fs::metadata(folder.join("base/README.md")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(folder.join("base/README.md"), permissions).unwrap();
    copy_folder(&folder.join("adapter"), &folder.join("it's"));
    let config = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/trained-on"}"#;
    std::fs::write(folder.join("it's/adapter_config.json"), config).unwrap();
    let card = merged(&folder, &["--base", "base", "--adapter", "adapter=0.5", "--adapter", "it's=-1"]);
    let front = "---\nbase_model: org/trained-on\nbase_model_relation: merge\nlibrary_name: transformers\n\
                 license: other\nlicense_name: some\ntags:\n- merge\n- lora\n- qmerge\n---\n";
    assert!(card.starts_with(front), "{card}");
    assert!(
        card.contains(r"qmerge verify --base base --adapter adapter=0.5 --adapter 'it'\''s=-1' --merged merged"),
        "{card}"
    );
    assert!(!card.contains("The base"), "{card}");
    // A single file has no folder for a card.
    let output = run(folder.path(), &["merge", "-m", "base", "--adapter", "adapter", "-o", "files/out.safetensors"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!folder.join("files/README.md").exists());
}

#[test]
fn a_hub_id_is_named_and_an_absolute_path_is_not() {
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    copy_folder(&folder.join("base"), &folder.join("cache/models--org--base/snapshots/abc123"));
    std::fs::create_dir_all(folder.join("cache/models--org--base/refs")).unwrap();
    std::fs::write(folder.join("cache/models--org--base/refs/main"), "abc123").unwrap();
    let (adapter, out) = (folder.join("adapter").display().to_string(), folder.join("out").display().to_string());
    let output = qmerge(folder.path(), &["merge", "--base", "org/base", "--adapter", &adapter, "-o", &out])
        .env("HF_HUB_CACHE", folder.join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let card = std::fs::read_to_string(folder.join("out/README.md")).unwrap();
    assert!(card.contains("\nbase_model: org/base\n"), "{card}");
    assert!(card.contains("qmerge verify --base org/base@abc123 --adapter adapter --merged merged"), "{card}");
    assert!(!card.contains(folder.path().to_str().unwrap()), "{card}");
}

#[test]
fn push_says_how_to_upload_and_does_not() {
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    let merge = |more: &[&str]| {
        run(folder.path(), &[&["merge", "-m", "base", "--adapter", "adapter", "--force"], more].concat())
    };
    let output = merge(&["-o", "my out", "--push", "me/merged"]);
    assert!(stdout(&output).ends_with("\nupload it: hf upload me/merged 'my out' .\n"), "{}", stdout(&output));
    let output = merge(&["-o", "out.safetensors", "--push", "me/merged"]);
    let said = stdout(&output);
    assert!(said.ends_with("\nupload it: hf upload me/merged out.safetensors out.safetensors\n"), "{said}");
    let output = merge(&["-o", "out", "--push", "me/merged", "--json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok());
    assert!(stderr(&output).contains("hf upload me/merged out ."), "{}", stderr(&output));
    for silent in ["--quiet", "--dry-run"] {
        let output = merge(&["-o", "out", "--push", "me/merged", silent]);
        assert!(output.status.success() && !stdout(&output).contains("hf upload"), "{}", stdout(&output));
    }
    let output = merge(&["-o", "other", "--push", "./here"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("owner/name") && !folder.join("other").exists(), "{}", stderr(&output));
}
