//! The hub over HTTP: what a repository holds, what a file is called in the cache, its bytes from any offset on.

use std::path::PathBuf;
use std::time::Duration;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::hub::home;
use qmerge::open::{HubId, is_plain_name, is_plain_path, read_small_text};
use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Longest listing that is read, bytes.
const MAX_LISTING: u64 = 64 << 20;
/// Longest file of a token.
const MAX_TOKEN: u64 = 64 << 10;

pub(super) struct Client {
    agent: Agent,
    /// Address of the hub, without a slash at the end.
    pub(super) endpoint: String,
    token: Option<String>,
}

/// A repository at a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Its files, with their folders.
    pub(super) names: Vec<String>,
}

/// A file as the hub announces it.
pub(super) struct File {
    pub(super) name: String,
    /// Where it is.
    pub(super) url: String,
    /// Its name among the cache's blobs: for large files the SHA-256 of their bytes, for small ones git's hash of them.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
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
    /// Takes `HF_ENDPOINT`, the token, `HTTPS_PROXY` and `SSL_CERT_FILE` from where huggingface_hub and OpenSSL take them.
    pub(super) fn new() -> Result<Self> {
        let set = |name: &str| {
            std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token_file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|home| home.join("token")));
        let from_file =
            || Some(read_small_text(&token_file?, MAX_TOKEN).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
        let token = set("HF_TOKEN").or_else(from_file);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("qmerge/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length and no ranges.
            .accept_encoding("identity")
            .timeout_resolve(Some(Duration::from_secs(15)))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if let Some(path) = set("SSL_CERT_FILE").map(PathBuf::from) {
            let pem = std::fs::read(&path)
                .map_err(|error| Error::io("read the certificates of SSL_CERT_FILE", &path, error))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            config = config.tls_config(TlsConfig::builder().root_certs(RootCerts::from(certificates)).build());
        }
        Ok(Self { agent: config.build().new_agent(), endpoint, token })
    }

    /// What the repository holds at the revision.
    pub(super) fn listing(&self, id: &HubId) -> Result<Listing> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, id.revision);
        let mut answer = self.send("GET", &url, 0)?;
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
    pub(super) fn look(&self, id: &HubId, commit: &str, name: &str) -> Result<File> {
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(name));
        let answer = self.send("HEAD", &url, 0)?;
        let status = answer.status();
        if status.as_u16() == 404 {
            return Err(self.odd(&format!("HTTP status 404 for {name}, which it lists in {id}")));
        }
        if !status.is_redirection() {
            self.refuse(status.as_u16(), id)?;
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
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
    pub(super) fn open(&self, file: &File, from: u64) -> Result<Response<Body>> {
        self.send("GET", &file.url, from)
    }

    /// One request, over redirects. The token goes to the hub alone, not to the stores that it redirects to.
    fn send(&self, method: &str, url: &str, from: u64) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = if method == "HEAD" { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let answer = request.call().map_err(|error| self.failed(&error))?;
            let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let to = header("location").filter(|_| answer.status().is_redirection());
            // The hub itself says what a large file is; the store behind it knows it by another name.
            let known = method == "HEAD" && header("x-linked-etag").is_some();
            match to {
                Some(to) if !known => {
                    url = target(&url, to).ok_or_else(|| self.odd(&format!("a redirect to {to:?}")))?
                }
                _ => return Ok(answer),
            }
        }
        Err(self.odd("too many redirects"))
    }

    /// An error for every status but success.
    pub(super) fn refuse(&self, status: u16, id: &HubId) -> Result<()> {
        let (endpoint, revision) = (&self.endpoint, &id.revision);
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
                format!(
                    "no such folder, and {endpoint} gives no access to {id}: there is none, or it is private or gated"
                ),
            )
            .with_hint(terms)),
            404 => Err(Error::new(Kind::Usage, format!("no such folder, and {endpoint} has no {id} at {revision}"))
                .with_hint("check the path or the name")),
            429 | 500.. => Err(Error::new(Kind::Io, format!("{endpoint} is too busy for {id}: HTTP status {status}"))
                .with_hint("try again later")),
            _ => Err(self.odd(&format!("HTTP status {status} for {id}"))),
        }
    }

    /// The hub could not be reached, or the connection broke.
    pub(super) fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        let text = format!(
            "it is neither a folder nor whole in the cache, and {} cannot be reached to download it: {error}",
            self.endpoint
        );
        Error::new(Kind::Io, text).with_hint(
            "check the path and the network (HTTPS_PROXY, SSL_CERT_FILE and HF_ENDPOINT are honoured); HF_HUB_OFFLINE=1 looks at local files only",
        )
    }

    /// An answer that the hub does not give.
    fn odd(&self, what: &str) -> Error {
        Error::new(Kind::Malformed, format!("{} answered with {what}", self.endpoint))
            .with_hint("check HF_ENDPOINT, or proxies in between")
    }
}

/// A path in an address.
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |text, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
            text + &char::from(byte).to_string()
        }
        _ => text + &format!("%{byte:02X}"),
    })
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find(['/', '?', '#']).map_or(url, |end| &url[..host + end])
}

/// Where a redirect leads; never from an encrypted connection to an open one.
fn target(from: &str, to: &str) -> Option<String> {
    if to.starts_with('/') && !to.starts_with("//") {
        return Some(format!("{}{to}", origin(from)));
    }
    (to.starts_with("https://") || to.starts_with("http://") && from.starts_with("http://")).then(|| to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        assert_eq!(origin("https://h:1/a/b?c"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert_eq!(target("https://h/a?b", "/c").as_deref(), Some("https://h/c"));
        assert_eq!(target("https://h/a", "https://i/c").as_deref(), Some("https://i/c"));
        assert_eq!(target("https://h/a", "http://h/c"), None);
        assert_eq!(target("https://h/a", "//i/c"), None);
    }

    #[test]
    fn names() {
        assert_eq!(escaped("a b/ü.json"), "a%20b/%C3%BC.json");
    }
}
