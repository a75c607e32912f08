//! Files beside the weights: what is copied from a folder that came from elsewhere, and what is never written over.

use crate::model::{Folder, plain_model, run, stderr, stdout};

const MERGE: [&str; 7] = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"];

#[cfg(unix)]
#[test]
fn links_are_followed_within_the_folder_alone() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    std::fs::create_dir_all(folder.join("home/keys")).unwrap();
    std::fs::write(folder.join("home/key"), "secret").unwrap();
    std::fs::write(folder.join("home/keys/key"), "secret").unwrap();
    std::fs::create_dir(folder.join("base/docs")).unwrap();
    std::fs::write(folder.join("base/docs/usage.txt"), "text").unwrap();
    symlink("docs/usage.txt", folder.join("base/usage.txt")).unwrap();
    symlink("docs", folder.join("base/more")).unwrap();
    symlink(folder.join("home/key"), folder.join("base/notes.txt")).unwrap();
    symlink("../../home/key", folder.join("base/docs/deep.txt")).unwrap();
    symlink("../home/keys", folder.join("base/keys")).unwrap();
    symlink("..", folder.join("base/up")).unwrap();
    symlink("nowhere", folder.join("base/dangling.txt")).unwrap();
    // A link to a link, and an adapter's file.
    symlink("notes.txt", folder.join("base/twice.txt")).unwrap();
    symlink("../home/key", folder.join("adapter/vocab.txt")).unwrap();
    let output = run(folder.path(), &MERGE);
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["notes.txt", "docs/deep.txt", "more/deep.txt", "keys", "up", "dangling.txt", "twice.txt", "vocab.txt"]
    {
        assert!(folder.join("out").join(name).symlink_metadata().is_err(), "{name} was copied");
        let named = stderr(&output).contains(&format!("{name}` is a symbolic link out of its folder"));
        assert!(named || name == "dangling.txt", "{name} is not in {}", stderr(&output));
    }
    for name in ["docs/usage.txt", "usage.txt", "more/usage.txt"] {
        assert_eq!(std::fs::read_to_string(folder.join("out").join(name)).unwrap(), "text", "{name}");
    }
    // The adapter's card and tokenizer are copied by another command too.
    let output = run(folder.path(), &["truncate", "--adapter", "adapter", "--rank", "2", "-o", "cut"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("vocab.txt` is a symbolic link"), "{}", stderr(&output));
    assert!(!folder.join("cut/vocab.txt").exists());
}

/// A snapshot in the hub's cache consists of links to its blobs.
#[cfg(unix)]
#[test]
fn links_to_the_blobs_of_the_cache_are_followed() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    let snapshot = "models--org--base/snapshots/abc";
    std::fs::create_dir_all(folder.join(snapshot)).unwrap();
    std::fs::create_dir_all(folder.join("models--org--base/blobs")).unwrap();
    std::fs::write(folder.join("base/vocab.txt"), "words").unwrap();
    std::fs::write(folder.join("models--org--base/other"), "no blob").unwrap();
    for (name, blob) in [("model.safetensors", "1"), ("config.json", "2"), ("vocab.txt", "3")] {
        std::fs::copy(folder.join("base").join(name), folder.join("models--org--base/blobs").join(blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), folder.join(snapshot).join(name)).unwrap();
    }
    symlink("../../other", folder.join(snapshot).join("other.txt")).unwrap();
    let output = run(folder.path(), &["merge", "--base", snapshot, "--adapter", "adapter", "-o", "out"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read(folder.join("out/vocab.txt")).unwrap(), b"words");
    assert!(folder.join("out/config.json").is_file() && !folder.join("out/other.txt").exists());
    assert!(stderr(&output).contains("other.txt` is a symbolic link"), "{}", stderr(&output));
}

/// Of a read-only base come files that their owner can change: also when `config.json` is written anew, and when a run goes on.
#[cfg(unix)]
#[test]
fn copies_of_read_only_files_can_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    std::fs::write(folder.join("base/vocab.txt"), "words").unwrap();
    std::fs::write(folder.join("adapter/merges.txt"), "pairs").unwrap();
    for name in ["base/vocab.txt", "base/config.json", "base/model.safetensors", "adapter/merges.txt"] {
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    let output = run(folder.path(), &[&MERGE[..], &["--to", "nf4", "--fast"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    for item in std::fs::read_dir(folder.join("out")).unwrap() {
        let item = item.unwrap();
        // Root may write to any file, so look at the mode.
        assert_eq!(item.metadata().unwrap().permissions().mode() & 0o600, 0o600, "{:?}", item.file_name());
    }
    assert!(std::fs::read_to_string(folder.join("out/config.json")).unwrap().contains("nf4"));
    let output = run(folder.path(), &["truncate", "--adapter", "adapter", "--rank", "2", "-o", "cut"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::metadata(folder.join("cut/merges.txt")).unwrap().permissions().mode() & 0o600, 0o600);
}

#[test]
fn a_report_is_not_written_over_without_force() {
    let folder = Folder::new();
    plain_model(folder.path(), 1, 64, 64);
    let done = |args: &[&str]| {
        let output = run(folder.path(), args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    };
    done(&MERGE);
    let other = "out/qmerge-report.json";
    let before = std::fs::read(folder.join(other)).unwrap();
    let refused = |args: &[&str], absent: &str| {
        let output = run(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("qmerge-report.json"), "{args:?}: {}", stderr(&output));
        assert!(!folder.join(absent).exists(), "{args:?} went to work first");
        assert_eq!(std::fs::read(folder.join(other)).unwrap(), before);
    };
    let again = ["merge", "--base", "base", "--adapter", "adapter", "-o", "again", "--report", other];
    refused(&again, "again");
    refused(&["convert", "--base", "base", "--to", "f16", "-o", "again", "--report", other], "again");
    // The report beside a single file.
    std::fs::write(folder.join("one.qmerge-report.json"), "another's").unwrap();
    let single = ["merge", "--base", "base", "--adapter", "adapter", "-o", "one.safetensors"];
    refused(&single, "one.safetensors");
    assert_eq!(std::fs::read(folder.join("one.qmerge-report.json")).unwrap(), b"another's");
    done(&[&single[..], &["--force"]].concat());
    done(&[&again[..], &["--force"]].concat());
    assert_ne!(std::fs::read(folder.join(other)).unwrap(), before);
    // A comparison does not take its place either: it says so before it looks at anything else.
    let compare = ["compare", "--base", "base", "--adapter", "adapter", "--text", "none.txt", "--report", other];
    let output = run(folder.path(), &compare);
    assert!(stderr(&output).contains("this is the report of a merge"), "{}", stderr(&output));
}

/// Where a small file system can be mounted: the plan says what the merge would say.
#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_looks_at_the_disk() {
    let folder = Folder::new();
    plain_model(folder.path(), 8, 512, 1024);
    std::fs::create_dir(folder.join("disk")).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"]).arg(folder.join("disk"));
    if !mount.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no right to mount a file system");
        return;
    }
    // Also below folders that are yet to be made.
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "disk/new/out"];
    let (plan, merge) = (run(folder.path(), &[&args[..], &["--dry-run"]].concat()), run(folder.path(), &args));
    let json = run(folder.path(), &[&args[..], &["--dry-run", "--json"]].concat());
    let unmounted = std::process::Command::new("umount").arg(folder.join("disk")).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let problem = "not enough space: the output takes 8.4 MB, 2.1 MB are free";
    assert!(plan.status.success() && stderr(&plan).contains(problem), "{}", stderr(&plan));
    assert_eq!(merge.status.code(), Some(3));
    assert!(stderr(&merge).contains(problem), "{}", stderr(&merge));
    let json: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert!(json["warnings"].to_string().contains(problem), "{json}");
    let enough = run(folder.path(), &[&MERGE[..], &["--dry-run"]].concat());
    assert!(enough.status.success() && !stderr(&enough).contains("space"), "{}", stderr(&enough));
}
