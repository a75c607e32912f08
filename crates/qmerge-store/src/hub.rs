//! The hub over HTTP: what a repository holds, what a file is called in the cache, its bytes from any offset on.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qmerge::error::{Error, Kind, Result};
use qmerge::open::hub::home;
use qmerge::open::{HubId, Item, ItemKind, is_plain_name, is_plain_path, read_small_text};
use serde::Deserialize;
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use crate::busy::{self, NoAnswer};
use crate::http::{self, MAX_REDIRECTS, broken, escaped, header, origin, ranged, refused, set, target, unanswered};
use crate::remote::{Failed, Found, Source, ask};

/// Longest listing that is read, bytes.
const MAX_LISTING: u64 = 64 << 20;
/// Longest file of a token.
const MAX_TOKEN: u64 = 64 << 10;
/// How long an address that the hub redirects to is used: they are good for longer.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// The hub, as whoever runs qmerge is known to it.
pub struct Client {
    agent: Agent,
    /// Address of the hub, without a slash at the end.
    endpoint: String,
    token: Option<String>,
    /// What errors say first of a repository that is not there.
    sought: &'static str,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.shown())
    }
}

/// A repository at a commit.
#[derive(Debug)]
pub struct Listing {
    /// Name of the commit.
    pub commit: String,
    /// Its files, with their folders.
    pub names: Vec<String>,
}

/// A file as the hub announces it.
#[derive(Debug)]
pub struct File {
    /// Its name in the repository.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Its name among the cache's blobs: for large files the SHA-256 of their bytes, for small ones git's hash of them.
    pub etag: String,
    /// Bytes.
    pub size: Option<u64>,
}

/// A repository in the hub's own words, as far as they matter here.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    /// Takes `HF_ENDPOINT`, the token, `HTTPS_PROXY` and `SSL_CERT_FILE` from where huggingface_hub and OpenSSL take them. `sought` is what errors say before
    /// that a repository is not there: where it was looked for besides.
    pub fn new(sought: &'static str) -> Result<Self> {
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token_file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|home| home.join("token")));
        let from_file =
            || Some(read_small_text(&token_file?, MAX_TOKEN).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
        let token = set("HF_TOKEN").or_else(from_file);
        Ok(Self { agent: http::agent()?, endpoint, token, sought })
    }

    /// Its address in messages, without what is secret in it.
    pub fn shown(&self) -> String {
        crate::redacted(&self.endpoint)
    }

    /// What the repository holds at the revision.
    pub fn listing(&self, id: &HubId) -> Result<Listing> {
        // One part of the path, whatever it is called.
        let revision = escaped(&id.revision).replace('/', "%2F");
        let url = format!("{}/api/models/{id}/revision/{revision}", self.endpoint);
        let mut answer = self.send("GET", &url, None)?;
        self.refuse(answer.status().as_u16(), id)?;
        let text =
            answer.body_mut().with_config().limit(MAX_LISTING).read_to_string().map_err(|error| self.failed(&error))?;
        let found: Answer =
            serde_json::from_str(&text).map_err(|error| self.odd(&format!("no listing of {id}: {error}")))?;
        let names: Vec<String> = found.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        // The names become paths.
        if let Some(name) = std::iter::once(&found.sha).chain(&names).find(|name| !is_plain_path(name)) {
            return Err(self.odd(&format!("{name:?} as a name in {id}")));
        }
        Ok(Listing { commit: found.sha, names })
    }

    /// Asks for a file's name in the cache and its size.
    pub fn look(&self, id: &HubId, commit: &str, name: &str) -> Result<File> {
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(name));
        let answer = self.send("HEAD", &url, None)?;
        let status = answer.status();
        if status.as_u16() == 404 {
            return Err(self.odd(&format!("HTTP status 404 for {name}, which it lists in {id}")));
        }
        if !status.is_redirection() {
            self.refuse(status.as_u16(), id)?;
        }
        let header = |name: &str| http::header(&answer, name);
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_plain_name(&etag) {
            return Err(self.odd(&format!("{etag:?} as the ETag of {name} in {id}")));
        }
        // The length of a redirect is not the file's.
        let length = || header("content-length").filter(|_| !status.is_redirection());
        let size = header("x-linked-size").or_else(length).and_then(|text| text.parse().ok());
        Ok(File { name: name.to_owned(), url, etag, size })
    }

    /// Bytes of a file from an offset on: 206, or 200 with all of them. Other statuses are the caller's.
    pub fn open(&self, file: &File, from: u64) -> Result<Response<Body>> {
        self.send("GET", &file.url, (from > 0).then(|| format!("bytes={from}-")))
    }

    /// One request, over redirects. The token goes to the hub alone, not to the stores that it redirects to.
    fn send(&self, method: &str, url: &str, range: Option<String>) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&url);
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(range) = &range {
                request = request.header("Range", range);
            }
            let request = request.body(()).map_err(|error| self.failed(&error))?;
            let answer = busy::run(&self.agent, &request).map_err(|why| match why {
                NoAnswer::Broken(error) => self.failed(&error),
                NoAnswer::PutOff(error) => error,
            })?;
            let header = |name: &str| http::header(&answer, name);
            let to = header("location").filter(|_| answer.status().is_redirection());
            // The hub itself says what a large file is; the store behind it knows it by another name.
            let known = method == "HEAD" && header("x-linked-etag").is_some();
            match to {
                Some(to) if !known => url = target(&url, to).map_err(|problem| self.odd(&problem))?,
                _ => return Ok(answer),
            }
        }
        Err(self.odd("too many redirects"))
    }

    /// An error for every status but success.
    pub fn refuse(&self, status: u16, id: &HubId) -> Result<()> {
        let (endpoint, revision) = (self.shown(), &id.revision);
        let terms = match self.token {
            Some(_) => format!(
                "check the name; if it is gated, accept its terms at {endpoint}/{id} with the account that the token is of"
            ),
            None => format!(
                "check the name; if it is private or gated, accept its terms at {endpoint}/{id} and set HF_TOKEN, or run `hf auth login`"
            ),
        };
        match status {
            200..=299 => Ok(()),
            401 | 403 => Err(Error::new(
                Kind::Usage,
                format!("{}{endpoint} gives no access to {id}: there is none, or it is private or gated", self.sought),
            )
            .with_hint(terms)),
            404 => Err(Error::new(Kind::Usage, format!("{}{endpoint} has no {id} at {revision}", self.sought))
                .with_hint("check the path or the name")),
            429 | 500.. => Err(Error::new(Kind::Io, format!("{endpoint} is too busy for {id}: HTTP status {status}"))
                .with_hint("try again later")),
            _ => Err(self.odd(&format!("HTTP status {status} for {id}"))),
        }
    }

    /// The hub could not be reached, or the connection broke.
    pub fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        let (endpoint, error) = (self.shown(), crate::redacted(&error.to_string()));
        let text = match self.sought {
            "" => format!("{endpoint} cannot be reached: {error}"),
            _ => format!(
                "it is neither a folder nor whole in the cache, and {endpoint} cannot be reached to download it: {error}"
            ),
        };
        Error::new(Kind::Io, text).with_hint(
            "check the path and the network (HTTPS_PROXY, SSL_CERT_FILE and HF_ENDPOINT are honoured); HF_HUB_OFFLINE=1 looks at local files only",
        )
    }

    /// An answer that the hub does not give.
    fn odd(&self, what: &str) -> Error {
        // A redirect may hold a signature.
        Error::new(Kind::Malformed, format!("{} answered with {}", self.shown(), crate::redacted(what)))
            .with_hint("check HF_ENDPOINT, or proxies in between")
    }
}

/// huggingface_hub's switch.
pub fn offline() -> bool {
    let set = set("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&set.to_ascii_uppercase().as_str())
}

/// Whether trying again may help.
fn again(error: Error) -> Failed {
    match error.kind() {
        Kind::Io => Failed::Again(error.message().to_owned()),
        _ => Failed::Stated(error),
    }
}

/// A repository at one commit, whose files are read by ranges.
#[derive(Debug)]
pub(crate) struct Repository {
    client: Client,
    id: HubId,
    commit: String,
    /// Folder in it, with a slash at the end unless it is the top.
    below: String,
    names: Vec<String>,
    /// Where the hub redirected to for a file, and when.
    redirected: Mutex<HashMap<String, (String, Instant)>>,
}

impl Repository {
    /// Finds the commit that the revision stands for now: all that is read is of it.
    pub(crate) fn open(id: &HubId, below: &str) -> Result<Self> {
        if offline() {
            return Err(Error::new(Kind::Usage, "HF_HUB_OFFLINE forbids to ask the hub")
                .with_hint(format!("unset it, or name {id} without hf:// to take it from the cache")));
        }
        let client = Client::new("")?;
        let listing = ask(|| client.listing(id).map_err(again))?;
        let below = if below.is_empty() { String::new() } else { format!("{below}/") };
        let Listing { commit, names } = listing;
        Ok(Self { client, id: id.clone(), commit, below, names, redirected: Mutex::default() })
    }

    fn url(&self, name: &str) -> String {
        let Self { client, id, commit, below, .. } = self;
        format!("{}/{id}/resolve/{commit}/{}", client.endpoint, escaped(&format!("{below}{name}")))
    }

    /// Asks for a range of a file, where the hub redirected to before if that was lately.
    fn ask_for(&self, name: &str, range: &Range<u64>) -> std::result::Result<Response<Body>, Failed> {
        let lock = || self.redirected.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(name).filter(|(_, since)| since.elapsed() < GOOD_FOR).map(|(url, _)| url.clone());
        let mut url = known.clone().unwrap_or_else(|| self.url(name));
        let client = &self.client;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(&url).header("Range", format!("bytes={}-{}", range.start, range.end - 1));
            if let Some(token) = client.token.as_ref().filter(|_| origin(&url) == origin(&client.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|error| broken(&origin(&url), &error))?;
            let answer = busy::run(&client.agent, &request).map_err(|why| unanswered(&origin(&url), why))?;
            if let Some(to) = header(&answer, "location").filter(|_| answer.status().is_redirection()) {
                let odd = |problem| Failed::Refused(format!("{} answered with {problem}", client.shown()));
                url = target(&url, to).map_err(odd)?;
                continue;
            }
            if known.is_some() && answer.status().is_client_error() {
                // Such addresses are good for a while only.
                lock().remove(name);
                return Err(Failed::Again(format!("{} answered with HTTP status {}", origin(&url), answer.status())));
            }
            if known.is_none() && answer.status().is_success() && url != self.url(name) {
                lock().insert(name.to_owned(), (url, Instant::now()));
            }
            return Ok(answer);
        }
        Err(Failed::Refused(format!("{}: too many redirects", client.shown())))
    }
}

impl Source for Repository {
    fn list(&self, folder: &str) -> std::result::Result<Vec<Item>, Failed> {
        let prefix = if folder.is_empty() { self.below.clone() } else { format!("{}{folder}/", self.below) };
        let mut items: Vec<Item> = Vec::new();
        for rest in self.names.iter().filter_map(|name| name.strip_prefix(&prefix)) {
            let (name, kind) = match rest.split_once('/') {
                Some((folder, _)) => (folder, ItemKind::Folder),
                None => (rest, ItemKind::File),
            };
            if !items.iter().any(|item| item.name == name) {
                items.push(Item { name: name.to_owned(), kind, len: 0 });
            }
        }
        Ok(items)
    }

    fn look(&self, name: &str) -> std::result::Result<Found, Failed> {
        let full = format!("{}{name}", self.below);
        if !self.names.contains(&full) {
            return Err(Failed::Missing);
        }
        let file = self.client.look(&self.id, &self.commit, &full).map_err(again)?;
        let len = file
            .size
            .ok_or_else(|| Failed::Refused(format!("{} does not say how long {full} is", self.client.shown())))?;
        Ok(Found { len, tag: file.etag })
    }

    /// A commit does not change, so what could is the length alone: stores that the hub redirects to know files by other ETags.
    fn get(&self, name: &str, found: &Found, range: Range<u64>) -> std::result::Result<Vec<u8>, Failed> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.ask_for(name, &range)?;
        if answer.status().is_client_error() && answer.status().as_u16() != 429 {
            return Err(refused(answer.status().as_u16(), &self.client.shown()));
        }
        ranged(answer, &self.client.shown(), &range, found.len)
    }
}
