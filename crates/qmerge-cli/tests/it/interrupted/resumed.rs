//! What is gone on with, and what is left alone.

use super::*;

/// Files of the unfinished output with their bytes.
fn left(folder: &Folder) -> Vec<(String, Vec<u8>)> {
    files(&folder.join("out.partial"))
}

fn refused(folder: &Folder, args: &[&str], words: &[&str]) {
    let before = left(folder);
    let output = run(folder.path(), args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: `{word}` is not in {text}");
    }
    assert!(left(folder) == before, "{args:?} changed what was unfinished");
}

#[test]
fn another_merge_is_not_gone_on_with() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let merge = Merge::new(folder.path(), STREAMED);
    merge.interrupt();
    let resume = |more: &[&'static str]| [&merge.args[..], more, &["--resume"]].concat();
    // No option that decides a byte may differ, and what differs is said.
    let others: &[(&[&str], &str)] = &[
        (&["--seed", "7"], "seed: 0 before, 7 now"),
        (&["--block-size", "128"], "layout of the output"),
        (&["--double-quant", "false"], "layout of the output"),
        (&["--quant-storage", "bfloat16"], "layout of the output"),
        (&["--torch-threads", "4"], "what is done to the weights"),
        (&["--tokenizer", "base"], "tokenizer: the adapter's before, the base's now"),
        (&["--adapter", "adapter=0.5"], "adapter 2: none before"),
        (&["--map", "^nothing=>there"], "rule 1 on names: none before"),
        (&["--peft-bugs"], "PEFT's bugs: false before, true now"),
    ];
    for (more, word) in others {
        refused(&folder, &resume(more), &[word, "--force"]);
    }
    let to = |format: &'static str| -> Vec<&str> {
        resume(&[]).iter().map(|&word| if word == "nf4" { format } else { word }).collect()
    };
    refused(&folder, &to("int8"), &["format: nf4 before, int8 now"]);
    // Without --resume nothing is given up either.
    refused(&folder, &merge.args, &["--resume", "--force"]);
    // Threads and memory decide nothing.
    let other = [&merge.args[..8], &["nf4", "--fast", "--threads", "1", "--max-memory", "200M", "--resume"]].concat();
    assert!(run(folder.path(), &other).status.success());
    merge.finish("other threads");
}

#[test]
fn other_inputs_are_not_gone_on_with() {
    let folder = models();
    let merge = Merge::new(folder.path(), STREAMED);
    let resume = [&merge.args[..], &["--resume"]].concat();
    // A byte, with the time of the file put back.
    let flip = |name: &str| {
        let path = folder.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let (middle, time) = (bytes.len() / 2, std::fs::metadata(&path).unwrap().modified().unwrap());
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
    };
    merge.interrupt();
    flip("adapter/adapter_model.safetensors");
    refused(&folder, &resume, &["adapter 1: changed"]);
    flip("adapter/adapter_model.safetensors");
    let output = run(folder.path(), &resume);
    assert!(output.status.success(), "{}", stderr(&output));
    merge.finish("the adapter is itself again");
    merge.interrupt();
    if cfg!(unix) {
        flip("base/model.safetensors");
        refused(&folder, &resume, &["base: changed"]);
    }
    std::fs::write(folder.join("base/config.json"), "{\"model_type\": \"llama\", \"rope_theta\": 7}").unwrap();
    refused(&folder, &resume, &["configuration of the base: changed"]);
}

#[test]
fn two_calibrations_are_not_mixed() {
    let folder = models();
    let text = std::fs::read_to_string(TEXT).unwrap();
    std::fs::write(folder.join("text"), &text).unwrap();
    let args = ["merge", "--base", "base-nf4", "--adapter", "demo-adapter", "-o", "out", "--calibrate", "text"];
    let merge = Merge::new(folder.path(), &args);
    merge.interrupt();
    let resume = [&merge.args[..], &["--resume"]].concat();
    // As many tokens at the same path.
    let time = std::fs::metadata(folder.join("text")).unwrap().modified().unwrap();
    std::fs::write(folder.join("text"), text.replacen("the", "The", 1 << 20)).unwrap();
    std::fs::OpenOptions::new().write(true).open(folder.join("text")).unwrap().set_modified(time).unwrap();
    refused(&folder, &resume, &["text or file of the calibration: changed"]);
    // The same text under another name is the same.
    std::fs::write(folder.join("same"), &text).unwrap();
    let same: Vec<&str> = resume.iter().map(|&word| if word == "text" { "same" } else { word }).collect();
    let output = run(folder.path(), &same);
    assert!(output.status.success(), "{}", stderr(&output));
    let weights = |files: &[(String, Vec<u8>)]| files.iter().find(|(name, _)| name == "model.safetensors").cloned();
    assert!(weights(&files(&folder.join("out"))) == weights(&merge.want));
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    // A stored calibration that is taken anew from another text.
    let store = |text: &str| {
        let words = ["calibrate", "--base", "base-nf4", "--text", text, "-o", "moments.safetensors", "--force"];
        let output = run(folder.path(), &words);
        assert!(output.status.success(), "{}", stderr(&output));
    };
    store("same");
    let args = ["merge", "--base", "base-nf4", "--adapter", "demo-adapter", "-o", "out", "--calibration"];
    let merge = Merge::new(folder.path(), &[&args[..], &["moments.safetensors"]].concat());
    merge.interrupt();
    store("text");
    refused(&folder, &[&merge.args[..], &["--resume"]].concat(), &["text or file of the calibration: changed"]);
}

#[test]
fn what_is_unfinished_is_given_up_on_demand_alone() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let merge = Merge::new(folder.path(), STREAMED);
    merge.interrupt();
    refused(&folder, &merge.args, &["interrupted run", "--resume", "--force"]);
    // A part of it is gone.
    let weights = folder.join("out.partial/model.safetensors");
    let mut journal = std::fs::read_to_string(folder.join(JOURNAL)).unwrap();
    journal.truncate(journal.find('\n').unwrap() + 1);
    std::fs::write(folder.join(JOURNAL), journal + "{\"step\":0}\n").unwrap();
    std::fs::write(&weights, "cut").unwrap();
    let resume = [&merge.args[..], &["--resume"]].concat();
    refused(&folder, &resume, &["cut off", "--force"]);
    std::fs::remove_file(&weights).unwrap();
    refused(&folder, &resume, &["is gone", "--force"]);
    let output = run(folder.path(), &[&merge.args[..], &["--force"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    merge.finish("anew");
    // What qmerge did not write is never removed.
    let partial = folder.join("out.partial");
    for more in [&[][..], &["--force"], &["--resume"], &["--resume", "--force"]] {
        let args = [&merge.args[..], more].concat();
        std::fs::create_dir(&partial).unwrap();
        std::fs::write(partial.join("diary.txt"), "mine").unwrap();
        refused(&folder, &args, &["holds something else"]);
        std::fs::remove_dir_all(&partial).unwrap();
        std::fs::write(&partial, "mine").unwrap();
        let output = run(folder.path(), &args);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_eq!(std::fs::read(&partial).unwrap(), b"mine");
        std::fs::remove_file(&partial).unwrap();
    }
}

/// An error that a second try would not cure leaves what an earlier run finished.
#[test]
fn a_damaged_weight_does_not_cost_what_is_finished() {
    let folder = Folder::new();
    // Large enough that steps are listed, which takes 50 ms, long before the last weight.
    plain_model(folder.path(), 64, 512, 1024);
    let mut merge = Merge::new(folder.path(), STREAMED);
    // In the order of the file, so that the damage comes last.
    *merge.args.last_mut().unwrap() = "1";
    let path = folder.join("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    let whole = bytes[last..].to_vec();
    bytes[last..].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    // Its whole lines: a kill may tear the last.
    let journal = || {
        let text = std::fs::read_to_string(folder.join(JOURNAL)).unwrap_or_default();
        text.rfind('\n').map_or(String::new(), |end| text[..=end].to_owned())
    };
    // A run that gets to the damage before it is killed leaves nothing: then once more.
    let finished = (0..20).find_map(|_| {
        let mut child = merge.begin(&["--force"]);
        while journal().lines().count() < 2 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let _ = child.kill();
        child.wait().unwrap();
        Some(journal()).filter(|text| text.lines().count() >= 2)
    });
    let mut finished = finished.expect("a run that was killed with finished steps");
    let resume = [&merge.args[..], &["--resume"]].concat();
    for _ in 0..2 {
        let output = run(folder.path(), &resume);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("the base itself holds NaN at [511, 10"), "{text}");
        assert!(journal().starts_with(&finished), "{finished} became {}", journal());
        finished = journal();
    }
    // The base put right is another base, so nothing of the old one is mixed in.
    bytes[last..].copy_from_slice(&whole);
    std::fs::write(&path, &bytes).unwrap();
    refused(&folder, &resume, &["base: changed"]);
    let output = run(folder.path(), &[&merge.args[..], &["--force"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    merge.finish("anew");
}

/// Another command that builds its output at the same name does not remove a merge's.
#[test]
fn truncate_leaves_an_unfinished_merge_alone() {
    let folder = models();
    let merge = Merge::new(folder.path(), STREAMED);
    merge.interrupt();
    refused(&folder, &["truncate", "--adapter", "demo-adapter", "--rank", "1", "-o", "out"], &["interrupted run"]);
    merge.finish("after truncate");
}

/// What an earlier run copied beside the weights is not left over.
#[test]
fn files_beside_the_weights_are_those_of_the_last_run() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let merge = Merge::new(folder.path(), STREAMED);
    merge.interrupt();
    std::fs::write(folder.join("out.partial/vocab.txt"), "old").unwrap();
    std::fs::create_dir(folder.join("out.partial/old")).unwrap();
    std::fs::write(folder.join("out.partial/old/file"), "old").unwrap();
    merge.finish("with files left over");
}

#[cfg(unix)]
#[test]
fn ctrl_c_says_how_to_go_on() {
    let folder = models();
    let merge = Merge::new(folder.path(), &with_adapter(WHOLE));
    let mut child = qmerge(folder.path(), &merge.args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !folder.join(JOURNAL).exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        eprintln!("skipped: it was done before the signal ({sent}), or this process ignores it");
        merge.clear();
        return;
    }
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped") && stderr(&output).contains("--resume"), "{}", stderr(&output));
    merge.finish("stopped by Ctrl-C");
}

#[test]
fn two_runs_do_not_write_the_same_output() {
    let folder = Folder::new();
    plain_model(folder.path(), 24, 512, 1024);
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--to", "nf4", "--threads", "1"];
    let mut first = qmerge(folder.path(), &args).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !folder.join(JOURNAL).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    for more in ["--resume", "--quiet"] {
        let second = run(folder.path(), &[&args[..], &[more]].concat());
        // The second either met the first at work or came after it.
        let text = stderr(&second);
        assert_eq!(second.status.code(), Some(2), "{text}");
        assert!(text.contains("another qmerge is writing") || text.contains("exists already"), "{text}");
    }
    assert!(first.wait().unwrap().success());
}
