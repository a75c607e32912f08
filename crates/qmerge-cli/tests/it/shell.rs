//! Completion scripts and manual pages.

use crate::model::{Folder, run, stderr, stdout};

const COMMANDS: [&str; 8] = ["merge", "convert", "inspect", "verify", "compare", "report", "generate", "demo"];

#[test]
fn completions_know_commands_options_and_values() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(folder.path(), &["completions", shell]);
        assert!(output.status.success(), "{}", stderr(&output));
        let script = stdout(&output);
        for word in COMMANDS.iter().chain(&["adapter", "min-survival", "calibrate", "nf4", "stochastic"]) {
            // PowerShell and elvish are told of options, not of their values.
            let values = matches!(*word, "nf4" | "stochastic") && matches!(shell, "powershell" | "elvish");
            assert!(values || script.contains(word), "{shell}: {word}");
        }
    }
    let output = run(folder.path(), &["completions", "cmd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("bash"), "{}", stderr(&output));
}

/// The script is taken by the shell itself where there is one.
#[test]
fn bash_completes_an_option() {
    let folder = Folder::new();
    let script = stdout(&run(folder.path(), &["completions", "bash"]));
    std::fs::write(folder.join("qmerge.bash"), script).unwrap();
    let ask = "source ./qmerge.bash && COMP_WORDS=(qmerge merge --min-s) COMP_CWORD=2 && _qmerge qmerge --min-s merge && echo \"${COMPREPLY[@]}\"";
    let Ok(output) = std::process::Command::new("bash").arg("-c").arg(ask).current_dir(folder.path()).output() else {
        eprintln!("left out: there is no bash here");
        return;
    };
    assert_eq!(stdout(&output), "--min-survival\n", "{}", stderr(&output));
}

#[test]
fn manual_pages() {
    let folder = Folder::new();
    let page = stdout(&run(folder.path(), &["man"]));
    assert!(page.contains(".TH qmerge 1") && COMMANDS.iter().all(|name| page.contains(name)), "{page}");
    let output = run(folder.path(), &["man", "-o", "man/man1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("man/man1"));
    assert_eq!(std::fs::read_to_string(folder.join("man/man1/qmerge.1")).unwrap(), page);
    for command in COMMANDS {
        let page = std::fs::read_to_string(folder.join(&format!("man/man1/qmerge-{command}.1"))).unwrap();
        assert!(page.contains(&format!("qmerge\\-{command}")), "{page}");
    }
    let merge = std::fs::read_to_string(folder.join("man/man1/qmerge-merge.1")).unwrap();
    assert!(merge.contains("min\\-survival") && merge.contains("Exit status"), "{merge}");
    std::fs::write(folder.join("file"), "").unwrap();
    let failed = run(folder.path(), &["man", "-o", "file"]);
    assert_eq!(failed.status.code(), Some(3), "{}", stderr(&failed));
}

#[test]
fn the_program_goes_by_its_name_whatever_its_file_is_called() {
    let folder = Folder::new();
    let file = folder.join("other.exe");
    // A file that was just written may still be open in a process that another test starts, and then does not run.
    #[cfg(unix)]
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_qmerge"), &file).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(env!("CARGO_BIN_EXE_qmerge"), &file).unwrap();
    for (args, usage) in [(&["--help"][..], "Usage: qmerge "), (&["merge", "-x"], "Usage: qmerge merge ")] {
        let output = std::process::Command::new(&file).args(args).output().unwrap();
        let text = stdout(&output) + &stderr(&output);
        assert!(text.contains(usage), "{text}");
    }
}
