//! Merges out of a store and into a sink that are no files: what is read and written goes through the traits alone.

mod memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use self::memory::{Event, Server};
use qmerge::adapters::Adapter;
use qmerge::error::{Error, Kind, Result};
use qmerge::merge::{self, RunOptions};
use qmerge::open::{Checkpoint, MAX_CONFIG};
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::write::Existing;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge-cli/demo")
}

/// The demo's model and adapter.
fn server() -> Server {
    let server = Server::default();
    for name in ["base-nf4", "adapter"] {
        server.load(&demo().join(name));
    }
    server
}

fn inputs(server: &Server) -> Result<Inputs> {
    let base = Checkpoint::open_in(server.folder("base-nf4"))?;
    Inputs::new(base, vec![Adapter::open_in(server.folder("adapter"), 1.0)?])
}

/// With an adapter for what rounding leaves, so that the output is read again before it is published.
fn plan(inputs: &Inputs) -> Plan {
    Plan::new(inputs, &Options { residual_rank: Some(2), ..Options::default() }).unwrap()
}

fn merge(server: &Server, existing: Existing) -> Result<()> {
    let inputs = inputs(server)?;
    let run = RunOptions { threads: 4, existing, ..RunOptions::default() };
    merge::run_into(&inputs, &plan(&inputs), None, server.sink("out"), &run, &Silent).map(drop)
}

/// The files of an output, without those that tell of times and paths.
fn told_apart(mut files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    files.retain(|name, _| !["README.md", "qmerge-report.json"].contains(&name.as_str()));
    files
}

/// What a merge of the same on the local disk writes.
fn on_the_disk() -> BTreeMap<String, Vec<u8>> {
    let base = Checkpoint::open(&demo().join("base-nf4")).unwrap();
    let inputs = Inputs::new(base, vec![Adapter::open(&demo().join("adapter"), 1.0).unwrap()]).unwrap();
    let thread = std::thread::current().id();
    let out = std::env::temp_dir().join(format!("qmerge-stores-{}-{thread:?}", std::process::id()));
    let _ = std::fs::remove_dir_all(&out);
    merge::run(&inputs, &plan(&inputs), None, &out, &RunOptions::default(), &Silent).unwrap();
    let (files, residual) = (Server::default(), out.join("residual-adapter"));
    files.load(&residual);
    let mut found: BTreeMap<String, Vec<u8>> = files
        .within("residual-adapter")
        .into_iter()
        .map(|(name, bytes)| (format!("residual-adapter/{name}"), bytes))
        .collect();
    std::fs::remove_dir_all(residual).unwrap();
    files.load(&out);
    found.extend(files.within(out.file_name().unwrap().to_str().unwrap()));
    std::fs::remove_dir_all(out).unwrap();
    told_apart(found)
}

/// What came of a merge that failed: the error, and that nothing is to be seen of its output.
fn failure(server: &Server, existing: Existing) -> Error {
    let error = merge(server, existing).unwrap_err();
    assert!(server.within("out").is_empty());
    error
}

#[test]
fn the_output_is_that_of_local_files() {
    let (server, expected) = (server(), on_the_disk());
    merge(&server, Existing::default()).unwrap();
    let written = told_apart(server.within("out"));
    assert_eq!(written.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(written == expected);
    assert!(server.within("out.partial").is_empty());
    assert_eq!(merge(&server, Existing::default()).unwrap_err().kind(), Kind::Exists);
}

#[test]
fn small_reads_go_in_batches() {
    let server = server();
    drop(inputs(&server).unwrap());
    let objects = server.objects();
    let count = |event| objects.events.iter().filter(|seen| **seen == event).count();
    // 28 quantized weights have a state each. The others are headers, configurations, and the first bytes that tell a file's kind.
    assert_eq!(count(Event::ReadMany), 1);
    assert!(count(Event::Read) < 20, "{:?}", objects.events);
}

#[test]
fn what_is_replaced_meanwhile_is_an_error() {
    for name in ["base-nf4/model.safetensors", "adapter/adapter_model.safetensors"] {
        let server = server();
        server.objects().replaced = Some((100, name.to_owned()));
        let error = failure(&server, Existing::default());
        assert_eq!(error.kind(), Kind::Malformed, "{error}");
        assert!(error.to_string().starts_with(&format!("memory://{name}: it was replaced")), "{error}");
        assert!(server.within("out.partial").is_empty());
    }
}

#[test]
fn a_read_that_fails_is_an_error_that_names_the_object() {
    for number in [0, 5, 50, 100] {
        let server = server();
        server.objects().failing_reads = Some(number);
        let error = failure(&server, Existing::default());
        assert!(error.to_string().starts_with("memory://"), "{number}: {error}");
    }
}

/// The sink takes all writes after the one that failed, and would list their steps.
#[test]
fn nothing_is_listed_after_a_write_that_failed_and_a_resumed_merge_writes_the_same() {
    let expected = on_the_disk();
    for number in [0, 3, 20, 60] {
        let server = server();
        server.objects().failing_write = Some(number);
        let error = failure(&server, Existing::default());
        assert_eq!(error.kind(), Kind::Io, "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--resume")), "{error:?}");
        let events = server.objects().events.clone();
        let failed = events.iter().position(|event| *event == Event::WriteFailed).unwrap();
        // One listing may be on its way while a write of other steps fails.
        let listed = events[failed..].iter().filter(|event| **event == Event::Listed).count();
        assert!(listed <= 1, "{number}: {listed}");
        merge(&server, Existing { resume: true, force: false }).unwrap();
        assert!(told_apart(server.within("out")) == expected, "{number}");
    }
}

#[test]
fn another_identity_is_another_merge() {
    let server = server();
    server.objects().failing_write = Some(20);
    failure(&server, Existing::default());
    server.objects().versions.insert("base-nf4/model.safetensors".into(), 1);
    let error = failure(&server, Existing { resume: true, force: false });
    assert!(error.to_string().contains("base: changed"), "{error}");
    merge(&server, Existing { resume: false, force: true }).unwrap();
}

#[test]
fn a_small_object_is_read_whole_within_its_limit() {
    let server = server();
    let base = server.folder("base-nf4");
    let config = base.small("config.json", MAX_CONFIG).unwrap().unwrap();
    assert_eq!(config, server.within("base-nf4")["config.json"]);
    assert_eq!(base.small("none.json", MAX_CONFIG).unwrap(), None);
    let error = base.small("config.json", 10).unwrap_err().to_string();
    assert!(error.starts_with("memory://base-nf4/config.json: larger than 10 bytes"), "{error}");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    server.objects().bytes.insert("base-nf4/config.json".into(), pointer.to_vec());
    assert!(inputs(&server).unwrap_err().to_string().contains("Git LFS pointer"));
}
