//! The cache on disk, in huggingface_hub's layout: `blobs/ETAG` holds a file's bytes, `snapshots/COMMIT/NAME` points to them, `refs/REVISION` names the commit.
//! A file that is not whole is `blobs/ETAG.incomplete`, and is gone on with. Locks are where huggingface_hub has its own.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{HubId, MAX_INDEX, hex, json, read_small_text};
use qmerge::progress::{Progress, stopped};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use qmerge_store::hub::{Client, File};

/// Times that a broken download is gone on with before any byte has come.
const TRIES: u32 = 4;
/// Most bytes of a file whose size the hub does not say: more than any shard has.
const MOST_UNKNOWN: u64 = 1 << 36;

/// True if the weights in a snapshot are whole: other programs put single files there.
pub(super) fn is_complete(snapshot: &Path) -> bool {
    let names =
        fs::read_dir(snapshot).into_iter().flatten().filter_map(|item| item.ok()?.file_name().into_string().ok());
    let names: Vec<String> = names.collect();
    // A link whose blob is gone does not exist.
    let there = |name: &str| snapshot.join(name).exists();
    if names.iter().any(|name| name == "model.safetensors") {
        return there("model.safetensors");
    }
    if let Some(index) = names.iter().find(|name| name.ends_with(".safetensors.index.json")) {
        let index = read_small_text(&snapshot.join(index), MAX_INDEX).ok().and_then(|text| json::parse(&text).ok());
        // What cannot be read is for the library to judge.
        let map = index.as_ref().and_then(|index| index["weight_map"].as_object());
        return map.is_none_or(|map| map.values().filter_map(serde_json::Value::as_str).all(there));
    }
    names.iter().any(|name| (name.ends_with(".safetensors") || name == "adapter_model.bin") && there(name))
}

/// A repository's folder in the cache.
pub(super) struct Folder {
    path: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        let path = id.folder(cache);
        let locks = cache.join(".locks").join(path.file_name().unwrap_or_default());
        Self { path, locks }
    }

    fn blob(&self, file: &File) -> PathBuf {
        self.path.join("blobs").join(&file.etag)
    }

    /// Gets the bytes of a file, unless they are there.
    pub(super) fn download(&self, client: &Client, file: &File, progress: &dyn Progress) -> Result<()> {
        let blob = self.blob(file);
        create(&self.path.join("blobs"))?;
        create(&self.locks)?;
        let _lock = lock(&self.locks.join(format!("{}.lock", file.etag)), progress)?;
        if blob.exists() {
            progress.skip(file.size.unwrap_or(0));
            return Ok(());
        }
        let partial = self.path.join("blobs").join(format!("{}.incomplete", file.etag));
        // What an earlier download left is no work of this one.
        let there = fs::metadata(&partial).map_or(0, |meta| meta.len()).min(file.size.unwrap_or(u64::MAX));
        progress.skip(if file.size.is_some() { there } else { 0 });
        Transfer { client, file, partial: &partial, progress, counted: there }.all()?;
        check(file, &partial)?;
        fs::rename(&partial, &blob).map_err(|error| Error::io("rename into place", &blob, error))
    }

    /// Gives the files their names, then the revision its commit: before that, nobody takes the snapshot for whole.
    pub(super) fn publish(&self, id: &HubId, commit: &str, files: &[File]) -> Result<()> {
        let snapshot = self.path.join("snapshots").join(commit);
        for file in files {
            let link = snapshot.join(&file.name);
            create(link.parent().unwrap_or(&snapshot))?;
            if !link.exists() {
                // A link that leads nowhere is in the way.
                let _ = fs::remove_file(&link);
                self.link(file, &link).map_err(|error| Error::io("create", &link, error))?;
            }
        }
        if id.revision != commit {
            let reference = self.path.join("refs").join(&id.revision);
            create(reference.parent().unwrap_or(&reference))?;
            fs::write(&reference, commit).map_err(|error| Error::io("write", &reference, error))?;
        }
        Ok(())
    }

    /// A relative link, so that the cache can be moved.
    #[cfg(unix)]
    fn link(&self, file: &File, link: &Path) -> std::io::Result<()> {
        let up = "../".repeat(2 + file.name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{}", file.etag), link)
    }

    /// Links take a privilege on Windows; huggingface_hub moves the file there too.
    #[cfg(not(unix))]
    fn link(&self, file: &File, link: &Path) -> std::io::Result<()> {
        fs::rename(self.blob(file), link)
    }
}

/// One file on its way.
struct Transfer<'a> {
    client: &'a Client,
    file: &'a File,
    partial: &'a Path,
    progress: &'a dyn Progress,
    /// Bytes that the progress was told of.
    counted: u64,
}

impl Transfer<'_> {
    /// Goes on until all bytes are there; a connection that breaks is made again.
    fn all(&mut self) -> Result<()> {
        let mut tries = 0;
        loop {
            let before = self.length();
            match self.some(before) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() != Kind::Io || error.file().is_some() => return Err(error),
                Err(error) => {
                    tries = if self.length() > before { 0 } else { tries + 1 };
                    if tries == TRIES {
                        return Err(error);
                    }
                }
            }
            for _ in 0..5 << tries {
                if self.progress.cancelled() {
                    return Err(stopped());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn length(&self) -> u64 {
        fs::metadata(self.partial).map_or(0, |meta| meta.len())
    }

    /// One connection. What came before it broke stays. An error of kind `Io` without a file is the network's.
    fn some(&mut self, have: u64) -> Result<()> {
        let on_disk = |error| Error::io("write", self.partial, error);
        let mut out = OpenOptions::new().create(true).append(true).open(self.partial).map_err(on_disk)?;
        let mut have = have;
        if self.file.size.is_some_and(|size| have > size) {
            out.set_len(0).map_err(on_disk)?;
            have = 0;
        }
        if have > 0 && self.file.size == Some(have) {
            self.count(have);
            return Ok(());
        }
        let mut answer = self.client.open(self.file, have)?;
        match answer.status().as_u16() {
            206 if starts_at(&answer, have) => {}
            // All of it, from the start: no ranges here, or the wrong one.
            200 => {
                out.set_len(0).map_err(on_disk)?;
                have = 0;
            }
            206 | 416 => {
                out.set_len(0).map_err(on_disk)?;
                return Err(self.client.failed(&"the download could not be gone on with"));
            }
            status => {
                let text = format!(
                    "{} cannot be downloaded: HTTP status {status} from {}",
                    self.file.name,
                    self.client.shown()
                );
                let kind = if status == 429 || status >= 500 { Kind::Io } else { Kind::Usage };
                return Err(Error::new(kind, text).with_hint("try again later; what was downloaded is kept"));
            }
        }
        self.count(have);
        let most = self.file.size.map_or(MOST_UNKNOWN, |size| size.saturating_sub(have).saturating_add(1 << 18));
        let mut reader = answer.body_mut().with_config().limit(most).reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            if self.progress.cancelled() {
                return Err(stopped());
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.client.failed(&error)),
            };
            out.write_all(&buffer[..n]).map_err(on_disk)?;
            have += n as u64;
            self.count(have);
            // More than there is: whoever checks the file says so.
            if self.file.size.is_some_and(|size| have > size) {
                break;
            }
        }
        match self.file.size {
            Some(size) if have < size => {
                Err(self.client.failed(&format!("{} ends after {have} of {size} bytes", self.file.name)))
            }
            _ => Ok(()),
        }
    }

    /// Tells the progress how far this file is; what comes a second time is not told.
    fn count(&mut self, have: u64) {
        self.progress.advance(have.saturating_sub(self.counted));
        self.counted = self.counted.max(have);
    }
}

/// True if the range that came is the one that was asked for.
fn starts_at(answer: &ureq::http::Response<ureq::Body>, have: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()) == Some(have)
}

/// Holds a download to its size, and to its hash where its name is one.
fn check(file: &File, partial: &Path) -> Result<()> {
    let reading = |error| Error::io("read", partial, error);
    let mut input = fs::File::open(partial).map_err(reading)?;
    let length = input.metadata().map_err(reading)?.len();
    let mut right = file.size.is_none_or(|size| size == length);
    let name = file.etag.to_ascii_lowercase();
    if right && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let found = hashes(&mut input, length, name.len()).map_err(reading)?;
        right = found.is_empty() || found.contains(&name);
    }
    if right {
        return Ok(());
    }
    fs::remove_file(partial).map_err(|error| Error::io("remove", partial, error))?;
    Err(Error::new(
        Kind::Malformed,
        format!("what came as {} is not what the hub announced, and was removed", file.name),
    )
    .with_hint("run the same command again to download it once more"))
}

/// The names that a file's bytes give it, of a length: large files have their SHA-256, small ones git's hash, or in some mirrors their SHA-1.
fn hashes(input: &mut fs::File, length: u64, digits: usize) -> std::io::Result<Vec<String>> {
    let mut large = Sha256::new();
    let (mut git, mut plain) = (Sha1::new_with_prefix(format!("blob {length}\0")), Sha1::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = match input.read(&mut buffer)? {
            0 => break,
            n => n,
        };
        match digits {
            64 => large.update(&buffer[..n]),
            40 => {
                git.update(&buffer[..n]);
                plain.update(&buffer[..n]);
            }
            _ => return Ok(Vec::new()),
        }
    }
    Ok(match digits {
        64 => vec![hex(large.finalize())],
        40 => vec![hex(git.finalize()), hex(plain.finalize())],
        _ => Vec::new(),
    })
}

/// Waits for other downloads of the same file. The lock goes with the file that is returned.
fn lock(path: &Path, progress: &dyn Progress) -> Result<fs::File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| Error::io("create", path, error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if progress.cancelled() => return Err(stopped()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            // Some network file systems have no locks; huggingface_hub goes on without one too.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of `hello`: of `git hash-object`, `sha1sum` and `sha256sum`.
    #[test]
    fn files_are_held_to_the_hash_that_names_them() {
        let path = std::env::temp_dir().join(format!("qmerge-hub-check-{}", std::process::id()));
        let check_as = |etag: &str, bytes: &str| {
            fs::write(&path, bytes).unwrap();
            let file = File { name: "x".into(), url: String::new(), etag: etag.into(), size: Some(5) };
            let right = check(&file, &path).is_ok();
            assert_eq!(right, path.exists(), "what is wrong is removed");
            right
        };
        for etag in [
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
            "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ] {
            assert!(check_as(etag, "hello") && check_as(&etag.to_uppercase(), "hello"), "{etag}");
            assert!(!check_as(etag, "hallo"), "{etag}");
        }
        // Nothing is known of other names, so the size alone can be wrong.
        assert!(check_as("some-tag", "hallo") && !check_as("some-tag", "hell"));
        let _ = fs::remove_file(&path);
    }
}
