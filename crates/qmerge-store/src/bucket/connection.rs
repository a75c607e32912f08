//! Requests of the stores' client, made by the client that makes all others: one set of proxies, certificates and cryptography.

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use qmerge::error::Result;
use ureq::Agent;
use ureq::http::request::Parts;

use super::runtime::handle;
use crate::busy::{self, NoAnswer};
use crate::http::{body, header};

/// Longest answer: of a range, or of a listing.
const MAX_ANSWER: u64 = 256 << 20;

/// Makes requests.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    agent: Agent,
}

impl Connection {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { agent: crate::http::agent()? })
    }

    fn send(&self, parts: Parts, bytes: &[u8]) -> std::result::Result<HttpResponse, HttpError> {
        let is_head = parts.method == "HEAD";
        let limit = wanted(&parts).unwrap_or(MAX_ANSWER);
        let mut request = ureq::http::Request::from_parts(parts, bytes);
        // A length that is there already is not added again.
        request.headers_mut().remove("content-length");
        let broken = |error: ureq::Error| HttpError::new(kind(&error), error);
        let answer = busy::run(&self.agent, &request).map_err(|why| match why {
            NoAnswer::Broken(error) => broken(error),
            NoAnswer::PutOff(error) => HttpError::new(HttpErrorKind::Unknown, error),
        })?;
        let mut answer = answer;
        let expected = header(&answer, "content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        let bytes = match is_head {
            true => Vec::new(),
            false => body(&mut answer, limit, expected).map_err(|error| broken(ureq::Error::from(error)))?,
        };
        let (parts, _) = answer.into_parts();
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(Bytes::from(bytes))))
    }
}

/// Bytes that an answer to a request for a range may have, and some for one that says why there are none.
fn wanted(parts: &Parts) -> Option<u64> {
    let (start, end) = parts.headers.get("range")?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    Some(end.checked_sub(start)?.saturating_add(64 << 10).min(MAX_ANSWER))
}

/// What came of a request that got no answer, as far as it says whether it may be made again.
fn kind(error: &ureq::Error) -> HttpErrorKind {
    match error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => HttpErrorKind::Connect,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => HttpErrorKind::Connect,
        ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    }
}

#[async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let own = self.clone();
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let sent = handle().spawn_blocking(move || own.send(parts, &bytes)).await;
        sent.unwrap_or_else(|error| Err(HttpError::new(HttpErrorKind::Unknown, error)))
    }
}

impl HttpConnector for Connection {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}
