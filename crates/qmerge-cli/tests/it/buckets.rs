//! Models and outputs in buckets: S3's and Google's, from a server that runs in the test and fails as networks do.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bucket::Buckets;
use crate::interrupted::Random;
use crate::model::{Folder, demo, done, qmerge, run, stderr, stdout};

const SECRETS: [&str; 2] = ["s3cr3t-key", "t0ken-of-a-session"];

/// The demo in a folder, merged there, and in a bucket.
fn served() -> (Folder, Buckets) {
    let (folder, server) = (Folder::new(), Buckets::new("127.0.0.1:0"));
    demo(folder.path());
    for name in ["base-nf4", "adapter"] {
        for item in std::fs::read_dir(folder.join(name)).unwrap() {
            let path = item.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            server.state.put(&format!("models/in/{name}/{file}"), std::fs::read(&path).unwrap());
        }
    }
    done(&folder, &["merge", "--fast", "base-nf4", "adapter", "-o", "local"]);
    (folder, server)
}

/// The program, which takes the server for S3 and for Google's store.
fn command(server: &Buckets, folder: &Folder, args: &[&str]) -> Command {
    let mut command = qmerge(folder.path(), args);
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "SSL_CERT_FILE"] {
        command.env_remove(proxy);
    }
    let address = format!("http://{}", server.host);
    command
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", SECRETS[0])
        .env("AWS_SESSION_TOKEN", SECRETS[1])
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", &address)
        .env("GOOGLE_BASE_URL", &address)
        // A service account that no token is fetched for.
        .env(
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            r#"{"private_key":"k","private_key_id":"i","client_email":"e","disable_oauth":true}"#,
        );
    command
}

fn told(output: &Output) -> String {
    let text = stderr(output) + &stdout(output);
    assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
    text
}

/// The output is whole and right, and nothing else is left.
fn check(server: &Buckets, folder: &Folder, name: &str) {
    let mut files: Vec<String> = std::fs::read_dir(folder.join("local"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    for file in &files {
        let found =
            server.state.get(&format!("models/{name}/{file}")).unwrap_or_else(|| panic!("{name} has no {file}"));
        if matches!(file.as_str(), "qmerge-report.json" | "README.md") {
            let text = String::from_utf8(found).unwrap();
            assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
        } else {
            assert!(found == std::fs::read(folder.join("local").join(file)).unwrap(), "{file} of {name}");
        }
    }
    let names: Vec<String> = files.iter().map(|file| format!("models/{name}/{file}")).collect();
    assert_eq!(server.state.names(&format!("models/{name}")), names);
    assert_eq!(server.state.uploads(), 0);
}

#[test]
fn merges_into_buckets_are_those_of_the_disk() {
    let (folder, server) = served();
    for scheme in ["s3", "gs"] {
        let base = format!("{scheme}://models/in/base-nf4");
        let lora = format!("{scheme}://models/in/adapter");
        let out = format!("{scheme}://models/{scheme}");
        let output = command(&server, &folder, &["merge", "--fast", &base, &lora, "-o", &out]).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        told(&output);
        check(&server, &folder, scheme);
        // What is there stays, unless it is to be replaced.
        let output = command(&server, &folder, &["merge", "--fast", &base, &lora, "-o", &out]).output().unwrap();
        assert!(told(&output).contains("the output exists already"));
        let again = ["merge", "--fast", &base, &lora, "-o", &out, "--force"];
        assert!(command(&server, &folder, &again).output().unwrap().status.success());
        check(&server, &folder, scheme);
    }
}

/// An older output of the same length is not taken for the new one.
#[test]
fn what_cannot_be_completed_is_no_output() {
    let (folder, server) = served();
    let merge = |scale: &str| {
        let (base, lora) = ("s3://models/in/base-nf4", format!("s3://models/in/adapter={scale}"));
        let words = ["merge", "--fast", base, "--adapter", &lora, "-o", "s3://models/out", "--force"];
        command(&server, &folder, &words).output().unwrap()
    };
    let first = merge("1");
    assert!(first.status.success(), "{}", told(&first));
    let weights = |state: &crate::bucket::State| state.get("models/out/model.safetensors");
    let before = weights(&server.state);
    server.state.incomplete.store(true, Ordering::Relaxed);
    let second = merge("0.5");
    assert!(!second.status.success() && told(&second).contains("no access"), "{}", told(&second));
    // The old one is gone or whole; none stands for the new one.
    assert!(weights(&server.state).is_none_or(|now| Some(now) == before));
    server.state.incomplete.store(false, Ordering::Relaxed);
    let third = merge("0.5");
    assert!(third.status.success(), "{}", told(&third));
    assert!(weights(&server.state).is_some_and(|now| Some(now) != before));
}

/// More by hand: `QMERGE_MERGES=200 cargo test --release -p qmerge-cli --test it faults_change`.
#[test]
fn faults_change_no_byte_and_leave_nothing() {
    let (folder, server) = served();
    let merges = std::env::var("QMERGE_MERGES").map_or(4, |merges| merges.parse().unwrap());
    for number in 0..merges {
        let (every, scheme) = ([3, 4, 5, 7][number % 4], ["s3", "gs"][number % 2]);
        server.state.faults.store(every, Ordering::Relaxed);
        let name = format!("faults-{number:03}");
        let words = [
            "merge",
            "--fast",
            &format!("{scheme}://models/in/base-nf4"),
            &format!("{scheme}://models/in/adapter"),
            "-o",
            &format!("{scheme}://models/{name}"),
        ];
        let output = command(&server, &folder, &words).output().unwrap();
        server.state.faults.store(0, Ordering::Relaxed);
        assert!(output.status.success(), "{}", told(&output));
        check(&server, &folder, &name);
    }
}

/// A run that is killed goes on, in S3 and in Google's store, wherever that says that it is.
#[test]
fn whoever_is_killed_goes_on_in_buckets() {
    let (folder, server) = served();
    let mut random = Random(20_261_129);
    let account = format!(
        r#"{{"private_key":"k","private_key_id":"i","client_email":"e","disable_oauth":true,"gcs_base_url":"http://{}"}}"#,
        server.host
    );
    std::fs::write(folder.join("account.json"), account).unwrap();
    for (scheme, number) in [("s3", 0), ("gs", 1), ("s3", 2), ("gs", 3)] {
        let name = format!("killed-{number}");
        let (base, lora) = (format!("{scheme}://models/in/base-nf4"), format!("{scheme}://models/in/adapter"));
        let output = format!("{scheme}://models/{name}");
        let words = ["merge", "--fast", &base, &lora, "-o", &output, "--resume"];
        let start = || {
            let mut command = command(&server, &folder, &words);
            if number == 3 {
                // By a service account's file alone.
                command.env_remove("GOOGLE_BASE_URL").env_remove("GOOGLE_SERVICE_ACCOUNT_KEY");
                command.env("GOOGLE_SERVICE_ACCOUNT", folder.join("account.json"));
            }
            command
        };
        let started = Instant::now();
        let mut kills = 0;
        while kills < 4 {
            let mut child = start().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis((random.share() * 600.0) as u64));
            let _ = child.kill();
            child.wait().unwrap();
            kills += 1;
        }
        // It may have come to its end before it was killed.
        let done = start().output().unwrap();
        let told = told(&done);
        assert!(done.status.success() || told.contains("the output exists already"), "{told}");
        check(&server, &folder, &name);
        assert!(started.elapsed() < Duration::from_secs(120));
    }
}

/// A store that says when to come back is asked then, and not before.
#[test]
fn a_busy_store_is_left_alone() {
    let (folder, server) = served();
    for (number, scheme) in ["s3", "gs"].into_iter().enumerate() {
        server.state.busy.store(3, Ordering::Relaxed);
        let (base, lora) = (format!("{scheme}://models/in/base-nf4"), format!("{scheme}://models/in/adapter"));
        let (name, started) = (format!("busy-{number}"), Instant::now());
        let output = format!("{scheme}://models/{name}");
        let output = command(&server, &folder, &["merge", "--fast", &base, &lora, "-o", &output]).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        assert!(started.elapsed() > Duration::from_secs(3), "{:?}", started.elapsed());
        check(&server, &folder, &name);
    }
}

/// A store takes five gigabytes with one request, and a test less.
#[test]
fn what_is_large_beside_the_weights_goes_in_parts() {
    let (folder, server) = served();
    let large: Vec<u8> = (0..40_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(folder.join("base-nf4/extra.txt"), &large).unwrap();
    server.state.put("models/in/base-nf4/extra.txt", large);
    done(&folder, &["merge", "--fast", "base-nf4", "adapter", "-o", "local", "--force"]);
    assert!(folder.join("local/extra.txt").exists());
    server.state.most_put.store(17 << 20, Ordering::Relaxed);
    for scheme in ["s3", "gs"] {
        let (base, lora) = (format!("{scheme}://models/in/base-nf4"), format!("{scheme}://models/in/adapter"));
        let output = format!("{scheme}://models/large-{scheme}");
        let output = command(&server, &folder, &["merge", "--fast", &base, &lora, "-o", &output]).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        check(&server, &folder, &format!("large-{scheme}"));
    }
}

/// What a plan says of a part is what the server is asked for.
#[test]
fn parts_say_what_each_reads_anew() {
    const MERGE: &[&str] = &["--fast", "--no-run", "s3://models/in/base-nf4", "s3://models/in/adapter", "-o", "out"];
    let (folder, server) = served();
    let words = [&["plan"], MERGE, &["--parts", "3"]].concat();
    let output = command(&server, &folder, &words).output().unwrap();
    assert!(told(&output).contains("besides: headers, small tensors and adapters"), "{}", told(&output));
    let planned = command(&server, &folder, &[&words[..], &["--json"]].concat()).output().unwrap();
    let planned: serde_json::Value = serde_json::from_str(&stdout(&planned)).unwrap();
    let beside = planned["bytes_beside"].as_u64().unwrap();
    for (number, part) in planned["parts"].as_array().unwrap().iter().enumerate() {
        let before = server.state.sent.load(Ordering::Relaxed);
        let one = format!("{}/3", number + 1);
        let words = [&["merge"], MERGE, &["--part", one.as_str()]].concat();
        let output = command(&server, &folder, &words).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        let read = server.state.sent.load(Ordering::Relaxed) - before;
        // Beside that come the configuration and the tokenizer, which are no part of the weights.
        let small = 64 << 10;
        let most = part["bytes_read"].as_u64().unwrap() + beside + small;
        assert!(read <= most, "part {one} read {read} bytes, and {most} were announced");
    }
    let output = command(&server, &folder, &[&["finish"], MERGE].concat()).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    done(&folder, &["merge", "--fast", "--no-run", "base-nf4", "adapter", "-o", "unread"]);
    let weights = |of: &str| std::fs::read(folder.join(of).join("model.safetensors")).unwrap();
    assert!(weights("out") == weights("unread"));
}

/// Nothing is written to a local disk, unless a scratch is given; and a disk that is full is named.
#[cfg(unix)]
#[test]
fn a_scratch_is_all_that_lies_on_the_disk() {
    let (folder, server) = served();
    std::fs::create_dir(folder.join("scratch")).unwrap();
    let limited = |args: &[&str]| {
        let program = command(&server, &folder, args);
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
        shell.arg(program.get_program()).args(program.get_args());
        for (key, value) in program.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        // A pipe is no file.
        shell.current_dir(folder.path()).output().unwrap()
    };
    let words = ["merge", "--fast", "s3://models/in/base-nf4", "s3://models/in/adapter", "-o", "s3://models/out"];
    let output = limited(&words);
    assert!(output.status.success(), "{}", told(&output));
    check(&server, &folder, "out");
    let with = [&words[..], &["--force", "--scratch", "scratch=1G"]].concat();
    let output = limited(&with);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    let said = ["error: scratch: ", "cannot write the scratch there", "--scratch DIR=SIZE"];
    assert!(said.iter().all(|said| text.contains(said)), "{text}");
    let output = command(&server, &folder, &[&words[..], &["--resume", "--force", "--scratch", "scratch=1G"]].concat());
    let output = { output }.output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    check(&server, &folder, "out");
    assert_eq!(std::fs::read_dir(folder.join("scratch")).unwrap().count(), 0);
    for (scratch, said) in [("none=1G", "no such folder"), ("scratch=1M", "at least"), ("scratch=x", "not a size")] {
        let output = run(folder.path(), &["merge", "--fast", "base-nf4", "adapter", "-o", "o", "--scratch", scratch]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}
