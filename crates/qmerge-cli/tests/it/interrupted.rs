//! Killed at any moment, the output is absent or whole; `--resume` finishes, with the bytes of an undisturbed run.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::model::{Folder, plain_model, qmerge, run, stderr};

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap())
        // The report holds times.
        .filter(|item| item.file_name() != "qmerge-report.json")
        .map(|item| (item.file_name().into_string().unwrap(), std::fs::read(item.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn killed_at_random_moments() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--to", "nf4", "--threads", "1"];
    let started = Instant::now();
    assert!(run(folder.path(), &args).status.success());
    let whole = started.elapsed();
    let want = files(&folder.join("out"));
    let report = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(path.join("qmerge-report.json")).unwrap()).unwrap()
    };
    let want_weights = report(&folder.join("out"))["weights"].clone();
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    let mut interrupted = 0;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..25 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let moment = whole.mul_f64((state >> 11) as f64 / (1_u64 << 53) as f64);
        let mut child = qmerge(folder.path(), &args).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        let _ = child.kill();
        child.wait().unwrap();
        if folder.join("out").exists() {
            assert_eq!(files(&folder.join("out")), want);
        } else {
            interrupted += usize::from(folder.join("out.partial").exists());
            let output = run(folder.path(), &[&args[..], &["--resume"]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            assert_eq!(files(&folder.join("out")), want);
            assert_eq!(report(&folder.join("out"))["weights"], want_weights);
        }
        assert!(!folder.join("out.partial").exists());
        std::fs::remove_dir_all(folder.join("out")).unwrap();
    }
    assert!(interrupted > 0, "no kill came between start and end ({whole:?})");
}

#[test]
fn a_resumed_run_keeps_what_was_finished_and_refuses_what_changed() {
    let folder = Folder::new();
    plain_model(folder.path(), 4, 64, 64);
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--resume"];
    assert!(run(folder.path(), &args).status.success());
    let want = files(&folder.join("out"));
    // An unfinished folder of another merge is not taken for this one's.
    let partial = folder.join("out.partial");
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("qmerge-journal.jsonl"), "{\"merge\":\"another\"}\n{\"step\":0}\n").unwrap();
    std::fs::write(partial.join("model.safetensors"), "rubbish").unwrap();
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    assert!(run(folder.path(), &args).status.success());
    assert_eq!(files(&folder.join("out")), want);
}

#[test]
fn two_runs_do_not_write_the_same_output() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--to", "nf4", "--threads", "1"];
    let mut first = qmerge(folder.path(), &args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !folder.join("out.partial/qmerge-journal.jsonl").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = run(folder.path(), &args);
    assert!(first.wait().unwrap().success());
    // The second either met the first at work or came after it.
    let text = stderr(&second);
    assert_eq!(second.status.code(), Some(2), "{text}");
    assert!(text.contains("another qmerge is writing") || text.contains("exists already"), "{text}");
}
