//! A server of buckets in the memory of the process that asks for it, which speaks what S3 and Google's store have in common: objects, ranges, lists, uploads in parts.
//! It checks no signature. It can fail in the ways that networks do.

pub(crate) mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Answer, Piece, Request, decoded};

const DATE: &str = "Mon, 02 Jan 2023 03:04:05 GMT";
/// Names in one answer to a list, so that there are several.
const LISTED: usize = 20;

/// What an object consists of, and what it is known by.
struct Object {
    parts: Vec<Arc<Vec<u8>>>,
    tag: String,
}

impl Object {
    fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// The bytes of a range, as pieces of its parts.
    fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = 0;
        for part in &self.parts {
            let upto = at + part.len() as u64;
            let (from, to) = (start.max(at), end.min(upto));
            if from < to {
                pieces.push((Arc::clone(part), (from - at) as usize, (to - at) as usize));
            }
            at = upto;
        }
        pieces
    }
}

/// Its object, and its parts by number.
type Upload = (String, BTreeMap<usize, Arc<Vec<u8>>>);

#[derive(Default)]
struct Content {
    /// By bucket and name.
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Default)]
pub(crate) struct State {
    content: Mutex<Content>,
    /// Every so manieth request goes wrong, each in the next way; 0 for none.
    pub(crate) faults: AtomicU64,
    /// So many answers to come say that it is busy, and to come back in a second.
    pub(crate) busy: AtomicU64,
    /// Uploads cannot be completed, for good.
    pub(crate) incomplete: AtomicBool,
    /// Bytes that one request may send, but for parts of uploads; 0 for any number.
    pub(crate) most_put: AtomicU64,
    asked: AtomicU64,
    number: AtomicU64,
    /// Bytes of objects that were sent.
    pub(crate) sent: AtomicU64,
    /// Texts of headers and queries that were seen, where a test looks for what must not stand there.
    pub(crate) requests: Mutex<Vec<String>>,
}

pub(crate) struct Buckets {
    /// Host and port.
    pub(crate) host: String,
    #[allow(dead_code)] // Of tests.
    pub(crate) state: Arc<State>,
}

impl Buckets {
    pub(crate) fn new(address: &str) -> Self {
        let state = Arc::new(State::default());
        let host = http::listen(address, &state, State::serve);
        Self { host, state }
    }
}

#[allow(dead_code)] // Of tests.
impl State {
    pub(crate) fn put(&self, path: &str, bytes: Vec<u8>) {
        let object = self.object(vec![Arc::new(bytes)]);
        self.content.lock().unwrap().objects.insert(path.to_owned(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        let content = self.content.lock().unwrap();
        let object = content.objects.get(path)?;
        Some(object.parts.iter().flat_map(|part| part.iter().copied()).collect())
    }

    /// Names of objects below a folder.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let content = self.content.lock().unwrap();
        content.objects.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Uploads that were neither completed nor aborted.
    pub(crate) fn uploads(&self) -> usize {
        self.content.lock().unwrap().uploads.len()
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(request) = Request::read(&mut reader, &mut stream) {
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            let every = self.faults.load(Ordering::Relaxed);
            let fault = if every > 0 && number.is_multiple_of(every) { 1 + number / every % 5 } else { 0 };
            match fault {
                // It is closed without an answer.
                1 => return,
                2 => std::thread::sleep(Duration::from_millis(150)),
                _ => {}
            }
            let is_head = request.method == "HEAD";
            let is_busy =
                self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            let answer = match fault {
                _ if is_busy => Answer { headers: "Retry-After: 1\r\n".into(), ..Answer::new(503) },
                3 => Answer::new(503),
                _ => self.answer(&request),
            };
            if fault == 4 {
                // It was done, and nobody hears of it.
                return;
            }
            let len: u64 = answer.len.unwrap_or(answer.body.iter().map(|(_, from, to)| (to - from) as u64).sum());
            let head = format!("HTTP/1.1 {} X\r\nContent-Length: {len}\r\n{}\r\n", answer.status, answer.headers);
            let mut wrote = stream.write_all(head.as_bytes());
            for (bytes, from, to) in &answer.body {
                let to = if fault == 5 { from + (to - from) / 2 } else { *to };
                wrote = wrote.and_then(|()| if is_head { Ok(()) } else { stream.write_all(&bytes[*from..to]) });
                if fault == 5 {
                    return;
                }
            }
            if wrote.is_err() {
                return;
            }
        }
    }

    fn object(&self, parts: Vec<Arc<Vec<u8>>>) -> Object {
        Object { parts, tag: self.tag() }
    }

    fn tag(&self) -> String {
        format!("\"{:032x}\"", self.number.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn answer(&self, request: &Request) -> Answer {
        let query = |name: &str| request.query.get(name).map(String::as_str);
        let seen = format!("{} {} {:?} {:?}", request.method, request.path, request.query, request.headers);
        {
            let mut requests = self.requests.lock().unwrap();
            if requests.len() < 10_000 {
                requests.push(seen);
            }
        }
        let is_bucket = !request.path.contains('/');
        let is_google = request.headers.get("authorization").is_none_or(|how| how.starts_with("Bearer"));
        if is_google {
            let of_amazon = |name: &&String| name.starts_with("x-amz-");
            assert_eq!(request.headers.keys().find(of_amazon), None, "{}", request.path);
            // It removes one object with a request, and says of what it does not know that it is not there.
            if request.method == "POST" && is_bucket {
                return Answer::new(400);
            }
        }
        match (request.method.as_str(), is_bucket) {
            ("GET", true) if query("uploads").is_some() => self.list_uploads(request),
            ("GET", true) => self.list(request),
            ("PUT", true) => Answer::new(200),
            ("POST", true) => self.delete_many(request),
            ("GET" | "HEAD", false) => self.read(request),
            ("PUT", false) => self.write(request, is_google),
            ("POST", false) => self.upload(request),
            ("DELETE", false) => {
                let mut content = self.content.lock().unwrap();
                let gone = match query("uploadId") {
                    Some(id) => content.uploads.remove(id).is_some(),
                    None => content.objects.remove(&request.path).is_some() || !is_google,
                };
                Answer::new(if gone { 204 } else { 404 })
            }
            _ => Answer::new(405),
        }
    }

    fn read(&self, request: &Request) -> Answer {
        let content = self.content.lock().unwrap();
        let Some(object) = content.objects.get(&request.path) else { return Answer::new(404) };
        if request.headers.get("if-match").is_some_and(|wanted| *wanted != object.tag) {
            return Answer::new(412);
        }
        let len = object.len();
        let known = format!("ETag: {}\r\nLast-Modified: {DATE}\r\nx-goog-generation: 7\r\n", object.tag);
        if request.method == "HEAD" {
            return Answer { headers: known, len: Some(len), ..Answer::new(200) };
        }
        let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let Some((start, end)) = range.and_then(|range| range.split_once('-')) else {
            self.sent.fetch_add(len, Ordering::Relaxed);
            return Answer { headers: known, body: object.pieces(0, len), ..Answer::new(200) };
        };
        let start: u64 = start.parse().unwrap();
        let end = end.parse().map_or(len, |end: u64| (end + 1).min(len));
        if start >= len {
            return Answer { headers: format!("{known}Content-Range: bytes */{len}\r\n"), ..Answer::new(416) };
        }
        self.sent.fetch_add(end - start, Ordering::Relaxed);
        let headers = format!("{known}Content-Range: bytes {start}-{}/{len}\r\n", end - 1);
        Answer { headers, body: object.pieces(start, end), ..Answer::new(206) }
    }

    fn write(&self, request: &Request, is_google: bool) -> Answer {
        let mut content = self.content.lock().unwrap();
        let most = self.most_put.load(Ordering::Relaxed);
        if most > 0 && !request.query.contains_key("uploadId") && request.body.len() as u64 > most {
            return Answer { status: 400, ..Answer::text("<Error><Code>EntityTooLarge</Code></Error>".into()) };
        }
        // Google's condition on what is there: 0 for nothing.
        if request.headers.get("x-goog-if-generation-match").is_some_and(|wanted| wanted == "0")
            && content.objects.contains_key(&request.path)
        {
            return Answer::new(412);
        }
        let bytes = Arc::new(request.body.clone());
        if let Some(id) = request.query.get("uploadId") {
            let number = request.query.get("partNumber").and_then(|number| number.parse().ok());
            let (Some(number), Some((_, parts))) = (number, content.uploads.get_mut(id)) else {
                return Answer::new(404);
            };
            parts.insert(number, bytes);
            return Answer { headers: format!("ETag: {}\r\n", self.tag()), ..Answer::new(200) };
        }
        let from = request.headers.get(if is_google { "x-goog-copy-source" } else { "x-amz-copy-source" });
        let object = match from {
            Some(from) => match content.objects.get(decoded(from).trim_start_matches('/')) {
                Some(object) => self.object(object.parts.clone()),
                None => return Answer::new(404),
            },
            None => self.object(vec![bytes]),
        };
        let tag = object.tag.clone();
        content.objects.insert(request.path.clone(), object);
        match from {
            Some(_) => Answer::text(format!(
                "<CopyObjectResult><ETag>{tag}</ETag><LastModified>2023-01-02T03:04:05Z</LastModified></CopyObjectResult>"
            )),
            None => Answer { headers: format!("ETag: {tag}\r\n"), ..Answer::new(200) },
        }
    }

    /// Begins an upload, or completes one.
    fn upload(&self, request: &Request) -> Answer {
        let mut content = self.content.lock().unwrap();
        let Some(id) = request.query.get("uploadId") else {
            let id = format!("upload-{}", self.number.fetch_add(1, Ordering::Relaxed));
            content.uploads.insert(id.clone(), (request.path.clone(), BTreeMap::new()));
            return Answer::text(format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            ));
        };
        if self.incomplete.load(Ordering::Relaxed) {
            return Answer::new(403);
        }
        let Some((_, mut parts)) = content.uploads.remove(id) else { return Answer::new(404) };
        // As the client lists them: in order, and each once.
        let text = String::from_utf8_lossy(&request.body);
        let numbers: Vec<usize> = within(&text, "PartNumber").iter().map(|number| number.parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let parts: Vec<_> = numbers.iter().map(|number| parts.remove(number).unwrap()).collect();
        let (last, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|part| part.len() >= 5 << 20 && part.len() >= last.len()), "a part is too small");
        let object = self.object(parts);
        let tag = object.tag.clone();
        content.objects.insert(request.path.clone(), object);
        Answer::text(format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"))
    }

    fn delete_many(&self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let mut content = self.content.lock().unwrap();
        let mut deleted = String::new();
        for key in within(&text, "Key") {
            content.objects.remove(&format!("{}/{key}", request.path));
            let _ = write!(deleted, "<Deleted><Key>{key}</Key></Deleted>");
        }
        Answer::text(format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    fn list(&self, request: &Request) -> Answer {
        let query = |name: &str| request.query.get(name).map_or("", String::as_str);
        let content = self.content.lock().unwrap();
        let bucket = format!("{}/", request.path);
        let prefix = query("prefix");
        let (mut files, mut folders, mut count) = (String::new(), BTreeSet::new(), 0);
        let mut last = String::new();
        let mut more = false;
        for (path, object) in &content.objects {
            let Some(name) = path.strip_prefix(&bucket).filter(|name| name.starts_with(prefix)) else { continue };
            if name <= query("continuation-token") {
                continue;
            }
            if count == LISTED {
                more = true;
                break;
            }
            count += 1;
            last = name.to_owned();
            if let (Some(at), "/") = (name[prefix.len()..].find('/'), query("delimiter")) {
                folders.insert(name[..=prefix.len() + at].to_owned());
                continue;
            }
            let (tag, len) = (&object.tag, object.len());
            let _ = write!(
                files,
                "<Contents><Key>{name}</Key><Size>{len}</Size><LastModified>2023-01-02T03:04:05Z</LastModified><ETag>{}</ETag></Contents>",
                tag.replace('"', "&quot;")
            );
        }
        let folders: String =
            folders.iter().map(|name| format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>")).collect();
        let next = if more { format!("<NextContinuationToken>{last}</NextContinuationToken>") } else { String::new() };
        Answer::text(format!("<ListBucketResult>{files}{folders}{next}</ListBucketResult>"))
    }

    fn list_uploads(&self, request: &Request) -> Answer {
        let content = self.content.lock().unwrap();
        let bucket = format!("{}/", request.path);
        let mut text = String::new();
        for (id, (path, _)) in &content.uploads {
            if let Some(key) = path.strip_prefix(&bucket) {
                let _ = write!(text, "<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>");
            }
        }
        Answer::text(format!("<ListMultipartUploadsResult>{text}</ListMultipartUploadsResult>"))
    }
}

/// What stands between the tags of that name.
fn within(text: &str, tag: &str) -> Vec<String> {
    let rests = text.split(&format!("<{tag}>")).skip(1).map(str::to_owned).collect::<Vec<_>>();
    rests.iter().filter_map(|rest| Some(rest.split_once("</")?.0.to_owned())).collect()
}
