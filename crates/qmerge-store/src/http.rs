//! Requests: one client for all, which takes proxies and certificates from where other programs take them.

use std::fmt::Display;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use qmerge::error::{Error, Result};
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};
use url::Url;

use crate::busy::NoAnswer;
use crate::remote::Failed;

/// Redirects that are followed for one request.
pub(crate) const MAX_REDIRECTS: usize = 5;

/// A variable of the environment, unless it is empty.
pub(crate) fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A client that honours `HTTPS_PROXY` and `SSL_CERT_FILE`, and follows no redirects.
pub(crate) fn agent() -> Result<Agent> {
    qmerge::allocator::return_transfers();
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("qmerge/", env!("CARGO_PKG_VERSION")))
        // A compressed answer would have another length and no ranges.
        .accept_encoding("identity")
        .max_idle_connections(32)
        .max_idle_connections_per_host(16)
        .timeout_resolve(Some(Duration::from_secs(15)))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_send_body(Some(Duration::from_secs(900)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)));
    if let Some(path) = set("SSL_CERT_FILE").map(PathBuf::from) {
        let pem =
            std::fs::read(&path).map_err(|error| Error::io("read the certificates of SSL_CERT_FILE", &path, error))?;
        let certificates = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        config = config.tls_config(TlsConfig::builder().root_certs(RootCerts::from(certificates)).build());
    }
    Ok(config.build().new_agent())
}

/// A header of an answer.
pub(crate) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

/// What the headers say that tells an object from any other, weak ETags too.
pub(crate) fn tag(answer: &Response<Body>) -> String {
    header(answer, "etag").or_else(|| header(answer, "last-modified")).unwrap_or_default().to_owned()
}

/// A part of `Content-Range: bytes 3-7/20`: where it begins, and the whole length.
pub(crate) fn content_range(answer: &Response<Body>) -> Option<(Option<u64>, u64)> {
    let (range, len) = header(answer, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split('-').next().and_then(|start| start.trim().parse().ok());
    Some((start, len.trim().parse().ok()?))
}

/// What a status that is no success comes to.
pub(crate) fn refused(status: u16, host: &str) -> Failed {
    match status {
        404 | 410 => Failed::Missing,
        412 => Failed::Changed,
        401 | 403 => Failed::Refused(format!("{host} gives no access: HTTP status {status}")),
        408 | 425 | 429 | 500.. => Failed::Again(format!("{host} is too busy: HTTP status {status}")),
        _ => Failed::Refused(format!("{host} answered with HTTP status {status}")),
    }
}

/// What a request came to that got no answer.
pub(crate) fn unanswered(host: &str, why: NoAnswer) -> Failed {
    match why {
        NoAnswer::Broken(error) => broken(host, &error),
        NoAnswer::PutOff(error) => Failed::Stated(error),
    }
}

/// A request that came to nothing.
pub(crate) fn broken(host: &str, error: &dyn Display) -> Failed {
    Failed::Again(format!("{host} cannot be reached: {error}"))
}

/// The bytes of an answer, of which there may be so many at most and are about as many as `expected`.
pub(crate) fn body(answer: &mut Response<Body>, limit: u64, expected: u64) -> std::io::Result<Vec<u8>> {
    // One piece of memory, which does not grow and is not copied on the way. A header that says too much takes no more than is allowed.
    let mut bytes = Vec::with_capacity(expected.min(limit).min(64 << 20) as usize);
    answer.body_mut().with_config().limit(limit).reader().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a range out of the answer to a request for it. Errors if it is another range, or ends early.
pub(crate) fn ranged(
    mut answer: Response<Body>,
    host: &str,
    range: &Range<u64>,
    len: u64,
) -> std::result::Result<Vec<u8>, Failed> {
    let status = answer.status().as_u16();
    let wanted = range.end - range.start;
    match status {
        206 => match content_range(&answer) {
            Some((Some(start), whole)) if start == range.start && whole == len => {}
            Some((_, whole)) if whole != len => return Err(Failed::Changed),
            _ => return Err(Failed::Again(format!("{host} answered with another range"))),
        },
        // All of it, which is what was asked for only if that is all.
        200 if range.start == 0 && wanted == len => {}
        200 => return Err(Failed::Refused(format!("{host} does not serve ranges of files"))),
        416 => return Err(Failed::Changed),
        _ => return Err(refused(status, host)),
    }
    let bytes = body(&mut answer, wanted + 1, wanted).map_err(|error| broken(host, &error))?;
    if bytes.len() as u64 != wanted {
        return Err(Failed::Again(format!("{host} sent {} of {wanted} bytes", bytes.len())));
    }
    Ok(bytes)
}

/// A path in an address.
pub(crate) fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |text, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
            text + &char::from(byte).to_string()
        }
        _ => text + &format!("%{byte:02X}"),
    })
}

/// Scheme, host and port.
pub(crate) fn origin(url: &str) -> String {
    Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization())
}

/// Where a redirect leads, from where it was met; never from an encrypted connection to an open one. Errors with what is wrong with it.
pub(crate) fn target(from: &str, to: &str) -> std::result::Result<String, String> {
    let odd = |_| format!("a redirect to {to:?}, which is no address");
    let to = Url::parse(from).and_then(|from| from.join(to)).map_err(odd)?;
    match to.scheme() {
        "https" => Ok(to.into()),
        "http" if from.starts_with("http://") => Ok(to.into()),
        "http" => Err(format!("a redirect from an encrypted connection to an open one, {}", origin(to.as_str()))),
        scheme => Err(format!("a redirect to an address of another kind, {scheme}:")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        assert_eq!(origin("https://h:1/a/b?c"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        // As section 5.4 of RFC 3986 has them.
        for (from, to, target) in [
            ("https://h/a?b", "/c", "https://h/c"),
            ("https://h/a", "https://i/c", "https://i/c"),
            ("http://a/b/c/d;p?q", "g", "http://a/b/c/g"),
            ("http://a/b/c/d;p?q", "g?y#s", "http://a/b/c/g?y#s"),
            ("http://a/b/c/d;p?q", "?y", "http://a/b/c/d;p?y"),
            ("http://a/b/c/d;p?q", "../../g", "http://a/g"),
            ("http://a/b/c/d;p?q", "//g", "http://g/"),
            ("https://h/a", "//i/c?d", "https://i/c?d"),
            // What a server of one's own asks for goes to no other.
            ("https://u:p@h/a", "/c", "https://u:p@h/c"),
            ("https://u:p@h/a", "//i/c", "https://i/c"),
        ] {
            assert_eq!(super::target(from, to).as_deref(), Ok(target), "{from} to {to}");
        }
        assert!(
            target("https://h/a", "http://h/c").unwrap_err().contains("from an encrypted connection to an open one")
        );
        for odd in ["ftp://h/c", "data:,x", "http://", "file:///etc/passwd"] {
            assert!(target("http://h/a", odd).is_err(), "{odd}");
        }
        // The token goes to one origin: names that only begin or end as it does are others.
        for other in ["https://h@i/c", "https://h.i/c", "http://h/c", "https://h:8443/c", "https://i/?h"] {
            assert_ne!(origin(other), origin("https://h/a"), "{other}");
        }
        assert_eq!(origin("https://h:443/c"), origin("https://H/a"));
    }

    #[test]
    fn names() {
        assert_eq!(escaped("a b/ü.json"), "a%20b/%C3%BC.json");
    }
}
