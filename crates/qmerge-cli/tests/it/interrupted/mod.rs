//! Killed at any moment, or refused a write, the output is absent or whole; `--resume` finishes, with the bytes of an undisturbed run, or says why it
//! does not.

mod resumed;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::model::{Folder, demo, done, plain_model, qmerge, run, stderr};

const JOURNAL: &str = "out.partial/qmerge-journal.jsonl";
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");

/// A row by row, to another format; B in the base's own; C weight by weight, with the moments of its inputs; D the same with a residual adapter; E into a GGUF file.
const STREAMED: &[&str] = &["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--to", "nf4", "--fast"];
const KEPT: &[&str] = &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--fast"];
const WHOLE: &[&str] = &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--calibrate", TEXT];
const RESIDUAL: &[&str] =
    &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--calibrate", TEXT, "--residual-rank", "2"];
const EXPORTED: &[&str] =
    &["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out", "--calibrate", TEXT, "--to", "q4_k_m"];
const ALL: &[&[&str]] = &[STREAMED, KEPT, WHOLE, RESIDUAL, EXPORTED];

/// All files of a folder but the report, which holds times.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                collect(&path, &format!("{name}/"), files);
            } else if name != "qmerge-report.json" {
                files.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    collect(folder, "", &mut found);
    found.sort();
    found
}

/// Kills a merge of weights that are rounded as a whole once its journal has so many lines, and resumes it: what is made is what is made in one go.
pub(crate) fn killed_and_resumed<T: PartialEq>(folder: &Folder, args: &[&str], lines: &[usize], made: impl Fn() -> T) {
    done(folder, args);
    let want = made();
    std::fs::remove_dir_all(folder.join("out")).unwrap();
    let mut resumed = 0;
    for lines in lines {
        let mut child = qmerge(folder.path(), args).stdout(Stdio::null()).spawn().unwrap();
        let journal = || std::fs::read_to_string(folder.join(JOURNAL)).unwrap_or_default();
        while journal().lines().count() < *lines && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();
        resumed += usize::from(journal().lines().count() > 1);
        let output = run(folder.path(), &[args, &["--resume"]].concat());
        // A kill that came too late finds the output there.
        assert!(output.status.success() || folder.join("out").exists(), "{}", stderr(&output));
        assert!(made() == want, "killed at line {lines}");
        std::fs::remove_dir_all(folder.join("out")).unwrap();
    }
    assert!(resumed > 0, "no kill came between the first layer and the end");
}

/// Numbers that look random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A merge, and what it comes to undisturbed.
struct Merge<'f> {
    folder: &'f Path,
    args: Vec<&'static str>,
    /// How long it takes.
    time: Duration,
    want: Vec<(String, Vec<u8>)>,
    weights: serde_json::Value,
}

impl<'f> Merge<'f> {
    fn new(folder: &'f Path, args: &[&'static str]) -> Self {
        let args = [args, &["--threads", "4"]].concat();
        let started = Instant::now();
        let output = run(folder, &args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        let mut merge = Self { folder, args, time: started.elapsed(), want: vec![], weights: serde_json::Value::Null };
        (merge.want, merge.weights) = (files(&folder.join("out")), merge.reported());
        merge.clear();
        merge
    }

    /// What the report says of each weight.
    fn reported(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.folder.join("out/qmerge-report.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["weights"].clone()
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.folder.join("out")).unwrap();
    }

    fn begin(&self, more: &[&str]) -> Child {
        let args = [&self.args[..], more].concat();
        qmerge(self.folder, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Begins it and kills it as soon as its files are there.
    fn interrupt(&self) {
        loop {
            let mut child = self.begin(&["--force"]);
            let deadline = Instant::now() + Duration::from_secs(20);
            // The weight files come after the journal, at once with their size.
            let size =
                self.want.iter().find(|(name, _)| name == "model.safetensors").map_or(0, |(_, bytes)| bytes.len());
            let weights = self.folder.join("out.partial/model.safetensors");
            let ready = || std::fs::metadata(&weights).is_ok_and(|meta| meta.len() >= size as u64);
            while !ready() && Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            let _ = child.kill();
            child.wait().unwrap();
            if self.folder.join("out").exists() {
                // It was too fast.
                self.clear();
            } else if ready() {
                return;
            }
        }
    }

    /// Runs it with a limit on the size of files, and the signal ignored that would end it. True if it came through.
    #[cfg(unix)]
    fn limited(&self, blocks: u64) -> bool {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let program = qmerge(self.folder, &[&self.args[..], &["--resume"]].concat());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).arg(program.get_program()).args(program.get_args());
        shell.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = shell.current_dir(self.folder).output().unwrap();
        let text = stderr(&output);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{text}");
        if !output.status.success() {
            assert!(text.contains("File too large") && text.contains("--resume"), "{text}");
            assert!(!self.folder.join("out").exists());
        }
        output.status.success()
    }

    /// Finishes what is unfinished and compares every byte.
    fn finish(&self, what: &str) {
        if !self.folder.join("out").exists() {
            let output = run(self.folder, &[&self.args[..], &["--resume"]].concat());
            assert!(output.status.success(), "{what}: {}", stderr(&output));
            assert_eq!(self.reported(), self.weights, "{what}");
            self.shows_the_whole(&output);
        }
        let found = files(&self.folder.join("out"));
        for (name, bytes) in &self.want {
            let other = found.iter().find(|(found, _)| found == name);
            assert!(other.is_some_and(|(_, found)| found == bytes), "{what}: {name} differs: {:?}", self.args);
        }
        assert_eq!(found.len(), self.want.len(), "{what}");
        assert!(!self.folder.join("out.partial").exists());
        self.clear();
    }

    /// What the run says of its bytes counts those of the run before, if it had finished a step.
    fn shows_the_whole(&self, output: &std::process::Output) {
        let text = std::fs::read_to_string(self.folder.join("out/qmerge-report.json")).unwrap();
        let summary = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["summary"];
        let told = crate::model::stdout(output).contains("of which an interrupted run had the rest");
        let before = summary["bytes_before"].as_u64();
        assert_eq!(told, before.is_some(), "{}", crate::model::stdout(output));
        let size = self.want.iter().find(|(name, _)| name == "model.safetensors").map_or(0, |(_, bytes)| bytes.len());
        let all = before.unwrap_or(0) + summary["bytes_written"].as_u64().unwrap();
        // But for the file's header.
        assert!(all + (1 << 16) >= size as u64, "{all} {size}");
    }

    /// Kills runs at random moments, some of them several times, and finishes each. Returns how many were resumed with finished steps.
    fn kills(&self, count: usize, random: &mut Random) -> usize {
        let (mut killed, mut resumed) = (0, 0);
        while killed < count {
            let mut more: &[&str] = &[];
            loop {
                let mut child = self.begin(more);
                std::thread::sleep(self.time.mul_f64(random.share()));
                let _ = child.kill();
                child.wait().unwrap();
                killed += 1;
                if self.folder.join("out").exists() || random.share() > 0.3 {
                    break;
                }
                more = &["--resume"];
            }
            let journal = std::fs::read_to_string(self.folder.join(JOURNAL)).unwrap_or_default();
            resumed += usize::from(journal.lines().count() > 1);
            self.finish("killed");
        }
        resumed
    }

    /// Has writes fail at random places, and finishes. Returns how many runs failed.
    #[cfg(unix)]
    fn failures(&self, count: usize, random: &mut Random) -> usize {
        let largest = self.want.iter().map(|(_, bytes)| bytes.len()).max().unwrap() as f64;
        let mut failed = 0;
        for _ in 0..count {
            self.interrupt();
            let blocks = (largest * random.share() / 512.0) as u64;
            failed += usize::from(!self.limited(blocks.max(16)));
            self.finish("a write failed");
        }
        failed
    }
}

fn models() -> Folder {
    let folder = Folder::new();
    demo(folder.path());
    // Both have an adapter: the demo's goes with the demo's base.
    std::fs::rename(folder.join("adapter"), folder.join("demo-adapter")).unwrap();
    plain_model(folder.path(), 24, 512, 1024);
    folder
}

/// The adapter that belongs to the base of a merge.
fn with_adapter(args: &[&'static str]) -> Vec<&'static str> {
    let demo = args.contains(&"base-nf4");
    args.iter().map(|&word| if word == "adapter" && demo { "demo-adapter" } else { word }).collect()
}

#[test]
fn killed_at_random_moments() {
    let folder = models();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut resumed = 0;
    for (args, count) in [(STREAMED, 12), (WHOLE, 3), (RESIDUAL, 3)] {
        resumed += Merge::new(folder.path(), &with_adapter(args)).kills(count, &mut random);
    }
    assert!(resumed > 0, "no kill came after the first finished step");
}

/// What it differs in is known before the model writes its text, which takes its time; that the text would be another follows.
#[test]
fn another_merge_is_refused_before_it_is_calibrated() {
    let folder = models();
    let args = ["merge", "--base", "base-nf4", "--adapter", "demo-adapter", "-o", "out"];
    let merge = Merge::new(folder.path(), &args);
    merge.interrupt();
    let output = run(folder.path(), &[&args[..], &["--resume", "--seed", "5"]].concat());
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("another merge's") && told.contains("seed") && !told.contains("calibration"), "{told}");
    merge.finish("refused");
}

#[cfg(unix)]
#[test]
fn writes_that_fail() {
    let folder = models();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut failed = 0;
    for (args, count) in [(STREAMED, 8), (KEPT, 3), (WHOLE, 2), (RESIDUAL, 1)] {
        failed += Merge::new(folder.path(), &with_adapter(args)).failures(count, &mut random);
    }
    assert!(failed > 7, "{failed}");
}

/// The same many times: `QMERGE_INTERRUPTIONS=1000 cargo test --release -p qmerge-cli --test it many_interruptions -- --ignored --nocapture` kills so
/// many runs, and has a fifth as many writes fail.
#[cfg(unix)]
#[test]
#[ignore = "takes minutes"]
fn many_interruptions() {
    let count: usize = std::env::var("QMERGE_INTERRUPTIONS").map_or(1000, |text| text.parse().unwrap());
    let seed = std::env::var("QMERGE_SEED").map_or(1, |text| text.parse().unwrap());
    let folder = models();
    let mut random = Random(0x2545_f491_4f6c_dd1d_u64.wrapping_mul(2 * seed + 1));
    for (args, share) in ALL.iter().zip([12, 5, 2, 1]) {
        let merge = Merge::new(folder.path(), &with_adapter(args));
        let kills = count * share / 20;
        let resumed = merge.kills(kills, &mut random);
        eprintln!("{kills} kills, {resumed} resumed with finished steps, 0 wrong bytes: {args:?}");
        let failures = (kills / 5).max(1);
        let failed = merge.failures(failures, &mut random);
        eprintln!("{failures} limits, {failed} writes failed, 0 wrong bytes: {args:?}");
    }
}

/// A disk that is full to the byte: a small file system, where this process may mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_without_space() {
    let folder = models();
    std::fs::create_dir(folder.join("disk")).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=24M", "tmpfs"]).arg(folder.join("disk"));
    if !mount.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no right to mount a file system");
        return;
    }
    let work = std::panic::AssertUnwindSafe(|| {
        let args = &["merge", "--base", "../base", "--adapter", "../adapter", "-o", "out", "--to", "nf4", "--fast"];
        let disk = folder.join("disk");
        let merge = Merge::new(&disk, args);
        let mut random = Random(7);
        let mut failed = 0;
        for _ in 0..6 {
            merge.interrupt();
            // All but some of what is left.
            let free = 1 + (random.share() * 5e6) as usize;
            let filler = disk.join("filler");
            let mut file = std::fs::File::create(&filler).unwrap();
            let piece = vec![1; 4096];
            while std::io::Write::write_all(&mut file, &piece).is_ok() {}
            let full = file.metadata().unwrap().len();
            file.set_len(full.saturating_sub(free as u64)).unwrap();
            drop(file);
            let output = run(&disk, &[&merge.args[..], &["--resume"]].concat());
            if !output.status.success() {
                let text = stderr(&output);
                assert_eq!(output.status.code(), Some(3), "{text}");
                assert!(text.contains("No space left") && text.contains("--resume"), "{text}");
                failed += 1;
            }
            std::fs::remove_file(&filler).unwrap();
            merge.finish("the disk was full");
        }
        assert!(failed > 0);
    });
    let result = std::panic::catch_unwind(work);
    let unmounted = std::process::Command::new("umount").arg(folder.join("disk")).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    result.unwrap();
}
