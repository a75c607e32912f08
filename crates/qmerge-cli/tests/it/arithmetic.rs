//! Arithmetic on adapters, as commands: combined, extracted, converted, and taken out of a merge.

use crate::model::{Folder, demo, done, run, stderr, stdout};

fn refused(folder: &Folder, args: &[&str], words: &[&str]) {
    let output = run(folder.path(), args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {text}");
    assert!(!folder.join("x").exists() && !folder.join("x.partial").exists(), "{args:?}");
}

/// A half and a half are the whole: a sum of adapters is merged as the adapter is, and has its rank.
#[test]
fn halves_make_a_whole() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["combine", "--adapter", "adapter=0.5", "--adapter", "adapter=0.5", "-o", "sum"]);
    let merge = |adapter: &str, out: &str| {
        done(&folder, &["merge", "base-nf4", adapter, "--to", "f32", "-o", out]);
        crate::model::read(&folder.join(out).join("model.safetensors"))
    };
    let (whole, sum) = (merge("adapter", "whole"), merge("sum", "summed"));
    let floats =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect::<Vec<_>>();
    for (whole, sum) in whole.iter().zip(&sum) {
        let (whole, sum) = (floats(&whole.3), floats(&sum.3));
        assert!(whole.iter().zip(&sum).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(0.1)));
    }
    // The merge, less what the adapter adds, and what it differs by: the adapter again.
    let text = done(&folder, &["extract", "--base", "base-nf4", "--tuned", "whole", "--rank", "8", "-o", "again"]);
    assert!(text.contains("all 28 modules") && text.contains("100.00 %"), "{text}");
    let text = done(&folder, &["convert-adapter", "base-nf4", "adapter", "--energy", "0.9", "-o", "lora"]);
    assert!(text.contains("LORA → LORA, 28 modules, rank up to"), "{text}");
    let output = run(folder.path(), &["unmerge", "whole", "adapter", "-o", "base-again"]);
    assert!(
        output.status.success() && stderr(&output).contains("what merging rounded off is gone"),
        "{}",
        stderr(&output)
    );
    let said = stdout(&output);
    assert!(said.contains("what the adapter adds is subtracted, at 1.00 of its strength"), "{said}");
    assert!(!folder.join("base-again/README.md").exists(), "its card would call it a merge");
    // A merge with the opposite weight takes it out as well, and may be followed by another.
    done(&folder, &["merge", "whole", "adapter=-1", "-o", "less"]);
    done(&folder, &["merge", "less", "adapter", "-o", "more"]);
    refused(&folder, &["merge", "less", "adapter=-2", "-o", "x"], &["is merged into it already", "--force"]);
    // Once is enough, and what was taken out may be merged again.
    refused(
        &folder,
        &["unmerge", "base-again", "adapter", "-o", "x"],
        &["does not say that this adapter is merged into it", "--force"],
    );
    refused(&folder, &["unmerge", "whole", "adapter=0.5", "-o", "x"], &["with weight 1.0, not 0.5"]);
    done(&folder, &["merge", "base-again", "adapter", "-o", "merged-again"]);
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let folder = Folder::new();
    demo(folder.path());
    for (args, words) in [
        (&["combine", "-o", "x"][..], &["--adapter"][..]),
        (&["combine", "--adapter", "adapter", "--method", "best", "-o", "x"], &["dare_ties_svd"]),
        (&["combine", "--adapter", "adapter", "--method", "ties", "-o", "x"], &["ties needs", "--density"]),
        (&["combine", "--adapter", "adapter=x", "-o", "x"], &["not a number"]),
        (&["combine", "--adapter", "base-nf4", "-o", "x"], &["not an adapter"]),
        (&["combine", "--adapter", "adapter", "--adapter", "missing", "-o", "x"], &["missing"]),
        (&["combine", "--adapter", "adapter", "--force", "-o", "adapter"], &["made from"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "--rank", "2", "-o", "x"], &["do not differ"]),
        (&["extract", "--base", "base-nf4", "--tuned", "adapter", "--rank", "2", "-o", "x"], &["adapter"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "-o", "x"], &["--rank"]),
        (&["extract", "--base", "base-nf4", "--tuned", "base-nf4", "--energy", "2", "-o", "x"], &["between 0 and 1"]),
        (
            &[
                "convert-adapter",
                "--base",
                "base-nf4",
                "--adapter",
                "adapter",
                "--adapter",
                "adapter",
                "--rank",
                "1",
                "-o",
                "x",
            ],
            &["qmerge combine"],
        ),
        (&["unmerge", "adapter", "-o", "x"], &["the merge is not named"]),
    ] {
        refused(&folder, args, words);
    }
}
