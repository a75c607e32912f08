//! What people read, held as snapshots (tests/it/snapshots).

use crate::model::{Folder, demo, run, stderr, stdout};

/// Replaces what differs from run to run: times, memory, the temporary folder.
pub(crate) fn settled(folder: &Folder, text: &str) -> String {
    let mut text = text.replace(folder.path().to_str().unwrap(), "FOLDER");
    for (from, to) in [
        (r"written\s+in\s+[0-9.]+ m?s(,\s+[0-9.]+ [kMG]B\s+of\s+memory)?", "written in TIME"),
        (r"about\s+[0-9.]+ [kMG]B\s+of\s+memory\s+and\s+[a-z0-9.\s]+?\s+on\s+", "about MEMORY and TIME on "),
        // Lines that a log gets where a phase takes long, as on a busy machine.
        (r"(?m)^[a-z ]+(: [0-9]+ of [0-9]+ [a-z]+)?, [0-9a-z ]+ left\n", ""),
    ] {
        text = regex::Regex::new(from).unwrap().replace_all(&text, to).into_owned();
    }
    text
}

#[test]
fn merge_inspect_verify_and_plan() {
    let folder = Folder::new();
    demo(folder.path());
    let show = |args: &[&str]| {
        let output = run(folder.path(), args);
        settled(
            &folder,
            &format!(
                "$ qmerge {}\n{}{}status {}",
                args.join(" "),
                stdout(&output),
                stderr(&output),
                output.status.code().unwrap()
            ),
        )
    };
    insta::assert_snapshot!(
        "dry_run",
        show(&["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--dry-run", "--threads", "2"])
    );
    insta::assert_snapshot!("merge", show(&["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out"]));
    insta::assert_snapshot!(
        "merge_bf16",
        show(&["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "bf16", "--to", "bf16"])
    );
    insta::assert_snapshot!("convert", show(&["convert", "--base", "base-nf4", "-o", "int8", "--to", "int8"]));
    insta::assert_snapshot!("inspect_model", show(&["inspect", "base-nf4"]));
    insta::assert_snapshot!("inspect_adapter", show(&["inspect", "adapter"]));
    insta::assert_snapshot!(
        "verify_lost",
        show(&["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "out"])
    );
    insta::assert_snapshot!(
        "verify_kept",
        show(&["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "bf16"])
    );
    insta::assert_snapshot!(
        "verify_absent",
        show(&["verify", "--base", "base-nf4", "--adapter", "adapter", "--merged", "base-nf4"])
    );
}

/// Every command.
pub(crate) const COMMANDS: &[&str] = &[
    "merge",
    "finish",
    "plan",
    "convert",
    "inspect",
    "verify",
    "compare",
    "report",
    "generate",
    "calibrate",
    "truncate",
    "combine",
    "extract",
    "convert-adapter",
    "unmerge",
    "demo",
    "completions",
    "man",
];

#[test]
fn help() {
    let folder = Folder::new();
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help_{command}"), stdout(&run(folder.path(), &[command, "--help"])));
    }
    insta::assert_snapshot!("help_merge_short", stdout(&run(folder.path(), &["merge", "-h"])));
}

/// The report's fields and their types, by path.
#[test]
fn the_report_keeps_its_schema() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(folder.path(), &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let written: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("out/qmerge-report.json")).unwrap()).unwrap();
    assert_eq!(json, written);
    let mut fields = std::collections::BTreeSet::new();
    walk("", &json, &mut fields);
    insta::assert_snapshot!("report_schema", fields.into_iter().collect::<Vec<_>>().join("\n"));
}

fn walk(path: &str, value: &serde_json::Value, fields: &mut std::collections::BTreeSet<String>) {
    use serde_json::Value;
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{path}.{key}"), value, fields)),
        Value::Array(items) => items.iter().for_each(|item| walk(&format!("{path}[]"), item, fields)),
        Value::Null => drop(fields.insert(format!("{path}: null"))),
        Value::Bool(_) => drop(fields.insert(format!("{path}: bool"))),
        Value::Number(_) => drop(fields.insert(format!("{path}: number"))),
        Value::String(_) => drop(fields.insert(format!("{path}: string"))),
    }
}
