//! What people read on terminals of 80 and 120 columns: tables that fit, sentences that break between words, and nothing of either in a pipe.

use std::process::Output;

use crate::model::{Folder, bf16s, change, demo, f32s, noise, qmerge, run, stderr, stdout, write};
use crate::text::settled;

const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");

/// Every command that prints for people, in an order in which each finds what it needs. `eval.txt` lies beside.
const COMMANDS: &[(&str, &[&str])] = &[
    ("merge", &["merge", "base-nf4", "adapter", "-o", "out"]),
    ("merge_nearest", &["merge", "base-nf4", "adapter", "-o", "nearest", "--rounding", "nearest"]),
    ("merge_residual", &["merge", "base-nf4", "adapter", "-o", "residual", "--fast", "--residual-rank", "2"]),
    ("dry_run", &["merge", "base-nf4", "adapter", "-o", "x", "--dry-run", "--threads", "2"]),
    ("convert", &["convert", "--base", "base-nf4", "--to", "int8", "-o", "int8"]),
    ("inspect_model", &["inspect", "base-nf4"]),
    ("inspect_adapter", &["inspect", "adapter"]),
    ("verify", &["verify", "base-nf4", "adapter", "--merged", "nearest"]),
    (
        "compare",
        &[
            "compare",
            "base-nf4",
            "adapter",
            "--merged",
            "out",
            "--merged",
            "nearest",
            "--text",
            "eval.txt",
            "--context",
            "64",
            "--windows",
            "4",
            "--continuation",
            "24",
        ],
    ),
    ("truncate", &["truncate", "--adapter", "adapter", "--rank", "2", "-o", "cut"]),
    ("combine", &["combine", "--adapter", "adapter", "--adapter", "adapter=-0.5", "--rank", "2", "-o", "both"]),
    ("calibrate", &["calibrate", "--base", "base-nf4", "--text", "eval.txt", "-o", "moments.safetensors"]),
    ("inspect_calibration", &["inspect", "moments.safetensors"]),
    ("report", &["report", "out/qmerge-report.json", "-o", "page.html"]),
    ("untrained", &["merge", "base-nf4", "untrained", "-o", "same"]),
    ("half_trained", &["merge", "base-nf4", "half", "-o", "half-merged", "--fast"]),
    ("exists", &["merge", "base-nf4", "adapter", "-o", "out"]),
    ("another_base", &["merge", "plain", "adapter", "-o", "y"]),
    ("wrong_option", &["merge", "base-nf4", "adapter", "-o", "y", "--roundings", "adapter"]),
    ("wrong_value", &["merge", "base-nf4", "adapter", "-o", "y", "--rounding", "best"]),
    ("no_such_file", &["compare", "base-nf4", "adapter", "--merged", "out", "--text", "no-such-file.txt"]),
    ("temperature", &["generate", "--base", "out", "--prompt", "x", "--temperature=-1"]),
];

fn prepared() -> Folder {
    let folder = Folder::new();
    demo(folder.path());
    std::fs::copy(EVAL, folder.join("eval.txt")).unwrap();
    for (name, every) in [("untrained", 1), ("half", 2)] {
        crate::model::copy_folder(&folder.join("adapter"), &folder.join(name));
        change(&folder.join(name).join("adapter_model.safetensors"), |tensors| {
            tensors
                .iter_mut()
                .filter(|tensor| tensor.0.contains("lora_B"))
                .step_by(every)
                .for_each(|tensor| tensor.3.fill(0));
        });
    }
    write(&folder.join("plain/model.safetensors"), &[bf16s("model.layers.0.mlp.up_proj.weight", &[8, 8], noise)]);
    std::fs::write(folder.join("plain/config.json"), "{\"model_type\": \"llama\"}").unwrap();
    folder
}

fn at(folder: &Folder, columns: usize, args: &[&str]) -> Output {
    // Help has the library's own way to find its width.
    let columns = columns.to_string();
    qmerge(folder.path(), args).envs([("QMERGE_WIDTH", &columns), ("COLUMNS", &columns)]).output().unwrap()
}

/// What a command printed on both streams, with its line and its status.
fn shown(folder: &Folder, output: &Output, args: &[&str]) -> String {
    let status = output.status.code().unwrap();
    settled(folder, &format!("$ qmerge {}\n{}{}status {status}", args.join(" "), stdout(output), stderr(output)))
}

/// The lines that are too long, but for one word or one command behind its label.
fn too_long(text: &str, columns: usize) -> Vec<&str> {
    let is_whole = |line: &str| {
        let rest = line.trim_start().strip_prefix("next: ").unwrap_or(line.trim_start());
        rest.starts_with("qmerge ") || !rest.contains(' ')
    };
    text.lines().filter(|line| line.chars().count() > columns && !is_whole(line)).collect()
}

/// What reads it may be a program, in whose environment the variable stands by chance.
#[test]
fn in_a_pipe_columns_cut_and_break_nothing() {
    let folder = Folder::new();
    let long = "a-path-that-is-long/".repeat(3) + "nothing";
    let args = ["inspect", &long];
    let text = |columns: &str| stderr(&qmerge(folder.path(), &args).env("COLUMNS", columns).output().unwrap());
    assert_eq!(text("40"), format!("error: {long}: no such file or folder\nhint: check the path\n"));
    assert_eq!(text("40"), text("400"));
}

#[test]
fn every_command_fits_the_terminal() {
    for columns in [80, 120] {
        let folder = prepared();
        for (name, args) in COMMANDS {
            let output = at(&folder, columns, args);
            for text in [stdout(&output), stderr(&output)] {
                assert_eq!(too_long(&text, columns), Vec::<&str>::new(), "{name} at {columns}");
            }
            insta::assert_snapshot!(format!("{name}_{columns}"), shown(&folder, &output, args));
        }
    }
}

/// Nothing is out of place on narrower ones either.
#[test]
fn tables_fit_a_narrow_terminal() {
    let folder = prepared();
    for columns in [40, 60] {
        for (name, args) in
            COMMANDS.iter().filter(|(name, _)| ["dry_run", "inspect_model", "merge_nearest"].contains(name))
        {
            let output = at(&folder, columns, &[args, &["--force"][..usize::from(*name == "merge_nearest")]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            assert_eq!(too_long(&stdout(&output), columns), Vec::<&str>::new(), "{name} at {columns}");
        }
    }
}

#[test]
fn help_fits_the_terminal() {
    let folder = Folder::new();
    for command in crate::text::COMMANDS {
        for help in ["-h", "--help"] {
            let text = stdout(&at(&folder, 80, &[command, help]));
            assert_eq!(too_long(&text, 80), Vec::<&str>::new(), "{command} {help}");
        }
    }
}

/// In a pipe names are whole and no line is broken: what reads it may be a program.
#[test]
fn in_a_pipe_nothing_is_cut_or_broken() {
    let folder = prepared();
    let text = stdout(&run(folder.path(), &["merge", "base-nf4", "adapter", "-o", "out", "--rounding", "nearest"]));
    let long = text.lines().find(|line| line.starts_with("verdict:")).unwrap();
    assert!(long.ends_with("the merged model was not run"), "{long}");
    assert!(text.contains("model.layers.0.mlp.down_proj.weight"), "{text}");
}

/// Names that are not of one model's form are shortened by what all have.
#[test]
fn names_of_no_common_form_are_shortened() {
    let folder = Folder::new();
    let names = ["net.encoder.block.0.attention.query", "net.decoder.block.0.attention.query"];
    let base: Vec<_> = names.iter().map(|name| bf16s(&format!("{name}.weight"), &[16, 16], noise)).collect();
    write(&folder.join("base/model.safetensors"), &base);
    std::fs::write(folder.join("base/config.json"), "{\"model_type\": \"t5\"}").unwrap();
    let adapter: Vec<_> = names
        .iter()
        .flat_map(|name| {
            let factor = |what: &str, shape: &[usize]| {
                f32s(&format!("base_model.model.{name}.lora_{what}.weight"), shape, noise)
            };
            [factor("A", &[2, 16]), factor("B", &[16, 2])]
        })
        .collect();
    write(&folder.join("adapter/adapter_model.safetensors"), &adapter);
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
    std::fs::write(folder.join("adapter/adapter_config.json"), config).unwrap();
    let text = stdout(&at(&folder, 80, &["merge", "base", "adapter", "-o", "out", "--dry-run"]));
    assert!(text.lines().any(|line| line.starts_with("encoder.block.0.attention.query  ")), "{text}");
}

/// The command that stands behind `next` does what it says.
#[test]
fn the_next_command_can_be_run() {
    let folder = prepared();
    let next = |args: &[&str]| -> Vec<String> {
        let text = stdout(&run(folder.path(), args));
        let line = text.lines().find_map(|line| line.strip_prefix("next: qmerge ")).unwrap_or_else(|| panic!("{text}"));
        line.split(' ').map(str::to_owned).collect()
    };
    let go = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = run(folder.path(), &words);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    };
    go(&next(&["merge", "base-nf4", "adapter", "-o", "out"]));
    // Lost by a method that does not look at outputs: another merge, beside the first.
    let again = next(&["merge", "base-nf4", "adapter", "-o", "nearest", "--rounding", "nearest"]);
    assert!(again.ends_with(&["-o".to_owned(), "nearest-2".to_owned()]), "{again:?}");
    go(&again);
    go(&next(&["verify", "base-nf4", "adapter", "--merged", "nearest"]));
    go(&next(&["convert", "--base", "base-nf4", "--to", "int8", "-o", "int8"]));
    go(&next(&["compare", "base-nf4", "adapter", "--merged", "nearest-2", "--text", "eval.txt", "--windows", "1"]));
}

/// An adapter that was never trained changes nothing: that is said once, before the work, and nothing is calibrated for it.
#[test]
fn an_untrained_adapter_costs_nothing() {
    let folder = prepared();
    let output = run(folder.path(), &["merge", "base-nf4", "untrained", "-o", "same", "--calibrate", "eval.txt"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("as before any training").count(), 1, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("verdict: the adapter changes nothing"), "{text}");
    assert!(!text.contains("calibrated on") && !text.contains("next:"), "{text}");
    let tensors = |name: &str| crate::model::read(&folder.join(name).join("model.safetensors"));
    assert!(tensors("same") == tensors("base-nf4"));
    // Nor is it run to be cut.
    let words = ["truncate", "--base", "base-nf4", "--adapter", "untrained", "--rank", "2", "-o", "cut"];
    let cut = run(folder.path(), &words);
    assert!(cut.status.success(), "{}", stderr(&cut));
    assert_eq!(stderr(&cut).matches("as before any training").count(), 1, "{}", stderr(&cut));
    assert!(stdout(&cut).contains("the model is not run") && !stdout(&cut).contains("calibrated"), "{}", stdout(&cut));
    // Half of it: one warning, before the work, and a merge as ever.
    let half = run(folder.path(), &["merge", "base-nf4", "half", "-o", "half-merged", "--fast"]);
    let warnings: Vec<String> =
        stderr(&half).lines().filter(|line| line.starts_with("warning")).map(str::to_owned).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("half: 14 of 28 modules") && warnings[0].contains("`model.layers.0."), "{warnings:?}");
}
