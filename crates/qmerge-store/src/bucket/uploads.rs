//! Uploads that were begun and neither completed nor aborted, as S3 and Google's store list them: the stores' client has no word for it.

use std::time::Duration;

use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpRequest, HttpRequestBody, HttpService};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Key;
use object_store::signer::Signer;
use url::Url;

use super::connection::Connection;
use super::wait;
use crate::remote::{Failed, persist};

/// Where Google's store is, unless it is said otherwise.
const GOOGLE: &str = "https://storage.googleapis.com";

/// Where the stores' client looks for Google's store: as `GOOGLE_BASE_URL` says, or the service account.
fn google() -> String {
    let builder = GoogleCloudStorageBuilder::from_env();
    let value = |key: GoogleConfigKey| builder.get_config_value(&key);
    let account = || {
        let file = || std::fs::read_to_string(value(GoogleConfigKey::ServiceAccount)?).ok();
        let text = value(GoogleConfigKey::ServiceAccountKey).or_else(file)?;
        let account: serde_json::Value = serde_json::from_str(&text).ok()?;
        account.get("gcs_base_url")?.as_str().map(str::to_owned)
    };
    value(GoogleConfigKey::BaseUrl).or_else(account).unwrap_or_else(|| GOOGLE.to_owned())
}

fn again(what: &dyn std::fmt::Display) -> Failed {
    Failed::Again(what.to_string())
}

/// Uploads to one object of S3, or to those below it. Nothing where the store does not say.
pub(super) fn begun_in_s3(s3: &AmazonS3, key: &Key) -> Result<Vec<(Key, String)>, Failed> {
    persist(|| {
        // The address of the object says that of its bucket.
        let url = wait(s3.signed_url("GET".parse().map_err(|_| Failed::Missing)?, key, Duration::from_secs(60)))
            .map_err(|error| again(&error))?;
        let path = url.path().strip_suffix(&format!("/{}", crate::http::escaped(key.as_ref()))).unwrap_or_default();
        let mut bucket = url.clone();
        bucket.set_path(if path.is_empty() { "/" } else { path });
        let region = url
            .query_pairs()
            .find(|(name, _)| name == "X-Amz-Credential")
            .and_then(|(_, scope)| scope.split('/').nth(2).map(str::to_owned))
            .unwrap_or_default();
        let credential = wait(s3.credentials().get_credential()).map_err(|error| again(&error))?;
        listed(bucket, key, |request| {
            AwsAuthorizer::new(&credential, "s3", &region).try_authorize(request, None).map_err(|error| again(&error))
        })
    })
}

/// The same of a bucket of Google's.
pub(super) fn begun_in_google(
    store: &GoogleCloudStorage,
    bucket: &str,
    key: &Key,
) -> Result<Vec<(Key, String)>, Failed> {
    persist(|| {
        let base = google();
        let refused = |error: &dyn std::fmt::Display| Failed::Refused(error.to_string());
        let bucket =
            Url::parse(&format!("{}/{bucket}", base.trim_end_matches('/'))).map_err(|error| refused(&error))?;
        let credential = wait(store.credentials().get_credential()).map_err(|error| again(&error))?;
        listed(bucket, key, |request| {
            if !credential.bearer.is_empty() {
                let bearer = format!("Bearer {}", credential.bearer).parse();
                request.headers_mut().insert("authorization", bearer.map_err(|_| refused(&"its token is none"))?);
            }
            Ok(())
        })
    })
}

/// Asks a bucket, with credentials that `sign` adds.
fn listed(
    mut bucket: Url,
    key: &Key,
    sign: impl FnOnce(&mut HttpRequest) -> Result<(), Failed>,
) -> Result<Vec<(Key, String)>, Failed> {
    bucket.set_query(None);
    bucket.query_pairs_mut().append_pair("prefix", key.as_ref()).append_pair("uploads", "");
    let connection = Connection::new().map_err(|error| again(&error))?;
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = bucket.as_str().parse().map_err(|error| again(&error))?;
    sign(&mut request)?;
    let answer = wait(connection.call(request)).map_err(|error| again(&error))?;
    if !answer.status().is_success() {
        return Err(crate::http::refused(answer.status().as_u16(), "the store"));
    }
    let body = wait(answer.into_body().bytes()).map_err(|error| again(&error))?;
    Ok(ids(&String::from_utf8_lossy(&body), key.as_ref()))
}

/// Of `<Upload><Key>…</Key><UploadId>…</UploadId>`, those of one key and below it.
fn ids(text: &str, key: &str) -> Vec<(Key, String)> {
    let within = |text: &str, tag: &str| -> Option<String> {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let uploads = text.split("<Upload>").skip(1);
    let plain =
        |text: String| text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let is_wanted =
        |found: &String| found.strip_prefix(key).is_some_and(|below| below.is_empty() || below.starts_with('/'));
    uploads
        .filter_map(|upload| {
            let found = within(upload, "Key").map(plain).filter(is_wanted)?;
            Some((Key::parse(found).ok()?, within(upload, "UploadId").map(plain)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn uploads_of_one_name_are_told_from_others() {
        let text = "<R><Upload><Key>a&amp;b</Key><UploadId>1</UploadId></Upload><Upload><UploadId>2</UploadId><Key>a&amp;bc</Key></Upload></R>";
        assert_eq!(super::ids(text, "a&b"), [("a&b".into(), "1".to_owned())]);
        assert_eq!(super::ids(text, "a"), []);
        let below = text.replace("a&amp;b<", "a/b<").replace("a&amp;bc", "a.b");
        assert_eq!(super::ids(&below, "a"), [("a/b".into(), "1".to_owned())]);
    }
}
