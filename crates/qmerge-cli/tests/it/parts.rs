//! A merge in parts: each byte is that of a merge by one process, whatever the cut and whoever was killed.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::interrupted::{Random, files};
use crate::model::{Folder, change, demo, done, json, qmerge, read, refused, run, stderr, stdout, write};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
const MERGE: &[&str] = &["--base", "base-nf4", "--adapter", "adapter", "-o", "out"];

/// The demo's model in two files of weights.
fn model() -> Folder {
    let folder = Folder::new();
    demo(folder.path());
    let path = folder.join("base-nf4/model.safetensors");
    let mut first = read(&path);
    let second = first.split_off(first.iter().position(|tensor| tensor.0.contains("layers.2.")).unwrap());
    let mut map = serde_json::Map::new();
    for (number, tensors) in [first, second].iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", number + 1);
        write(&folder.join("base-nf4").join(&name), tensors);
        map.extend(tensors.iter().map(|tensor| (tensor.0.clone(), name.clone().into())));
    }
    std::fs::remove_file(path).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("base-nf4/model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn words<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command], MERGE, more].concat()
}

fn weights(folder: &Folder) -> serde_json::Value {
    let text = std::fs::read_to_string(folder.join("out/qmerge-report.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["weights"].clone()
}

/// What lies beside the output.
fn beside(folder: &Path) -> Vec<String> {
    let items = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    items.filter(|name| name.starts_with("out.")).collect()
}

#[test]
fn any_number_of_parts_gives_the_bytes_of_one_process() {
    let folder = model();
    for more in
        [&["--calibrate", TEXT][..], &["--fast"], &["--rounding", "nearest"], &["--to", "bf16"], &["--to", "int8"]]
    {
        done(&folder, &words("merge", more));
        let (want, reported) = (files(&folder.join("out")), weights(&folder));
        std::fs::remove_dir_all(folder.join("out")).unwrap();
        for of in [1, 2, 3, 7] {
            // In any order.
            for number in (1..=of).rev() {
                let part = format!("{number}/{of}");
                let threads = if number % 2 == 0 { "1" } else { "3" };
                done(&folder, &words("merge", &[more, &["--part", &part, "--threads", threads, "--quiet"]].concat()));
            }
            assert_eq!(beside(folder.path()).len(), of);
            done(&folder, &words("finish", more));
            assert!(files(&folder.join("out")) == want, "{of} parts, {more:?}");
            assert_eq!(weights(&folder), reported, "{of} parts, {more:?}");
            assert!(beside(folder.path()).is_empty());
            std::fs::remove_dir_all(folder.join("out")).unwrap();
        }
    }
}

#[test]
fn a_single_file_is_merged_in_parts_too() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = |command, out, more: &[&'static str]| {
        let args =
            [&[command, "--base", "base-nf4/model.safetensors", "--adapter", "adapter", "-o", out, "--fast"], more];
        done(&folder, &args.concat());
    };
    merge("merge", "whole.safetensors", &[]);
    merge("merge", "out.safetensors", &["--part", "1/2"]);
    merge("merge", "out.safetensors", &["--part", "2/2"]);
    merge("finish", "out.safetensors", &[]);
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(bytes("out.safetensors") == bytes("whole.safetensors"));
    assert_eq!(beside(folder.path()).len(), 2, "the output and its report");
}

/// Into GGUF, and at the types of a file that is one.
#[test]
fn a_gguf_file_is_merged_in_parts_too() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["convert", "--base", "base-nf4", "--to", "q4_0", "-o", "base.gguf"]);
    for merge in [
        &["--base", "base-nf4", "--adapter", "adapter", "--to", "q5_0", "--calibrate", TEXT][..],
        &["--base", "base-nf4", "--adapter", "adapter", "--to", "q8_0", "--rounding", "nearest"],
        &["--base", "base.gguf", "--adapter", "adapter", "--fast"],
    ] {
        let run =
            |command, out, more: &[&'static str]| done(&folder, &[&[command], merge, &["-o", out], more].concat());
        run("merge", "whole.gguf", &["--force"]);
        for part in ["1/3", "2/3", "3/3", "2/3"] {
            run("merge", "out.gguf", &["--part", part, "--resume"]);
        }
        run("finish", "out.gguf", &[]);
        let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
        assert!(bytes("out.gguf") == bytes("whole.gguf"), "{merge:?}");
        ["out.gguf", "out.qmerge-report.json"].iter().for_each(|name| std::fs::remove_file(folder.join(name)).unwrap());
    }
}

/// The moments of many tokens can be taken once for all parts; few tokens each part takes by itself, since a file would not say that they are few.
#[test]
fn moments_for_all_parts_are_those_of_many_tokens() {
    let folder = Folder::new();
    demo(folder.path());
    for (more, many) in [(&["--fast"][..], false), (&["--fast", "--no-run"], false), (&[], true)] {
        let plan = [&["plan"], MERGE, more, &["--parts", "2"]].concat();
        assert_eq!(json(&folder, &plan)["runs_model"], many, "{more:?}");
        done(&folder, &[&["merge"], MERGE, more, &["--moments", "moments"]].concat());
        assert_eq!(folder.join("moments").exists(), many, "{more:?}");
    }
}

/// Parts that are killed go on, and so does a killed `finish`.
#[test]
fn whoever_is_killed_goes_on() {
    let folder = model();
    let more = ["--calibrate", TEXT, "--threads", "3"];
    done(&folder, &words("merge", &more));
    let want = files(&folder.join("out"));
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    let mut random = Random(20_261_126);
    let mut killed = |args: &[&str]| {
        let started = Instant::now();
        let mut child = qmerge(folder.path(), args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis((random.share() * 1500.0) as u64));
        let _ = child.kill();
        child.wait().unwrap();
        started.elapsed()
    };
    for _ in 0..3 {
        for part in ["1/3", "2/3", "3/3"] {
            let args = words("merge", &[&more[..], &["--part", part, "--resume"]].concat());
            killed(&args);
            killed(&args);
            done(&folder, &args);
            // What is done already is found done.
            done(&folder, &args);
        }
        let args = words("finish", &[&more[..], &["--resume"]].concat());
        killed(&args);
        if folder.join("out").exists() {
            // The output had its name already, and parts were being removed.
            let left = beside(folder.path());
            assert!(!left.contains(&"out.partial".to_owned()));
            left.iter().for_each(|name| std::fs::remove_dir_all(folder.join(name)).unwrap());
        } else {
            done(&folder, &args);
        }
        assert!(files(&folder.join("out")) == want);
        assert_eq!(beside(folder.path()), [] as [String; 0]);
        std::fs::remove_dir_all(folder.join("out")).unwrap();
    }
}

/// The jobs that the book shows, started as their schedulers start them.
#[test]
#[cfg(unix)]
fn the_book_s_jobs_run() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/many-machines.md");
    let Ok(page) = std::fs::read_to_string(page) else { return };
    let lines = |word: &str| page.lines().map(str::trim).filter(|line| line.contains(word)).collect::<Vec<_>>();
    let one = |word: &str| match lines(word)[..] {
        [line] => line.trim_start_matches("- ").to_owned(),
        ref lines => panic!("{word}: {lines:?}"),
    };
    let folder = model();
    std::fs::rename(folder.join("adapter"), folder.join("my-lora")).unwrap();
    let merge = |command, out: &str| {
        let args = [command, "--base", "base-nf4", "--adapter", "my-lora", "-o", out, "--quiet"];
        done(&folder, &args);
        std::fs::read(folder.join(out).join("model-00001-of-00002.safetensors")).unwrap()
    };
    let want = merge("merge", "want");
    let program = qmerge(folder.path(), &[]).get_program().to_owned();
    let bin = std::env::join_paths(
        std::iter::once(Path::new(&program).parent().unwrap().to_path_buf())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let start = |script: &str, variables: &[(&str, String)]| {
        let mut shell = qmerge(folder.path(), &[]);
        let (envs, mut sh) = (shell.env("PATH", &bin).get_envs(), std::process::Command::new("sh"));
        sh.envs(envs.filter_map(|(key, value)| Some((key, value?))))
            .envs(variables.iter().map(|(key, value)| (key, value)));
        let output = sh.args(["-c", script]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", stderr(&output));
    };
    let (slurm, kubernetes) = (one("SLURM_ARRAY_TASK_ID"), one("JOB_COMPLETION_INDEX"));
    let parallel = one("parallel --jobs").split_once("qmerge").unwrap().1.split_once(" :::").unwrap().0.to_owned();
    for number in 1..=4 {
        let variables = [("SLURM_ARRAY_TASK_ID", number), ("SLURM_ARRAY_TASK_COUNT", 4), ("SLURM_CPUS_PER_TASK", 2)];
        start(&slurm, &variables.map(|(name, value)| (name, value.to_string())));
    }
    assert!(merge("finish", "merged") == want);
    std::fs::remove_dir_all(folder.join("merged")).unwrap();
    (0..4).for_each(|number: usize| start(&kubernetes, &[("JOB_COMPLETION_INDEX", number.to_string())]));
    assert!(merge("finish", "merged") == want);
    std::fs::remove_dir_all(folder.join("merged")).unwrap();
    (1..=4).for_each(|number| start(&format!("qmerge{}", parallel.replace("{}", &number.to_string())), &[]));
    assert!(merge("finish", "merged") == want);
}

#[test]
fn what_is_not_there_whole_is_not_put_together() {
    let folder = model();
    let part = |text, more: &[&'static str]| words("merge", &[&["--fast", "--part", text], more].concat());
    let finish = |more: &[&'static str]| words("finish", &[&["--fast"], more].concat());
    refused(&folder, &finish(&[]), &["there are no parts"]);
    done(&folder, &part("2/4", &[]));
    refused(&folder, &finish(&[]), &["parts 1, 3, 4 of 4 are missing"]);
    ["1/4", "4/4"].iter().for_each(|text| drop(done(&folder, &part(text, &[]))));
    refused(&folder, &finish(&[]), &["part 3 of 4 is missing"]);
    done(&folder, &part("3/4", &[]));

    // Another merge's.
    refused(&folder, &finish(&["--seed", "7"]), &["seed"]);
    // Of another cut.
    done(&folder, &part("1/2", &[]));
    refused(&folder, &finish(&[]), &["parts of 2 and parts of 4"]);
    std::fs::remove_dir_all(folder.join("out.part-1-of-2")).unwrap();
    // Begun, and not gone on with.
    let told = refused(&folder, &part("3/4", &[]), &[]);
    assert!(told.contains("out.part-3-of-4") && told.contains("--resume"), "{told}");
    // Complete is not interrupted.
    assert!(told.contains("this part is complete") && told.contains("qmerge finish"), "{told}");
    let again = run(folder.path(), &part("3/4", &["--resume"]));
    assert!(again.status.success() && stdout(&again).contains("part 3 of 4 was complete already"), "{again:?}");

    // A part that was interrupted, and one whose last word is missing.
    let journal = folder.join("out.part-3-of-4/qmerge-journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let last = text.trim_end().rfind('\n').unwrap();
    std::fs::write(&journal, &text[..=last]).unwrap();
    refused(&folder, &finish(&[]), &["part 3 of 4 is not complete: 1 of its"]);
    std::fs::write(&journal, "").unwrap();
    refused(&folder, &finish(&[]), &["part 3 of 4 is not complete"]);
    std::fs::write(&journal, &text).unwrap();
    let took = folder.join("out.part-3-of-4/qmerge-scratch/part.json");
    let said = std::fs::read(&took).unwrap();
    for bytes in [&b"{"[..], b"null"] {
        std::fs::write(&took, bytes).unwrap();
        refused(&folder, &finish(&[]), &["has not come to its end"]);
    }
    std::fs::write(&took, &said).unwrap();
    // Steps that it has nothing to do with.
    std::fs::write(&journal, format!("{text}{{\"step\":0}}\n")).unwrap();
    refused(&folder, &finish(&[]), &["lists what this merge does not do"]);
    std::fs::write(&journal, format!("{text}{{\"step\":99999}}\n")).unwrap();
    refused(&folder, &finish(&[]), &["lists what this merge does not do"]);
    std::fs::write(&journal, &text).unwrap();
    // A weight file that was cut off.
    let cut = folder.join("out.part-1-of-4/model-00001-of-00002.safetensors");
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 8]).unwrap();
    refused(&folder, &finish(&[]), &["model-00001-of-00002.safetensors"]);
    std::fs::write(&cut, &bytes).unwrap();
    assert!(!folder.join("out").exists());
    // Nothing was lost by all that.
    done(&folder, &finish(&["--force"]));
    assert!(beside(folder.path()).is_empty());
    // The base changed since.
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    ["1/2", "2/2"].iter().for_each(|text| drop(done(&folder, &part(text, &[]))));
    change(&folder.join("base-nf4/model-00001-of-00002.safetensors"), |tensors| tensors.truncate(tensors.len()));
    let told = refused(&folder, &finish(&[]), &[]);
    assert!(told.contains("another merge's") && told.contains("base"), "{told}");
}

/// Moments that parts had not, or had and `finish` has not, are named as what they are.
#[test]
fn another_calibration_than_the_parts_is_told_of() {
    let folder = model();
    let text = std::fs::read_to_string(TEXT).unwrap();
    std::fs::write(folder.join("other.txt"), text.replace(['a', 'e'], "o")).unwrap();
    for (name, text) in [("m.safetensors", TEXT), ("n.safetensors", "other.txt")] {
        done(&folder, &["calibrate", "--base", "base-nf4", "--text", text, "-o", name]);
    }
    let part = |more: &[&'static str]| {
        ["1/2", "2/2"].iter().for_each(|number| {
            drop(done(&folder, &words("merge", &[more, &["--part", number, "--force"]].concat())));
        });
    };
    let finish = |more: &[&'static str]| refused(&folder, &words("finish", more), &[]);
    part(&["--calibration", "m.safetensors"]);
    for (more, said) in [
        (
            &["--calibration", "n.safetensors"][..],
            "this part is another merge's (text or file of the calibration: changed)",
        ),
        (&["--fast", "--no-run"], "text or file of the calibration: now nothing but what the adapter reads"),
    ] {
        let told = finish(more);
        assert!(
            told.contains(said) && told.contains("give `qmerge finish` the inputs and options that the parts had"),
            "{told}"
        );
        assert!(!told.contains("unfinished output"), "{told}");
    }
    part(&["--fast", "--no-run"]);
    let told = finish(&["--calibration", "m.safetensors"]);
    assert!(
        told.contains("text or file of the calibration: nothing but what the adapter reads, by 3 before, another now"),
        "{told}"
    );
    done(&folder, &words("finish", &["--fast", "--no-run"]));
}

#[test]
fn options_that_a_part_cannot_honour_are_refused() {
    let folder = model();
    for (more, word) in [
        (&["--part", "0/2"][..], "1/4 to 4/4"),
        (&["--part", "3/2"], "1/4 to 4/4"),
        (&["--part", "1/2", "--residual-rank", "2"], "--residual-rank"),
        (&["--part", "1/2", "--min-kept", "0.9"], "--min-kept"),
        (&["--part", "1/2", "--measure", "always"], "qmerge finish measures the whole"),
        (&["--part", "1/2", "--report", "r.html"], "--report"),
    ] {
        let told = refused(&folder, &words("merge", more), &[]);
        assert!(told.contains(word), "{more:?}: {told}");
    }
    refused(&folder, &words("finish", &["--part", "1/2"]), &["--part"]);
    refused(&folder, &words("plan", &["--parts", "0"]), &["number of parts"]);
    // A plan refuses what its parts would.
    let model = ["--base", "base-nf4", "--adapter", "adapter", "--fast", "-o", "s3://bucket/out"];
    for more in [&["merge", "--part", "1/2"][..], &["merge", "--part", "1/2", "--dry-run"], &["plan", "--parts", "2"]] {
        let told = refused(&folder, &[&more[..1], &model, &more[1..]].concat(), &[]);
        assert!(told.contains("parts of a merge must have a path") && told.contains("s3://bucket/out"), "{told}");
    }
}

#[test]
fn a_plan_says_what_each_part_takes() {
    let folder = model();
    let plan = |more: &[&'static str]| {
        let text = done(&folder, &words("plan", &[more, &["--json"]].concat()));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let whole = plan(&[]);
    assert!(whole.get("parts").is_none());
    for (of, option) in [(2, "2"), (5, "5")] {
        let parts = plan(&["--parts", option])["parts"].as_array().unwrap().clone();
        assert_eq!(parts.len(), of);
        let sum = |key: &str| parts.iter().map(|part| part[key].as_u64().unwrap()).sum::<u64>();
        let steps = whole["merged"].as_u64().unwrap() + whole["copied"].as_u64().unwrap();
        assert_eq!(sum("steps"), steps);
        assert!(sum("bytes_written") <= whole["output"]["bytes"].as_u64().unwrap());
        assert!(sum("bytes_written") > whole["output"]["bytes"].as_u64().unwrap() * 8 / 10);
    }
    assert!(beside(folder.path()).is_empty() && !folder.join("out").exists());
}
