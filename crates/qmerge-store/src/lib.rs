//! Models and adapters that lie elsewhere: in object stores, behind plain HTTP, on the hub.
//!
//! [qmerge] reads named byte ranges and writes through a sink, and knows of no network. Here are the two for addresses: [`checkpoint`] and [`adapter`] open what lies
//! at one (or at a path, as the library does), and what is read comes by ranges, without a copy on this machine.
//!
//! | address | what it is | credentials |
//! | --- | --- | --- |
//! | `s3://bucket/folder` | S3 and what speaks like it | `AWS_…`, `~/.aws`, roles of machines |
//! | `gs://bucket/folder` | Google's store | `GOOGLE_…`, gcloud's own |
//! | `az://container/folder` | Azure's store | `AZURE_STORAGE_…` |
//! | `https://host/folder` | any server that answers range requests; only read | in the address |
//! | `hf://org/name[@revision]` | the hub; only read | `HF_TOKEN`, or what `hf auth login` wrote |
//!
//! A read depends on the ETag that an object had when it was opened, so that one that changes is an error. What fails on the way is tried again.

// What is read here comes from servers that anyone may run.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod address;
mod ahead;
#[cfg(feature = "buckets")]
mod bucket;
mod busy;
mod folder;
mod http;
pub mod hub;
mod remote;
mod web;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use address::{Address, is_address, redacted, redacted_word};
pub use ahead::InUse;
use qmerge::adapters::{Adapter, Names};
use qmerge::error::{Error, Kind, Result};
use qmerge::inspect::Inspection;
use qmerge::open::{Checkpoint, ItemKind, Store};
use qmerge::round::{AddedCalibration, StoredCalibration};
use qmerge::write::{Existing, Sink};

/// Bytes that this process may hold, beside what the library knows of, for what it has opened here.
pub fn held() -> u64 {
    if ahead::is_used() { ahead::KEPT } else { 0 }
}

/// Bytes that this process has read so far of headers and of what is small, which a plan needs: whoever plans the same reads them anew.
pub fn looked_at() -> u64 {
    ahead::looked_at()
}

/// The host that asked to be left alone for longest, and how long still: requests to it wait.
pub fn waiting() -> Option<(String, std::time::Duration)> {
    busy::waiting()
}

/// Ends all waits of this process for servers that are busy, for good: it is about to end.
pub fn stop_waiting() {
    busy::stop();
}

/// Has what is opened on this thread, while what is returned is there, keep up to so many bytes in a folder of this machine, where it is read more than once. Errors
/// if there is no such folder.
pub fn scratch(folder: &Path, bytes: u64) -> Result<InUse> {
    InUse::new(folder, bytes)
}

/// Opens a model: what [`Checkpoint::open`] takes, or an address of a folder or of a weight file.
pub fn checkpoint(location: &Path) -> Result<Checkpoint> {
    let Some(address) = Address::parse(location)? else { return Checkpoint::open(location) };
    let (folder, file) = address.open()?;
    match file {
        Some(file) => Checkpoint::open_file_in(folder, &file),
        None => Checkpoint::open_in(folder),
    }
}

/// Opens an adapter: what [`Adapter::open`] takes, or an address of a folder or of a weight file. `weight` is a factor on what it does.
pub fn adapter(location: &Path, weight: f64) -> Result<Adapter> {
    let Some(address) = Address::parse(location)? else { return Adapter::open(location, weight) };
    let (folder, file) = address.open()?;
    let adapter = match file {
        Some(file) => Adapter::open_file_in(folder, &file, weight),
        None => Adapter::open_in(folder, weight),
    }?;
    // All of it is read, for its hash alone.
    adapter.tensors.files.iter().for_each(|file| file.expect(std::slice::from_ref(&(0..file.len()))));
    Ok(adapter)
}

/// Opens a model that was trained whole: what [`Adapter::tuned`] takes, or an address.
pub fn tuned(location: &Path, weight: f64) -> Result<Adapter> {
    let Some(address) = Address::parse(location)? else { return Adapter::tuned(location, weight) };
    let (folder, file) = address.open()?;
    let tuned = Adapter::tuned_in(folder, file.as_deref(), weight)?;
    tuned.tensors.expect_all();
    Ok(tuned)
}

/// Opens moments: a file of them, or a folder of files that add up, at a path or an address.
pub fn moments(location: &Path, names: &Names<'_>) -> Result<AddedCalibration> {
    AddedCalibration::new(stored(location, names)?)
}

/// Opens moments that add up, each as [`moments`] does.
pub fn added(locations: &[PathBuf], names: &Names<'_>) -> Result<AddedCalibration> {
    let files: Vec<_> = locations.iter().map(|location| stored(location, names)).collect::<Result<_>>()?;
    AddedCalibration::new(files.into_iter().flatten().collect())
}

fn stored(location: &Path, names: &Names<'_>) -> Result<Vec<StoredCalibration>> {
    Ok(match Address::parse(location)? {
        Some(address) => {
            let (folder, file) = address.open()?;
            let files = file.map_or_else(|| moments_in(&*folder), |file| Ok(vec![file]))?;
            files
                .iter()
                .map(|file| StoredCalibration::open_in(Arc::clone(&folder), file, names))
                .collect::<Result<_>>()?
        }
        None if location.is_dir() => {
            let folder = qmerge::open::folder(location);
            moments_in(&*folder)?
                .iter()
                .map(|file| StoredCalibration::open(&location.join(file), names))
                .collect::<Result<_>>()?
        }
        None if !location.exists() => {
            return Err(Error::input(location, std::io::ErrorKind::NotFound.into()));
        }
        None => vec![StoredCalibration::open(location, names)?],
    })
}

/// Names of the files of moments in a folder.
fn moments_in(folder: &dyn Store) -> Result<Vec<String>> {
    let files = folder.list("")?.into_iter().filter(|item| item.kind == ItemKind::File).map(|item| item.name);
    let files: Vec<String> = files.filter(|name| name.ends_with(".safetensors")).collect();
    if files.is_empty() {
        return Err(Error::new(Kind::Malformed, "no files of moments in this folder").in_file(folder.path()));
    }
    Ok(files)
}

/// The place of an output at an address, free as far as `existing` asks for it; `None` for a path.
pub fn sink(location: &Path, existing: Existing) -> Result<Option<Box<dyn Sink>>> {
    #[cfg(feature = "buckets")]
    {
        let Some(sink) = bucket::StoreSink::new(location)? else { return Ok(None) };
        sink.refuse(existing)?;
        Ok(Some(Box::new(sink)))
    }
    #[cfg(not(feature = "buckets"))]
    {
        let _ = existing;
        match Address::parse(location)? {
            None => Ok(None),
            Some(address) => Err(Error::new(Kind::Unsupported, "this build of qmerge writes to no object stores")
                .in_file(address.shown())
                .with_hint("build it with the feature `buckets`")),
        }
    }
}

/// Bytes that a place that [`sink`] gave may hold.
pub fn sink_held() -> u64 {
    #[cfg(feature = "buckets")]
    return bucket::HELD;
    #[cfg(not(feature = "buckets"))]
    0
}

/// What [`inspect`](qmerge::inspect::inspect()) finds, at an address too.
pub fn inspect(location: &Path) -> Result<Inspection> {
    let Some(address) = Address::parse(location)? else { return qmerge::inspect::inspect(location) };
    let (folder, file) = address.open()?;
    qmerge::inspect::inspect_in(folder, file.as_deref())
}
