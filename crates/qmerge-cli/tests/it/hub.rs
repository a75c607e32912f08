//! Downloads, from a hub that runs in the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::model::{Folder, plain_model, qmerge, run, stderr, stdout};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and what it was asked.
#[derive(Default)]
struct State {
    /// Bytes by repository and name.
    files: BTreeMap<(String, String), Vec<u8>>,
    /// Method, path, range and token of each request, the store's with "store" in place of the path.
    asked: Vec<[String; 4]>,
    /// The next answers of the store end after so many bytes.
    cut: Vec<usize>,
    /// A small file whose bytes come in the wrong order.
    spoilt: String,
    /// Status of every answer, if not what fits.
    status: Option<u16>,
    /// Address of the store that holds large files.
    store: String,
}

/// A hub, and a store at another address that it sends on to for safetensors.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let serve = |answer: fn(&mut State, &Request, &mut TcpStream)| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Some(request) = Request::read(&stream) else { continue };
                    answer(&mut state.lock().unwrap(), &request, &mut stream);
                }
            });
            address
        };
        let (address, store) = (serve(hub), serve(store));
        state.lock().unwrap().store = store;
        Self { address, state }
    }

    fn add(&self, repo: &str, name: &str, bytes: &[u8]) {
        self.state.lock().unwrap().files.insert((repo.into(), name.into()), bytes.into());
    }

    fn add_folder(&self, repo: &str, folder: &Path) {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            self.add(repo, path.file_name().unwrap().to_str().unwrap(), &std::fs::read(&path).unwrap());
        }
    }

    fn asked(&self) -> Vec<[String; 4]> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn run(&self, folder: &Path, args: &[&str]) -> Output {
        let mut command = qmerge(folder, args);
        command
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", &self.address)
            .env("HF_HUB_CACHE", folder.join("cache"));
        for proxy in
            ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "SSL_CERT_FILE"]
        {
            command.env_remove(proxy);
        }
        command
            .env_remove("HF_TOKEN_PATH")
            .env("HF_HOME", folder.join("home"))
            .env("HF_TOKEN", "secret")
            .output()
            .unwrap()
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let first = lines.next()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let headers = lines.filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())));
        Some(Self { method, path, headers: headers.collect() })
    }

    fn header(&self, name: &str) -> String {
        self.headers.get(name).cloned().unwrap_or_default()
    }

    fn log(&self, path: &str) -> [String; 4] {
        [self.method.clone(), path.to_owned(), self.header("range"), self.header("authorization")]
    }
}

/// Failures of a client that has gone are its own affair.
fn reply(stream: &mut TcpStream, status: u16, headers: &str, length: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn hub(state: &mut State, request: &Request, stream: &mut TcpStream) {
    state.asked.push(request.log(&request.path));
    if let Some(status) = state.status {
        return reply(stream, status, "", 0, b"");
    }
    if let Some(rest) = request.path.strip_prefix("/api/models/") {
        let (repo, _) = rest.split_once("/revision/").unwrap();
        let names = state.files.keys().filter(|(of, _)| of == repo);
        let siblings: Vec<_> = names.map(|(_, name)| serde_json::json!({ "rfilename": name })).collect();
        if siblings.is_empty() {
            return reply(stream, 404, "", 0, b"");
        }
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return reply(stream, 200, "", body.len(), body.as_bytes());
    }
    let (repo, name) = request.path[1..].split_once(&format!("/resolve/{COMMIT}/")).unwrap();
    let name = name.trim_end_matches("?cached");
    let Some(bytes) = state.files.get(&(repo.to_owned(), name.to_owned())) else {
        return reply(stream, 404, "", 0, b"");
    };
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let body: &[u8] = if request.method == "HEAD" { b"" } else { bytes };
    if name.ends_with(".safetensors") {
        let (size, store) = (bytes.len(), &state.store);
        let headers = format!(
            "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {size}\r\nETag: \"other\"\r\nLocation: {store}/{repo}/{name}\r\n"
        );
        return reply(stream, 302, &headers, 0, b"");
    }
    // Small files are named by git's hash, and are sent on within the hub.
    if !request.path.contains('?') {
        return reply(stream, 307, &format!("Location: {}?cached\r\n", request.path), 0, b"");
    }
    let mut git = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    git.update(bytes);
    let git: String = git.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: W/\"{git}\"\r\n");
    let spoilt: Vec<u8> = if state.spoilt == name { body.iter().rev().copied().collect() } else { body.to_vec() };
    let body = &spoilt[..];
    reply(stream, 200, &headers, bytes.len(), body);
}

fn store(state: &mut State, request: &Request, stream: &mut TcpStream) {
    state.asked.push(request.log("store"));
    let (org, rest) = request.path[1..].split_once('/').unwrap();
    let (repo, name) = rest.split_once('/').unwrap();
    let bytes = &state.files[&(format!("{org}/{repo}"), name.to_owned())];
    let from = request.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let body = &bytes[from..];
    let sent = state.cut.pop().unwrap_or(usize::MAX).min(body.len());
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let (status, range) = if from > 0 { (206, range.as_str()) } else { (200, "") };
    reply(stream, status, range, body.len(), &body[..sent]);
}

/// A hub with a base and an adapter, and the same in folders.
fn served() -> (Folder, Hub) {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 64, 64);
    let hub = Hub::new();
    hub.add_folder("org/base", &folder.join("base"));
    hub.add_folder("org/lora", &folder.join("adapter"));
    hub.add("org/base", "model.gguf", b"too large");
    hub.add("org/base", "1_Pooling/config.json", b"{}");
    hub.add("org/base", "README.md", b"---\nlicense: mit\n---\n");
    (folder, hub)
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const MERGE: [&str; 7] = ["merge", "--base", "org/base", "--adapter", "org/lora=0.5", "-o", "out"];

#[test]
fn what_is_missing_is_downloaded_into_the_cache() {
    let (folder, hub) = served();
    let output = hub.run(folder.path(), &MERGE);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("downloaded org/base: 4 files"), "{}", stderr(&output));
    let local = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter=0.5", "-o", "local"]);
    assert!(local.status.success(), "{}", stderr(&local));
    let weights = |out: &str| std::fs::read(folder.join(out).join("model.safetensors")).unwrap();
    assert!(weights("out") == weights("local"));
    let card = std::fs::read_to_string(folder.join("out/README.md")).unwrap();
    assert!(card.contains("base_model: org/base\n") && card.contains("license: mit\n"), "{card}");
    // The token is the hub's, not the store's.
    let asked = hub.asked();
    assert!(asked.iter().all(|[_, path, _, token]| (path == "store") == token.is_empty()), "{asked:?}");
    assert!(asked.iter().any(|[.., token]| token == "Bearer secret"));

    // huggingface_hub's layout, without what is of no use.
    let repo = folder.join("cache/models--org--base");
    assert_eq!(files(&repo), ["blobs", "refs", "snapshots"]);
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let snapshot = repo.join("snapshots").join(COMMIT);
    assert_eq!(files(&snapshot), ["1_Pooling", "README.md", "config.json", "model.safetensors"]);
    #[cfg(unix)]
    {
        assert_eq!(files(&repo.join("blobs")).len(), 4);
        let link = std::fs::read_link(snapshot.join("1_Pooling/config.json")).unwrap();
        assert!(link.starts_with("../../../blobs") && link.file_name().unwrap().len() == 40, "{link:?}");
    }

    // What is there is not asked for again, not even without a network.
    let args = ["merge", "--base", "org/base", "--adapter", "org/lora@main", "-o", "again"];
    assert!(hub.run(folder.path(), &args).status.success());
    let offline = ["inspect", &format!("org/base@{COMMIT}")];
    let offline = qmerge(folder.path(), &offline).env("HF_HUB_CACHE", folder.join("cache")).output().unwrap();
    assert!(offline.status.success(), "{}", stderr(&offline));
    assert_eq!(hub.asked(), Vec::<[String; 4]>::new());

    // A snapshot that lacks its weights, as other programs leave it, is completed; a remark is no part of the answer.
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let output = hub.run(folder.path(), &["inspect", "org/base", "--json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&stdout(&output)).is_ok(), "{}", stderr(&output));
    assert!(
        hub.asked().iter().all(|[method, path, ..]| method == "HEAD" || path.starts_with("/api/")),
        "the bytes were there"
    );
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    let (folder, hub) = served();
    let bytes = std::fs::read(folder.join("base/model.safetensors")).unwrap();
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let blobs = folder.join("cache/models--org--base/blobs");
    let (blob, partial) = (blobs.join(&hash), blobs.join(format!("{hash}.incomplete")));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(&partial, &bytes[..1000]).unwrap();
    // The connection breaks too, once with and once without any byte.
    hub.state.lock().unwrap().cut = vec![0, 2000];
    let inspect = ["inspect", "org/base"];
    let output = hub.run(folder.path(), &inspect);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(std::fs::read(&blob).unwrap() == bytes && !partial.exists());
    let ranges: Vec<String> =
        hub.asked().into_iter().filter(|asked| asked[1] == "store").map(|asked| asked[2].clone()).collect();
    assert_eq!(ranges, ["bytes=1000-", "bytes=3000-", "bytes=3000-"]);

    // Bytes that are not the file's are found by its hash, and are gone the next time.
    std::fs::remove_dir_all(folder.join("cache")).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(&partial, [7; 1000]).unwrap();
    let output = hub.run(folder.path(), &inspect);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("model.safetensors is not what the hub announced"), "{}", stderr(&output));
    assert!(stderr(&output).contains("once more") && !blob.exists());
    assert!(!folder.join("cache/models--org--base/snapshots").exists());
    assert!(hub.run(folder.path(), &inspect).status.success());
}

#[test]
fn failures_are_named() {
    let (folder, hub) = served();
    let refused = |args: &[&str], status: i32, texts: &[&str]| {
        let output = hub.run(folder.path(), args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        for text in texts {
            assert!(said.contains(text), "{args:?}: `{text}` is not in: {said}");
        }
    };
    refused(&["inspect", "org/none"], 2, &["org/none: no such folder", "has no org/none at main", "check the path"]);
    hub.add("org/gguf", "model.gguf", b"");
    refused(&["inspect", "org/gguf"], 2, &["no weights that can be chosen", "only GGUF files"]);
    hub.add("org/evil", "../../evil.json", b"");
    refused(&["inspect", "org/evil"], 2, &["answered with \"../../evil.json\" as a name"]);
    hub.state.lock().unwrap().status = Some(401);
    refused(&["inspect", "org/base"], 2, &["gives no access to org/base", "accept its terms"]);
    hub.state.lock().unwrap().status = Some(503);
    refused(&["inspect", "org/base"], 3, &["HTTP status 503", "try again later"]);
    // Names of files and plain names are no ids.
    hub.asked();
    refused(&["inspect", "org/base.safetensors"], 2, &["no such folder"]);
    refused(&["inspect", "base-of-mine"], 2, &["no such file or folder"]);
    assert!(hub.asked().is_empty());
}

/// Of the right length, and still not the file.
#[test]
fn small_files_are_held_to_their_hash() {
    let (folder, hub) = served();
    hub.state.lock().unwrap().spoilt = "config.json".into();
    let output = hub.run(folder.path(), &["inspect", "org/base"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("config.json is not what the hub announced"), "{}", stderr(&output));
    hub.state.lock().unwrap().spoilt.clear();
    assert!(hub.run(folder.path(), &["inspect", "org/base"]).status.success());
}

#[test]
fn without_a_network_it_says_so() {
    let folder = Folder::new();
    // Nobody listens where somebody just did.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = Hub { address: format!("http://{address}"), state: Arc::default() };
    let output = hub.run(folder.path(), &["inspect", "org/base"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for text in [
        "error: org/base: it is neither a folder nor whole in the cache",
        &hub.address,
        "hint: check the path and the network",
        "HF_HUB_OFFLINE",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let output = run(folder.path(), &["inspect", "org/base"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("not in the cache") && stderr(&output).contains("unset HF_HUB_OFFLINE"),
        "{}",
        stderr(&output)
    );
}
