//! A server that runs in the test: plain files by ranges, and a hub that redirects to them; it can fail in the ways that networks do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::model::qmerge;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is closed without one.
    Reset,
    /// It is busy.
    Busy,
    /// The answer ends early.
    Cut,
    /// The answer begins late.
    Slow,
}

#[derive(Default)]
pub(crate) struct State {
    /// By path, without the slash before it.
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Every so manieth answer goes wrong, each in the next way; 0 for none.
    pub(crate) faults: AtomicU64,
    asked: AtomicU64,
    /// Bytes of files that were sent, by path.
    sent: Mutex<BTreeMap<String, u64>>,
    /// Paths that were asked for with a token, and those that were without.
    tokens: Mutex<Vec<(String, bool)>>,
    /// So many answers to come say that it is busy, and to come back in a second.
    pub(crate) busy: AtomicU64,
    /// The next that is redirected is sent to an address of this form first: of the store, of the hub, or relative to either.
    pub(crate) detours: Mutex<Vec<String>>,
    /// Revisions that the hub was asked for, as they stood in the address.
    pub(crate) revisions: Mutex<Vec<String>>,
    /// An object changes once so many bytes of it were sent.
    pub(crate) changing: Mutex<Option<(String, u64)>>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) state: Arc<State>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let state = Arc::new(State::default());
        let host = crate::bucket::http::listen("127.0.0.1:0", &state, State::serve);
        Self { address: format!("http://{host}"), state }
    }

    /// Puts the files of a folder under a path.
    pub(crate) fn add_folder(&self, path: &str, folder: &Path) {
        for item in std::fs::read_dir(folder).unwrap() {
            let file = item.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            self.add(&format!("{path}/{name}"), &std::fs::read(&file).unwrap());
        }
    }

    pub(crate) fn add(&self, path: &str, bytes: &[u8]) {
        self.state.files.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
    }

    /// Bytes that were sent of each file since this was asked last.
    pub(crate) fn sent(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.state.sent.lock().unwrap())
    }

    /// What was asked for with a token, or without.
    pub(crate) fn asked(&self, with_token: bool) -> Vec<String> {
        let tokens = self.state.tokens.lock().unwrap();
        tokens.iter().filter(|(_, token)| *token == with_token).map(|(path, _)| path.clone()).collect()
    }

    /// The program, which takes this for the hub.
    pub(crate) fn run(&self, folder: &Path, args: &[&str]) -> Output {
        let mut command = qmerge(folder, args);
        for proxy in
            ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "SSL_CERT_FILE"]
        {
            command.env_remove(proxy);
        }
        command
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", format!("{}/hub", self.address))
            .env("HF_TOKEN", "hf_secret")
            .output()
            .unwrap()
    }
}

/// What a file is known by.
fn etag(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(5_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("\"{sum:x}\"")
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                match reader.read_line(&mut line) {
                    Ok(n) if n > 0 && !line.trim().is_empty() => head.push(line.trim().to_owned()),
                    Ok(n) if n > 0 => break,
                    _ => return,
                }
            }
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            let every = self.faults.load(Ordering::Relaxed);
            let fault = (every > 0 && number.is_multiple_of(every))
                .then(|| [Fault::Reset, Fault::Busy, Fault::Cut, Fault::Slow][(number / every % 4) as usize]);
            match fault {
                Some(Fault::Reset) => return,
                Some(Fault::Slow) => std::thread::sleep(Duration::from_millis(150)),
                _ => {}
            }
            let is_busy =
                self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            let (status, headers, body) = match fault {
                _ if is_busy => (429, "Retry-After: 1\r\n".to_owned(), Vec::new()),
                Some(Fault::Busy) => (503, String::new(), Vec::new()),
                _ => self.answer(&head),
            };
            let is_head = head[0].starts_with("HEAD ");
            let length = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
            let sent = if fault == Some(Fault::Cut) { body.len() / 2 } else { body.len() };
            let body = if is_head { &[][..] } else { &body[..sent] };
            let wrote = stream.write_all(length.as_bytes()).and_then(|()| stream.write_all(body));
            if wrote.is_err() || fault == Some(Fault::Cut) {
                return;
            }
        }
    }

    fn answer(&self, head: &[String]) -> (u16, String, Vec<u8>) {
        let path = head[0].split(' ').nth(1).unwrap().split('?').next().unwrap().trim_start_matches('/').to_owned();
        let header = |name: &str| {
            let found = head[1..]
                .iter()
                .filter_map(|line| line.split_once(": "))
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_owned())
        };
        self.tokens.lock().unwrap().push((path.clone(), header("authorization").is_some()));
        if path.ends_with("/model.safetensors")
            && let Some(detour) = self.detours.lock().unwrap().pop()
        {
            let host = header("host").unwrap().replace("127.0.0.1", "localhost");
            let location = detour.replace("HOST", &host).replace("PATH", &path);
            return (307, format!("Location: {location}\r\n"), Vec::new());
        }
        let none = |status: u16| (status, String::new(), Vec::new());
        let files = self.files.lock().unwrap();
        if let Some(rest) = path.strip_prefix("hub/api/models/") {
            let Some((repo, revision)) = rest.split_once("/revision/") else { return none(404) };
            if revision.contains('/') {
                // The hub takes the rest for something else of the revision.
                return none(404);
            }
            self.revisions.lock().unwrap().push(revision.to_owned());
            let prefix = format!("{repo}/");
            let siblings: Vec<_> = files
                .keys()
                .filter_map(|path| path.strip_prefix(&prefix))
                .map(|name| serde_json::json!({ "rfilename": name }))
                .collect();
            return match siblings.is_empty() {
                true => none(404),
                false => (
                    200,
                    String::new(),
                    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes(),
                ),
            };
        }
        if let Some(rest) = path.strip_prefix("hub/") {
            let path = rest.replace(&format!("/resolve/{COMMIT}"), "");
            let Some(bytes) = files.get(&path) else { return none(404) };
            let host = header("host").unwrap();
            // To another host by name, as the hub's stores are.
            let host = host.replace("127.0.0.1", "localhost");
            let headers = format!(
                "X-Linked-Etag: {}\r\nX-Linked-Size: {}\r\nLocation: http://{host}/{path}?signature=s3cret\r\n",
                etag(bytes),
                bytes.len()
            );
            return (302, headers, Vec::new());
        }
        let Some(bytes) = files.get(&path) else { return none(404) };
        let (bytes, tag) = (bytes.clone(), etag(bytes));
        drop(files);
        if header("if-match").is_some_and(|wanted| wanted != tag) {
            return none(412);
        }
        let range = header("range").and_then(|range| range.strip_prefix("bytes=").map(str::to_owned));
        let Some((start, end)) = range.as_deref().and_then(|range| range.split_once('-')) else {
            return (200, format!("ETag: {tag}\r\n"), bytes);
        };
        let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse::<usize>().unwrap() + 1);
        if start >= bytes.len() {
            return (416, format!("Content-Range: bytes */{}\r\nETag: {tag}\r\n", bytes.len()), Vec::new());
        }
        let end = end.min(bytes.len());
        *self.sent.lock().unwrap().entry(path.clone()).or_default() += (end - start) as u64;
        let mut changing = self.changing.lock().unwrap();
        if let Some((changed, left)) = &mut *changing
            && *changed == path
        {
            *left = left.saturating_sub((end - start) as u64);
            if *left == 0 {
                let mut other = bytes.clone();
                *other.last_mut().unwrap() ^= 1;
                self.files.lock().unwrap().insert(path, other);
                *changing = None;
            }
        }
        let headers = format!("Content-Range: bytes {start}-{}/{}\r\nETag: {tag}\r\n", end - 1, bytes.len());
        (206, headers, bytes[start..end].to_vec())
    }
}
