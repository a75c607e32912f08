//! Object stores: S3, Google's, Azure's, and what speaks like them.

mod begin;
mod cells;
mod connection;
mod credentials;
mod large;
mod publish;
mod record;
mod runtime;
mod shared;
mod sink;
#[cfg(test)]
mod tests;
mod uploads;
mod written;

use std::ops::Range;
use std::sync::Arc;

use connection::Connection;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Item, ItemKind};
pub(crate) use runtime::wait;
pub(crate) use shared::HELD;
pub(crate) use sink::StoreSink;

use crate::address::Address;
use crate::remote::{Failed, Found, Source};

/// A store of either kind: what reads and lists, and what uploads in parts.
pub(crate) trait Objects: ObjectStore + MultipartStore {
    /// Uploads that were begun and not ended, to an object of a bucket or to one below it, where the store says so: object and id.
    fn begun(&self, _bucket: &str, _key: &Key) -> std::result::Result<Vec<(Key, String)>, Failed> {
        Ok(Vec::new())
    }
}

impl Objects for AmazonS3 {
    fn begun(&self, _: &str, key: &Key) -> std::result::Result<Vec<(Key, String)>, Failed> {
        uploads::begun_in_s3(self, key)
    }
}
impl Objects for object_store::gcp::GoogleCloudStorage {
    fn begun(&self, bucket: &str, key: &Key) -> std::result::Result<Vec<(Key, String)>, Failed> {
        uploads::begun_in_google(self, bucket, key)
    }
}
// Blocks that were sent and never put together go away by themselves.
impl Objects for object_store::azure::MicrosoftAzure {}
impl Objects for object_store::memory::InMemory {}

/// Opens the bucket of an address.
pub(crate) fn objects(address: &Address) -> Result<Arc<dyn Objects>> {
    let connection = Connection::new()?;
    let bucket = address.url().host_str().unwrap_or_default();
    let options = ClientOptions::new().with_allow_http(true);
    // Whoever asks asks again, in the same way whatever the store.
    let once = || RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let refused = |error: object_store::Error| {
        Error::new(Kind::Usage, crate::redacted(&error.to_string()))
            .in_file(address.shown())
            .with_hint("check the address, and the credentials in the environment")
    };
    Ok(match address.url().scheme() {
        "s3" => {
            let builder =
                AmazonS3Builder::from_env().with_bucket_name(bucket).with_client_options(options).with_retry(once());
            Arc::new(credentials::of_profile(builder).with_http_connector(connection).build().map_err(refused)?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(options)
                .with_retry(once());
            Arc::new(builder.with_http_connector(connection).build().map_err(refused)?)
        }
        _ => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_client_options(options)
                .with_retry(once());
            Arc::new(builder.with_http_connector(connection).build().map_err(refused)?)
        }
    })
}

/// The name of an object below a folder.
pub(crate) fn key(folder: &str, name: &str) -> std::result::Result<Key, Failed> {
    let path = [folder, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    Key::parse(&path).map_err(|_| Failed::Refused(format!("{path:?} cannot be the name of an object")))
}

/// A folder of a bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    objects: Arc<dyn Objects>,
    folder: String,
}

impl Bucket {
    pub(crate) fn open(address: &Address, folder: &str) -> Result<Self> {
        Ok(Self::new(objects(address)?, folder))
    }

    pub(crate) fn new(objects: Arc<dyn Objects>, folder: &str) -> Self {
        Self { objects, folder: folder.to_owned() }
    }
}

/// What an object is known by.
fn found(meta: &ObjectMeta) -> Found {
    let tag = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
    Found { len: meta.size, tag }
}

/// Why a request came to nothing.
pub(crate) fn failed(error: object_store::Error) -> Failed {
    use object_store::Error as E;
    if let Some(stated) = stated(&error) {
        return Failed::Stated(stated);
    }
    match error {
        E::NotFound { .. } => Failed::Missing,
        E::Precondition { .. } | E::NotModified { .. } => Failed::Changed,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Failed::Refused(format!("no access: {}", told(&error)))
        }
        E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. }
        | E::InvalidPath { .. } => Failed::Refused(told(&error)),
        // Of some requests, as of a list, the status of the answer is in the words alone.
        _ => match (told(&error), status(&told(&error))) {
            (_, Some(404)) => Failed::Missing,
            (text, Some(300..=407 | 409..=424 | 426..=428 | 430..=499)) => Failed::Refused(text),
            (text, _) => Failed::Again(text),
        },
    }
}

/// The library's own error, where one is at the bottom of it.
fn stated(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let own = std::iter::successors(Some(error), |error| error.source());
    own.filter_map(|error| error.downcast_ref::<Error>()).map(Error::again).next()
}

/// The status that an error says a server answered with.
fn status(text: &str) -> Option<u16> {
    text.split("status code: ").nth(1)?.get(..3)?.parse().ok()
}

/// An error and what is below it, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        below = cause.source();
    }
    without_body(&text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a store says in XML without all but its code and its message: it repeats tokens and what was signed.
fn without_body(text: &str) -> String {
    let Some((before, body)) =
        ["<?xml", "<Error"].iter().filter_map(|start| text.find(start)).min().map(|at| text.split_at(at))
    else {
        return text.to_owned();
    };
    let of = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(own, _)| own.lines().next().unwrap_or_default())
    };
    [Some(before), of("Code"), of("Message")].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

impl Source for Bucket {
    fn list(&self, folder: &str) -> std::result::Result<Vec<Item>, Failed> {
        let prefix = key(&self.folder, folder)?;
        let prefix = (!prefix.as_ref().is_empty()).then_some(prefix);
        let listed = wait(self.objects.list_with_delimiter(prefix.as_ref())).map_err(failed)?;
        let name = |path: &Key| path.filename().unwrap_or_default().to_owned();
        let files =
            listed.objects.iter().map(|meta| Item { name: name(&meta.location), kind: ItemKind::File, len: meta.size });
        let folders =
            listed.common_prefixes.iter().map(|path| Item { name: name(path), kind: ItemKind::Folder, len: 0 });
        Ok(files.chain(folders).filter(|item| !item.name.is_empty()).collect())
    }

    fn look(&self, name: &str) -> std::result::Result<Found, Failed> {
        wait(self.objects.head(&key(&self.folder, name)?)).map(|meta| found(&meta)).map_err(failed)
    }

    fn get(&self, name: &str, was: &Found, range: Range<u64>) -> std::result::Result<Vec<u8>, Failed> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = range.end - range.start;
        // A weak one never matches.
        let if_match = was.tag.starts_with('"').then(|| was.tag.clone());
        let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
        let key = key(&self.folder, name)?;
        let bytes = wait(async {
            let got = self.objects.get_opts(&key, options).await?;
            if found(&got.meta) != *was {
                return Ok(None);
            }
            got.bytes().await.map(Some)
        });
        match bytes.map_err(failed)? {
            None => Err(Failed::Changed),
            Some(bytes) if bytes.len() as u64 == wanted => Ok(bytes.into()),
            Some(bytes) => Err(Failed::Again(format!("the store sent {} of {wanted} bytes", bytes.len()))),
        }
    }
}
