//! The program as a function: documents instead of text, errors with their kind, and stopping on request.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use qmerge::error::Kind;
use qmerge::progress::{Progress, Silent};
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

/// Work that was told of, and how much of it was done when the command returned.
#[derive(Default)]
struct Told {
    starts: AtomicU64,
    total: AtomicU64,
    done: AtomicU64,
    phases: Mutex<Vec<String>>,
}

impl Progress for Told {
    fn start(&self, work: u64) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.total.store(work, Ordering::Relaxed);
    }

    fn advance(&self, work: u64) {
        self.done.fetch_add(work, Ordering::Relaxed);
    }

    fn skip(&self, work: u64) {
        self.total.fetch_sub(work, Ordering::Relaxed);
    }

    fn phase(&self, name: &str, _: &str) {
        self.phases.lock().unwrap().push(name.to_owned());
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

/// Whoever watches is told of all work at once, and of each part of it when that is done: no more, no less.
#[test]
fn all_work_that_is_told_of_is_done() {
    let folder = Folder::new();
    let (base, adapter, text) = (demo("base-nf4"), demo("adapter"), demo("calibration.txt"));
    let [out, moments, cut] = ["out", "moments.safetensors", "cut"].map(|name| folder.join(name).display().to_string());
    let sources = ["--base", &base, "--adapter", &adapter];
    let writing = "writing text to calibrate on and to measure by";
    let commands: [(&[&str], &[&str]); 14] = [
        (&["merge", "-o", &out, "--force"], &[writing, "rounding", "writing", "bringing the output to the disk"]),
        (&["merge", "-o", &out, "--force", "--calibrate", &text], &["rounding", "writing"]),
        (
            &["merge", "-o", &out, "--force", "--residual-rank", "2", "--fast"],
            &["writing", "cutting what rounding left"],
        ),
        (&["merge", "-o", &out, "--force", "--residual-rank", "2"], &[writing, "cutting what rounding left"]),
        (&["merge", "-o", &out, "--force", "--rounding", "nearest"], &["writing"]),
        (&["merge", "-o", &out, "--force", "--rounding", "nearest", "--to", "nf4"], &["writing"]),
        (&["verify", "--merged", &out], &["checking"]),
        (&["compare", "--merged", &out, "--text", &text, "--windows", "3"], &["comparing", "continuing prompts"]),
        (&["compare", "--text", &text, "--context", "50", "--continuation", "9"], &["comparing", "continuing prompts"]),
        (&["generate", "--prompt", "The", "--max-tokens", "7"], &["writing"]),
        (&["generate", "--prompt", "The", "--max-tokens", "700"], &["writing"]),
        (&["calibrate", "-o", &moments, "--force"], &["writing text to calibrate on", "taking moments"]),
        (&["merge", "-o", &out, "--force", "--calibration", &moments], &["rounding"]),
        (&["truncate", "--rank", "2", "-o", &cut, "--calibrate", &text], &["cutting"]),
    ];
    for (command, phases) in commands {
        let told = Told::default();
        // The adapter of a truncation has no short name of its own.
        call(words(&[command, &sources[..]].concat()), &told).unwrap_or_else(|error| panic!("{command:?}: {error:?}"));
        let [starts, total, done] = [&told.starts, &told.total, &told.done].map(|told| told.load(Ordering::Relaxed));
        assert_eq!((starts, done), (1, total), "{command:?}");
        assert!(total > 0, "{command:?}");
        let seen = told.phases.into_inner().unwrap();
        assert!(phases.iter().all(|phase| seen.iter().any(|seen| seen == phase)), "{command:?}: {seen:?}");
    }
    // An adapter that hardly shows takes text to be written again.
    let told = Told::default();
    let weak = format!("{adapter}=0.5");
    call(words(&["calibrate", "--base", &base, "--adapter", &weak, "-o", &moments, "--force"]), &told).unwrap();
    assert_eq!(told.done.into_inner(), told.total.into_inner());
    assert!(told.phases.into_inner().unwrap().iter().any(|phase| phase == "writing text that shows the adapter"));
    // What an earlier run did is no work of the one that goes on with it.
    let merge = ["merge", "-o", &out, "--force", "--calibrate", &text, "--threads", "1"];
    let whole = Told::default();
    call(words(&[&merge[..], &sources[..]].concat()), &whole).unwrap();
    let progress = Until { done: AtomicU64::new(0), until: whole.total.into_inner() / 2 };
    call(words(&[&merge[..], &sources[..]].concat()), &progress).unwrap_err();
    let told = Told::default();
    call(words(&[&merge[..], &["--resume"], &sources[..]].concat()), &told).unwrap();
    assert_eq!(told.done.into_inner(), told.total.into_inner());
}
