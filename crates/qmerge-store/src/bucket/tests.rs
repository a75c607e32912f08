//! Outputs in a store of this process.

use object_store::memory::InMemory;

use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use qmerge::error::Kind;
use qmerge::write::{Existing, Room, Sink, Start};

use super::large::PIECE;
use super::shared::PART;
use super::sink::StoreSink;
use super::{Objects, wait};
use crate::remote::Failed;

const RESUME: Existing = Existing { force: false, resume: true };

fn sink(objects: &Arc<InMemory>) -> StoreSink {
    StoreSink::in_objects(Arc::clone(objects) as Arc<dyn Objects>, "b", "a/out", Path::new("s3://b/a/out"))
}

fn room(name: &str, most: u64) -> Room {
    Room { name: name.to_owned(), most, least: 0, gaps: vec![] }
}

fn names(objects: &Arc<InMemory>) -> Vec<String> {
    use futures_util::TryStreamExt;
    let mut names: Vec<String> =
        wait(objects.list(None).map_ok(|meta| meta.location.to_string()).try_collect::<Vec<_>>()).unwrap();
    names.sort();
    names
}

fn read(objects: &Arc<InMemory>, name: &str) -> Vec<u8> {
    wait(async { objects.get(&Key::from(name)).await.unwrap().bytes().await.unwrap() }).into()
}

/// Bytes that tell their place.
fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| (at * 7 % 251) as u8).collect()
}

fn put(sink: &StoreSink, name: &str) {
    sink.put(name, &mut std::iter::once(Ok(name.as_bytes().to_vec()))).unwrap();
}

const LEN: u64 = 2 * PART + 1000;

#[test]
fn nothing_is_seen_before_all_is_there() {
    let objects = Arc::new(InMemory::new());
    let mut sink = sink(&objects);
    assert!(sink.begin(Existing::default()).unwrap().is_none());
    sink.reserve(&[room("model.safetensors", LEN + 50)], Start::Anew(b"head\n")).unwrap();
    for start in [PART + 5, 100, 0, PART - 7] {
        let end = match start {
            0 => 100,
            100 => PART - 7,
            x if x == PART - 7 => PART + 5,
            _ => LEN,
        };
        sink.write_at(0, start, &mut bytes(start..end)).unwrap();
    }
    put(&sink, "config.json");
    put(&sink, "sub/tokenizer.json");
    assert!(names(&objects).iter().all(|name| name.starts_with("a/out.partial/")), "{:?}", names(&objects));
    sink.end(0, LEN).unwrap();
    let store = sink.written().unwrap();
    assert_eq!(store.open("model.safetensors").unwrap().len(), LEN);
    assert_eq!(store.small("sub/tokenizer.json", 99).unwrap().unwrap(), b"sub/tokenizer.json");
    sink.publish(false).unwrap();
    assert_eq!(names(&objects), ["a/out/config.json", "a/out/model.safetensors", "a/out/sub/tokenizer.json"]);
    assert!(read(&objects, "a/out/model.safetensors") == bytes(0..LEN));
    let error = self::sink(&objects).begin(Existing::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
}

/// What was listed is there after a crash at any moment, and what was not may be written again.
#[test]
fn an_interrupted_run_is_gone_on_with() {
    let objects = Arc::new(InMemory::new());
    let mut first = sink(&objects);
    first.begin(RESUME).unwrap();
    let rooms = [room("a.safetensors", LEN), room("b.safetensors", 500)];
    first.reserve(&rooms, Start::Anew(b"head\n")).unwrap();
    first.write_at(0, 0, &mut bytes(0..PART)).unwrap();
    first.write_at(0, PART + 100, &mut bytes(PART + 100..PART + 300)).unwrap();
    first.sync().unwrap();
    first.append(b"one\n").unwrap();
    first.shared.save(false).unwrap();
    first.write_at(0, PART + 300, &mut bytes(PART + 300..2 * PART)).unwrap();
    first.stash("x", b"kept").unwrap();
    assert!(first.can_be_resumed());
    let mut second = sink(&objects);
    assert_eq!(second.begin(Existing::default()).unwrap_err().kind(), Kind::Exists);
    assert_eq!(second.begin(RESUME).unwrap().unwrap(), b"head\none\n");
    second.reserve(&rooms, Start::Resumed(9)).unwrap();
    // The first is told that it is not alone.
    first.sync().unwrap();
    assert_eq!(first.append(b"two\n").unwrap_err().kind(), Kind::Exists);
    // What it gives up is the other's now.
    first.abandon();
    assert_eq!(second.stashed("x").unwrap().unwrap(), b"kept");
    assert_eq!(second.stashed("y").unwrap(), None);
    second.write_at(0, PART, &mut bytes(PART..PART + 100)).unwrap();
    second.write_at(0, PART + 200, &mut bytes(PART + 200..LEN)).unwrap();
    second.write_at(1, 0, &mut bytes(0..200)).unwrap();
    second.end(0, LEN).unwrap();
    second.end(1, 200).unwrap();
    put(&second, "model.safetensors.index.json");
    second.publish(false).unwrap();
    let files = ["a/out/a.safetensors", "a/out/b.safetensors", "a/out/model.safetensors.index.json"];
    assert_eq!(names(&objects), files);
    assert!(read(&objects, files[0]) == bytes(0..LEN) && read(&objects, files[1]) == bytes(0..200));
}

/// A run that is killed when its output has its name, and while it removes what it would have gone on with, can be gone on with at every point.
#[test]
fn an_output_that_was_being_tidied_up_is_gone_on_with() {
    let rooms = [room("a.safetensors", PART + 500)];
    let finish = |sink: &mut StoreSink| {
        sink.end(0, PART + 500).unwrap();
        sink.written().unwrap();
        put(sink, "config.json");
    };
    for removed in 0..4 {
        let objects = Arc::new(InMemory::new());
        let mut first = sink(&objects);
        first.begin(RESUME).unwrap();
        first.reserve(&rooms, Start::Anew(b"head\n")).unwrap();
        first.write_at(0, 5, &mut bytes(5..PART + 500)).unwrap();
        first.sync().unwrap();
        first.write_at(0, 0, &mut bytes(0..5)).unwrap();
        finish(&mut first);
        let left: Vec<(String, Vec<u8>)> = names(&objects)
            .into_iter()
            .filter(|name| name.contains(".partial/"))
            .map(|name| (name.clone(), read(&objects, &name)))
            .collect();
        first.publish(false).unwrap();
        let whole = ["a/out/a.safetensors", "a/out/config.json"];
        assert_eq!(names(&objects), whole);
        for (name, bytes) in left {
            let is_there = match name.split_once("/records/") {
                None => removed < 1,
                Some((_, record)) if record.starts_with("00000001") => removed < 2,
                Some(_) => removed < 3,
            };
            if is_there {
                wait(objects.put(&Key::from(name), PutPayload::from(bytes))).unwrap();
            }
        }
        let mut second = sink(&objects);
        match second.begin(RESUME) {
            Ok(Some(_)) if removed < 2 => second.reserve(&rooms, Start::Resumed(5)).unwrap(),
            Ok(None) if removed == 2 => {
                second.reserve(&rooms, Start::Anew(b"head\n")).unwrap();
                second.write_at(0, 0, &mut bytes(0..PART + 500)).unwrap();
            }
            Err(error) if removed == 3 => {
                assert_eq!(error.kind(), Kind::Exists);
                continue;
            }
            other => panic!("{removed}: {other:?}"),
        }
        finish(&mut second);
        second.publish(false).unwrap();
        assert_eq!(names(&objects), whole);
        assert!(read(&objects, whole[0]) == bytes(0..PART + 500));
    }
}

/// What waits is counted as what it is, whoever completes a part.
#[test]
fn bytes_that_wait_are_counted() {
    let objects = Arc::new(InMemory::new());
    let mut sink = sink(&objects);
    sink.begin(Existing::default()).unwrap();
    sink.reserve(&[room("x.safetensors", 4 * PART)], Start::Anew(b"")).unwrap();
    let parts: Vec<u64> = (0..4 * 64).collect();
    let step = PART / 64;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (sink, parts) = (&sink, &parts);
            scope.spawn(move || {
                // Each thread has a share of every part of the upload.
                for at in parts.iter().filter(|at| **at % 4 == thread) {
                    sink.write_at(0, at * step, &mut bytes(at * step..(at + 1) * step)).unwrap();
                }
            });
        }
    });
    sink.shared.settle().unwrap();
    assert_eq!(super::shared::lock(&sink.shared.progress).waiting, 0);
    sink.end(0, 4 * PART).unwrap();
    sink.publish(false).unwrap();
    assert!(read(&objects, "a/out/x.safetensors") == bytes(0..4 * PART));
}

#[test]
fn another_takes_its_place_and_one_that_is_abandoned_leaves_nothing() {
    let objects = Arc::new(InMemory::new());
    for name in ["config.json", "old.safetensors", "x.safetensors"] {
        wait(objects.put(&Key::from(format!("a/out/{name}")), PutPayload::from_static(b"old"))).unwrap();
    }
    let force = Existing { force: true, resume: false };
    let mut given_up = sink(&objects);
    given_up.begin(force).unwrap();
    given_up.reserve(&[room("x.safetensors", 10)], Start::Anew(b"")).unwrap();
    given_up.write_at(0, 0, &mut bytes(0..10)).unwrap();
    given_up.abandon();
    assert_eq!(names(&objects).len(), 3);
    let mut sink = sink(&objects);
    sink.begin(force).unwrap();
    sink.reserve(&[room("x.safetensors", 10)], Start::Anew(b"")).unwrap();
    sink.write_at(0, 0, &mut bytes(0..10)).unwrap();
    sink.end(0, 10).unwrap();
    put(&sink, "config.json");
    sink.publish(true).unwrap();
    assert_eq!(names(&objects), ["a/out/config.json", "a/out/x.safetensors"]);
    assert_eq!(read(&objects, "a/out/x.safetensors"), bytes(0..10));
    wait(objects.put(&Key::from("a/out.partial/notes.txt"), PutPayload::from_static(b"mine"))).unwrap();
    let mut other = self::sink(&objects);
    assert!(other.begin(force).unwrap_err().to_string().contains("something else has it"));
}

/// What a store does not copy by itself comes and goes in pieces, and is never held whole.
#[test]
fn what_is_longer_than_a_request_may_be_goes_in_parts() {
    let objects = Arc::new(InMemory::new());
    for len in [0, 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 5] {
        let mut sink = sink(&objects);
        Arc::get_mut(&mut sink.shared).unwrap().most_copied = 1000;
        sink.begin(Existing { force: true, resume: false }).unwrap();
        sink.reserve(&[room("x.safetensors", 10)], Start::Anew(b"")).unwrap();
        sink.write_at(0, 0, &mut bytes(0..10)).unwrap();
        sink.end(0, 10).unwrap();
        let content = bytes(0..len as u64);
        let mut pieces = content.chunks(PIECE / 3 + 1).map(|piece| Ok(piece.to_vec()));
        sink.put("large.bin", &mut pieces).unwrap();
        put(&sink, "config.json");
        sink.publish(true).unwrap();
        assert!(read(&objects, "a/out/large.bin") == content, "{len}");
        assert_eq!(names(&objects), ["a/out/config.json", "a/out/large.bin", "a/out/x.safetensors"]);
    }
    // What cannot be read ends it, with the error of who reads.
    let mut sink = sink(&objects);
    sink.begin(Existing { force: true, resume: false }).unwrap();
    sink.reserve(&[room("x.safetensors", 10)], Start::Anew(b"")).unwrap();
    let gone = || Err(qmerge::error::Error::new(Kind::Malformed, "gone").in_file(Path::new("there")));
    let mut pieces = (0..3).map(|number| if number < 2 { Ok(vec![0; PIECE]) } else { gone() });
    let error = sink.put("large.bin", &mut pieces).unwrap_err();
    assert_eq!((error.message(), error.file()), ("gone", Some(Path::new("there"))));
    sink.abandon();
}

/// A container that is not there is not asked for again and again, and what a store repeats of secrets is not passed on.
#[test]
fn what_a_server_refuses_for_good_is_not_tried_again() {
    let answered = |status: &str| {
        let source = format!("Error performing GET http://host/x - Server returned non-2xx status code: {status}");
        super::failed(object_store::Error::Generic { store: "MicrosoftAzure", source: source.into() })
    };
    assert!(matches!(answered("404 Not Found: <?xml"), Failed::Missing));
    let body = "400 Bad Request: <?xml?><Error><Code>ExpiredToken</Code><Message>too old</Message><Token-0>SECRET</Token-0></Error>";
    match answered(body) {
        Failed::Refused(text) => assert!(text.contains("ExpiredToken too old") && !text.contains("SECRET"), "{text}"),
        other => panic!("{other:?}"),
    }
    for refused in ["301 Moved Permanently", "403 Forbidden"] {
        assert!(matches!(answered(refused), Failed::Refused(_)), "{refused}");
    }
    for passing in ["429 Too Many Requests", "408 Request Timeout", "503 Service Unavailable"] {
        assert!(matches!(answered(passing), Failed::Again(_)), "{passing}");
    }
}

/// A folder of folders is no model, whatever lies in them.
#[test]
fn models_below_are_not_replaced() {
    let objects = Arc::new(InMemory::new());
    for name in ["a/out/alice/config.json", "a/out/alice/model.safetensors", "a/out/thesis.txt"] {
        wait(objects.put(&Key::from(name), PutPayload::from_static(b"x"))).unwrap();
    }
    let force = Existing { force: true, resume: false };
    let error = sink(&objects).begin(force).map(drop).unwrap_err();
    assert!(error.to_string().contains("does not look like a model"), "{error}");
    assert_eq!(names(&objects).len(), 3);
}
