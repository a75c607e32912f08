//! Any server that answers range requests. It lists nothing, so the names that a model or an adapter consists of are looked for one by one.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use qmerge::adapters::weight_files;
use qmerge::error::Result;
use qmerge::open::{Item, ItemKind, QUANTIZATION_FILES, TOKENIZER_FILES, is_plain_name, json};
use serde::Deserialize;
use ureq::http::{Request, Response};
use ureq::{Agent, Body};
use url::Url;

use crate::busy;
use crate::http::{self, broken, content_range, escaped, header, origin, ranged, refused, tag, target, unanswered};
use crate::remote::{Failed, Found, Source, persist, together};

/// What may lie in a model's folder, or in an adapter's, beside the weights and the files of a tokenizer and of a format.
const NAMES: &[&str] = &[
    "model.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "README.md",
    "LICENSE",
    "qmerge-report.json",
];
const INDEX: &str = "model.safetensors.index.json";
/// Names that are looked for at a time.
const TOGETHER: usize = 8;

/// A folder of a server.
pub(crate) struct Web {
    agent: Agent,
    /// As it was named, with a password or a signature.
    url: Url,
    host: String,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Web({})", self.host)
    }
}

/// Only what an index says of files.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Web {
    /// The folder of that decoded path, on the server of an address.
    pub(crate) fn new(url: &Url, path: &str) -> Result<Self> {
        let mut url = url.clone();
        url.set_path(&escaped(path));
        let mut host = url.clone();
        // Without what is secret.
        let _ = (host.set_username(""), host.set_password(None));
        Ok(Self { agent: http::agent()?, host: origin(host.as_str()), url })
    }

    /// The address of a file: its name comes before what follows a `?`.
    fn address(&self, name: &str) -> String {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{}", url.path().trim_end_matches('/'), escaped(name)));
        url.into()
    }

    fn send(&self, name: &str, range: &Range<u64>, tag: &str) -> std::result::Result<Response<Body>, Failed> {
        let mut url = self.address(name);
        for _ in 0..=http::MAX_REDIRECTS {
            let mut request =
                Request::get(&url).header("Range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            // A weak one never matches.
            if tag.starts_with('"') {
                request = request.header("If-Match", tag);
            }
            let request = request.body(()).map_err(|error| broken(&self.host, &error))?;
            let answer = busy::run(&self.agent, &request).map_err(|why| unanswered(&self.host, why))?;
            match header(&answer, "location").filter(|_| answer.status().is_redirection()) {
                Some(to) => {
                    let odd = |problem| Failed::Refused(format!("{} answered with {problem}", self.host));
                    url = target(&url, to).map_err(odd)?;
                }
                None => return Ok(answer),
            }
        }
        Err(Failed::Refused(format!("{}: too many redirects", self.host)))
    }

    fn text(&self, name: &str) -> std::result::Result<String, Failed> {
        let found = self.look(name)?;
        if found.len > qmerge::open::MAX_INDEX {
            return Err(Failed::Refused(format!("{name} is larger than any index")));
        }
        let bytes = self.get(name, &found, 0..found.len)?;
        String::from_utf8(bytes).map_err(|_| Failed::Refused(format!("{name} is not UTF-8")))
    }
}

impl Source for Web {
    fn list(&self, folder: &str) -> std::result::Result<Vec<Item>, Failed> {
        if !folder.is_empty() {
            return Ok(Vec::new());
        }
        let mut names: Vec<String> =
            [NAMES, TOKENIZER_FILES, QUANTIZATION_FILES].concat().into_iter().map(str::to_owned).collect();
        names.extend(weight_files().map(str::to_owned));
        let found = Mutex::new(Vec::new());
        let look = |name: String| {
            match persist(|| self.look(&name)) {
                Ok(at) => {
                    let item = Item { name, kind: ItemKind::File, len: at.len };
                    found.lock().unwrap_or_else(PoisonError::into_inner).push(item);
                }
                // Many servers give no access to what is not there.
                Err(Failed::Missing | Failed::Refused(_)) => {}
                Err(failed) => return Err(failed.error()),
            }
            Ok(())
        };
        together(names, TOGETHER, look).map_err(Failed::Stated)?;
        let mut items = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let has = |wanted: &str| items.iter().any(|item| item.name == wanted);
        if has(INDEX) && !has("model.safetensors") {
            // What is wrong with it is for the library to say.
            let index = json::parse_as::<Index>(&self.text(INDEX)?);
            let mut shards: Vec<String> = index.map_or(Vec::new(), |index| index.weight_map.into_values().collect());
            shards.sort();
            shards.dedup();
            items.extend(shards.into_iter().filter(|name| is_plain_name(name)).map(|name| Item {
                name,
                kind: ItemKind::File,
                len: 0,
            }));
        }
        Ok(items)
    }

    /// By a request for the first byte, which every server answers that serves ranges.
    fn look(&self, name: &str) -> std::result::Result<Found, Failed> {
        let answer = self.send(name, &(0..1), "")?;
        let len = match answer.status().as_u16() {
            206 | 416 => content_range(&answer).map(|(_, len)| len),
            200 => {
                let len = header(&answer, "content-length").and_then(|len| len.parse().ok());
                // What is not longer than what was asked for comes whole.
                if len.is_none_or(|len: u64| len > 1) {
                    return Err(Failed::Refused(format!("{} does not serve ranges of files", self.host)));
                }
                len
            }
            status => return Err(refused(status, &self.host)),
        };
        let len = len.ok_or_else(|| Failed::Refused(format!("{} does not say how long {name} is", self.host)))?;
        Ok(Found { len, tag: tag(&answer) })
    }

    fn get(&self, name: &str, found: &Found, range: Range<u64>) -> std::result::Result<Vec<u8>, Failed> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.send(name, &range, &found.tag)?;
        if answer.status().is_success() && tag(&answer) != found.tag {
            return Err(Failed::Changed);
        }
        ranged(answer, &self.host, &range, found.len)
    }
}
