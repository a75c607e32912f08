//! Requests and answers as they stand on the wire.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Serves the connections that an address is asked for, each on a thread of its own. Returns its host and port.
pub(crate) fn listen<S: Send + Sync + 'static>(address: &str, state: &Arc<S>, serve: fn(&S, TcpStream)) -> String {
    let listener = TcpListener::bind(address).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (stream.unwrap(), Arc::clone(&state));
            std::thread::spawn(move || serve(&state, stream));
        }
    });
    host
}

/// Bytes, and those of them that are meant.
pub(super) type Piece = (Arc<Vec<u8>>, usize, usize);

/// Headers and the body of an answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: String,
    pub(super) body: Vec<Piece>,
    /// Of the body that a HEAD does not get.
    pub(super) len: Option<u64>,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: String::new(), body: Vec::new(), len: None }
    }

    pub(super) fn text(text: String) -> Self {
        let bytes = text.into_bytes();
        let len = bytes.len();
        let body = vec![(Arc::new(bytes), 0, len)];
        Self { headers: "Content-Type: application/xml\r\n".into(), body, ..Self::new(200) }
    }
}

pub(super) struct Request {
    pub(super) method: String,
    /// Decoded: bucket and name.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next of a connection; `None` where it ends.
    pub(super) fn read(reader: &mut BufReader<TcpStream>, stream: &mut TcpStream) -> Option<Self> {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        if headers.get("expect").is_some_and(|what| what == "100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        Some(Self { method, path: decoded(path).trim_matches('/').to_owned(), query: query.collect(), headers, body })
    }
}

/// What a text stands for where it stands in an address.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'%', [a, b, after @ ..]) => {
                bytes.push(u8::from_str_radix(str::from_utf8(&[*a, *b]).unwrap(), 16).unwrap());
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}
