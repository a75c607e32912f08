//! Models that lie elsewhere, read by ranges without a copy.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::model::{Folder, demo, done, run, stderr, stdout};
use crate::server::Server;

/// The demo in a folder, and on a server, as plain files and as repositories.
fn served() -> (Folder, Server) {
    let (folder, server) = (Folder::new(), Server::new());
    demo(folder.path());
    for (path, name) in
        [("files/base", "base-nf4"), ("org/base", "base-nf4"), ("files/lora", "adapter"), ("org/lora", "adapter")]
    {
        server.add_folder(path, &folder.join(name));
    }
    done(&folder, &["merge", "--fast", "base-nf4", "adapter", "-o", "local"]);
    (folder, server)
}

fn assert_same(folder: &Folder, one: &str, other: &str) {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let read = |of: &str| std::fs::read(folder.join(of).join(name)).unwrap();
        assert!(read(one) == read(other), "{name} of {one} and of {other}");
    }
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn what_lies_elsewhere_is_merged_without_a_copy() {
    let (folder, server) = served();
    let web = |name: &str| format!("{}/files/{name}?sig=s3cret", server.address);
    let hub = |name: &str| format!("hf://org/{name}");
    for (number, (base, lora)) in [(web("base"), web("lora")), (hub("base"), hub("lora"))].into_iter().enumerate() {
        server.sent();
        let out = format!("out{number}");
        let output = server.run(folder.path(), &["merge", "--fast", "--base", &base, "--adapter", &lora, "-o", &out]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_same(&folder, "local", &out);
        // Each byte of the weights is read once; what a plan looks at (the header, small tensors) before that.
        let sent = server.sent();
        let base = sent.iter().find(|(path, _)| path.ends_with("base/model.safetensors")).unwrap();
        let whole = len(&folder.join("base-nf4/model.safetensors"));
        assert!((whole..whole * 5 / 4).contains(base.1), "{base:?} of {whole}");
        let report = std::fs::read_to_string(folder.join(&out).join("qmerge-report.json")).unwrap();
        let card = std::fs::read_to_string(folder.join(&out).join("README.md")).unwrap();
        for text in [&report, &card, &stderr(&output), &stdout(&output)] {
            assert!(!text.contains("s3cret") && !text.contains("hf_secret"), "{text}");
        }
        assert!(!folder.join("no-cache").exists());
    }
    let stores = server.asked(true);
    assert!(!stores.is_empty() && stores.iter().all(|path| path.starts_with("hub/")), "the hub alone gets the token");
}

/// Redirects may be relative, to a path, to another host or to what lies beside; the token goes to the hub alone.
#[test]
fn redirects_are_followed_wherever_they_lead() {
    let (folder, server) = served();
    let web = format!("{}/files/base?sig=s3cret", server.address);
    for (base, detours) in [
        (web.as_str(), ["/PATH", "//HOST/PATH", "model.safetensors", "../base/model.safetensors", "?again"]),
        (
            "hf://org/base",
            ["/PATH", "//HOST/org/base/model.safetensors", "model.safetensors", "./model.safetensors", "/PATH?x"],
        ),
    ] {
        *server.state.detours.lock().unwrap() = detours.map(str::to_owned).to_vec();
        let words = ["merge", "--fast", base, "adapter", "-o", "out", "--force"];
        let output = server.run(folder.path(), &words);
        assert!(output.status.success(), "{base}: {}", stderr(&output));
        assert!(server.state.detours.lock().unwrap().is_empty());
        assert_same(&folder, "local", "out");
    }
    assert!(server.asked(true).iter().all(|path| path.starts_with("hub/")), "{:?}", server.asked(true));
    for (detour, said) in [
        ("ftp://host/x", "answered with a redirect to an address of another kind, ftp:"),
        ("http://", "answered with a redirect to \"http://\", which is no address"),
    ] {
        *server.state.detours.lock().unwrap() = vec![detour.to_owned()];
        let output = server.run(folder.path(), &["merge", "--fast", "hf://org/base", "adapter", "-o", "not"]);
        assert!(!output.status.success() && stderr(&output).contains(said), "{}", stderr(&output));
    }
}

/// A pull request's revision has slashes, which stand as %2F in the hub's own addresses.
#[test]
fn revisions_with_slashes_are_found() {
    let (folder, server) = served();
    for (base, revision) in [
        ("hf://org/base@refs/pr/1", "refs%2Fpr%2F1"),
        ("hf://org/base@refs%2Fpr%2F1", "refs%2Fpr%2F1"),
        ("hf://org/base@my%2Fbranch", "my%2Fbranch"),
        ("hf://org/base@v1", "v1"),
    ] {
        server.state.revisions.lock().unwrap().clear();
        let output = server.run(folder.path(), &["merge", "--fast", base, "adapter", "-o", "out", "--force"]);
        assert!(output.status.success(), "{base}: {}", stderr(&output));
        assert_same(&folder, "local", "out");
        let asked = server.state.revisions.lock().unwrap().clone();
        assert!(!asked.is_empty() && asked.iter().all(|asked| asked == revision), "{asked:?}");
        let card = std::fs::read_to_string(folder.join("out/README.md")).unwrap();
        let report = std::fs::read_to_string(folder.join("out/qmerge-report.json")).unwrap();
        assert!(report.contains(base) && card.contains("org/base"), "{card}");
    }
    // A file of it, and a folder below.
    server.add_folder("org/nested/sub/model", &folder.join("base-nf4"));
    for path in ["hf://org/nested@refs/pr/7/sub/model", "hf://org/base@refs/pr/7/model.safetensors"] {
        let output = server.run(folder.path(), &["inspect", path]);
        assert!(output.status.success(), "{path}: {}", stderr(&output));
    }
}

/// A server that says when to come back is asked then, the hub and any other.
#[test]
fn a_busy_server_is_left_alone() {
    let (folder, server) = served();
    for base in [format!("{}/files/base", server.address), "hf://org/base".to_owned()] {
        server.state.busy.store(2, Ordering::Relaxed);
        let started = std::time::Instant::now();
        let output = server.run(folder.path(), &["merge", "--fast", &base, "adapter", "-o", "out", "--force"]);
        assert!(output.status.success(), "{base}: {}", stderr(&output));
        // Requests side by side may be refused in the same second.
        assert!(started.elapsed().as_secs() >= 1, "{:?}", started.elapsed());
        assert_same(&folder, "local", "out");
    }
}

/// A part reads its own layers, and looking at a model its header alone.
#[test]
fn only_what_is_needed_is_read() {
    let (folder, server) = served();
    let output = server.run(folder.path(), &["inspect", "hf://org/base"]);
    assert!(stdout(&output).contains("nf4") || stdout(&output).contains("NF4"), "{}", stderr(&output));
    let whole = len(&folder.join("base-nf4/model.safetensors"));
    let looked = server.sent()["org/base/model.safetensors"];
    let mut read = 0;
    for part in 1..=3 {
        let part = format!("{part}/3");
        let output = server.run(
            folder.path(),
            &[&["merge", "--fast", "--no-run", "hf://org/base", "adapter"][..], &["-o", "out", "--part", &part]]
                .concat(),
        );
        assert!(output.status.success(), "{}", stderr(&output));
        let sent = server.sent()["org/base/model.safetensors"];
        assert!(sent < whole * 17 / 20, "{sent} of {whole}");
        read += sent;
    }
    assert!(looked < whole / 3, "{looked} of {whole}");
    // Each part reads the header and what says how all weights are stored, which of so small a model is a quarter.
    assert!(read < 2 * whole, "{read} of {whole}: nothing is read twice but the header and small tensors");
    let output = server.run(folder.path(), &["finish", "--fast", "--no-run", "hf://org/base", "adapter", "-o", "out"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let local = ["merge", "--fast", "--no-run", "--base", "base-nf4", "--adapter", "adapter", "-o", "alone"];
    let output = server.run(folder.path(), &local);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same(&folder, "alone", "out");
}

#[test]
fn faults_on_the_way_change_no_byte() {
    let (folder, server) = served();
    let web = |name: &str| format!("{}/files/{name}", server.address);
    for every in [3, 5, 7] {
        server.state.faults.store(every, Ordering::Relaxed);
        for (base, lora) in [(web("base"), "hf://org/lora".to_owned()), ("hf://org/base".to_owned(), web("lora"))] {
            let output = server.run(folder.path(), &["merge", "--fast", &base, &lora, "-o", "out", "--force"]);
            assert!(output.status.success(), "{}", stderr(&output));
            assert_same(&folder, "local", "out");
        }
    }
}

#[test]
fn a_change_while_it_is_read_is_an_error() {
    let (folder, server) = served();
    *server.state.changing.lock().unwrap() = Some(("files/base/model.safetensors".into(), 3_000));
    let base = format!("{}/files/base?sig=s3cret", server.address);
    let output = server.run(folder.path(), &["merge", "--fast", &base, "adapter", "-o", "out"]);
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("it was changed while it was read"), "{text}");
    assert!(text.contains("/files/base/model.safetensors") && !text.contains("s3cret"), "{text}");
    assert!(!folder.join("out").exists());
}

#[test]
fn what_is_not_there_is_named() {
    let (folder, server) = served();
    let nothing = format!("{}/files/nothing?sig=s3cret", server.address);
    for (base, said) in [
        ("hf://org/none", "has no org/none at main"),
        ("hf://org", "not the address of a repository"),
        ("ftp://host/x", "an address of a kind that is not known"),
        (nothing.as_str(), "there is nothing of that name"),
    ] {
        let output = server.run(folder.path(), &["merge", "--fast", base, "adapter", "-o", "out"]);
        let text = stderr(&output);
        assert!(text.contains(said) && !text.contains("s3cret"), "{text}");
    }
    for (args, said) in [
        (
            &["merge", "--fast", "base-nf4", "adapter", "-o", "https://host/x"][..],
            "https://host/x: an output cannot lie there",
        ),
        (&["finish", "base-nf4", "adapter", "-o", "s3://b/x"], "s3://b/x: what this command writes must have a path"),
    ] {
        let output = server.run(folder.path(), args);
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    let offline = run(folder.path(), &["inspect", "hf://org/base"]);
    assert!(stderr(&offline).contains("HF_HUB_OFFLINE forbids to ask the hub"), "{}", stderr(&offline));
}
