//! The program as a function: documents instead of text, errors with their kind, and stopping on request.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use qmerge::error::Kind;
use qmerge::merge::{Progress, Silent};
use qmerge_cli::call;

use crate::model::Folder;

/// Counts, and stops once `until` is reached.
struct Until {
    done: AtomicU64,
    until: u64,
}

impl Progress for Until {
    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.until
    }
}

fn demo(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(name).display().to_string()
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn answers_are_documents() {
    let folder = Folder::new();
    let (base, adapter) = (demo("base-nf4"), demo("adapter"));
    let out = folder.join("out").display().to_string();
    let sources = ["--base", &base, "--adapter", &adapter];
    let merge =
        words(&[&["merge", "-o", &out, "--min-survival", "0.9", "--rounding", "nearest"], &sources[..]].concat());
    let answer = call(merge, &Silent).unwrap();
    let report: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!((answer.status, &report["summary"]["weights_merged"]), (1, &28.into()));
    let answer = call(words(&[&["verify", "--merged", &out], &sources[..]].concat()), &Silent).unwrap();
    assert_eq!(answer.status, 1);
    let prompt = ["generate", "--prompt", "The", "--max-tokens", "4"];
    let answer = call(words(&[&prompt, &sources[..]].concat()), &Silent).unwrap();
    let found: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(found["tokens"], 4);
}

#[test]
fn wrong_use_is_an_error_with_a_remedy() {
    let error = call(words(&["merge", "--base", "b", "--adapter", "a", "-o", "o", "--to", "nf5"]), &Silent);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().starts_with("invalid value 'nf5'"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("bf16")), "{error:?}");
}

#[test]
fn everything_can_be_stopped() {
    let folder = Folder::new();
    let (base, adapter) = (demo("base-nf4"), demo("adapter"));
    let out = folder.join("out").display().to_string();
    let (merged, text) = (demo("base-bf16"), demo("eval.txt"));
    let sources = ["--base", &base, "--adapter", &adapter];
    let commands: [&[&str]; 4] = [
        &["merge", "-o", &out],
        &["verify", "--merged", &merged],
        &["compare", "--text", &text, "--context", "64"],
        &["generate", "--prompt", "The"],
    ];
    for command in commands {
        for until in [0, 1] {
            let progress = Until { done: AtomicU64::new(0), until };
            let error = call(words(&[command, &sources[..]].concat()), &progress).unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled, "{command:?}: {error:?}");
        }
    }
    assert!(!Path::new(&out).exists());
}
