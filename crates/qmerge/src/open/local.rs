//! Local files: a [`Blob`] and a [`Store`] like any other.
//!
//! A folder from elsewhere may hold a symbolic link to anything, and an output is uploaded. So what is copied into one follows links within the folder, and in
//! the hub's cache to its `blobs`, where all files of a snapshot lie; no further.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

use super::{Blob, Item, ItemKind, Store, read_small};
use crate::error::{Error, Result, malformed};

/// An open file.
#[derive(Debug)]
pub(crate) struct LocalFile {
    path: PathBuf,
    len: u64,
    modified_ns: u128,
    identity: String,
    file: File,
}

impl LocalFile {
    /// Opens a regular file for reading.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let meta = file.metadata().map_err(|error| Error::io("open", path, error))?;
        if !meta.is_file() {
            return Err(malformed("not a regular file").in_file(path));
        }
        let (len, modified_ns) = (meta.len(), modified_ns(&meta));
        // Anybody can set the time of the last change of the content; nobody that of the last change of either content or attributes.
        let identity = format!("{len} {modified_ns} {}", changed_ns(&meta));
        Ok(Self { path: path.to_path_buf(), len, modified_ns, identity, file })
    }
}

impl Blob for LocalFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, buffer, offset).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                malformed(format!("truncated: ends before byte {}", offset.saturating_add(buffer.len() as u64)))
                    .in_file(&self.path)
                    .with_hint("download or copy the file again")
            } else {
                Error::io("read", &self.path, error)
            }
        })
    }

    /// In the order in which they lie on the disk.
    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        let mut order: Vec<_> = reads.iter_mut().collect();
        order.sort_by_key(|(offset, _)| *offset);
        order.into_iter().try_for_each(|(offset, buffer)| self.read_at(*offset, buffer))
    }

    /// The attributes may change, as by another hard link; what counts here is the content.
    fn check_unchanged(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|error| Error::io("read", &self.path, error))?;
        if (meta.len(), modified_ns(&meta)) == (self.len, self.modified_ns) {
            return Ok(());
        }
        Err(malformed("it was changed while it was read")
            .in_file(&self.path)
            .with_hint("run the command again once nothing writes to it"))
    }
}

/// Nanoseconds since 1970.
fn modified_ns(meta: &Metadata) -> u128 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos())
}

/// Nanoseconds since 1970; 0 where the system does not tell.
#[cfg(unix)]
fn changed_ns(meta: &Metadata) -> i128 {
    use std::os::unix::fs::MetadataExt;
    i128::from(meta.ctime()).saturating_mul(1_000_000_000).saturating_add(i128::from(meta.ctime_nsec()))
}

#[cfg(not(unix))]
fn changed_ns(_: &Metadata) -> i128 {
    0
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A folder. What has a name that is not UTF-8 is listed, and cannot be opened.
#[derive(Debug)]
pub(crate) struct LocalFolder {
    path: PathBuf,
}

impl LocalFolder {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder that a file lies in.
    pub(crate) fn of_file(file: &Path) -> Self {
        Self::new(file.parent().unwrap_or(Path::new("")))
    }

    /// The path of a folder in it, for the system: a file that was named without one lies in the current folder.
    fn folder(&self, name: &str) -> PathBuf {
        match self.path.join(name) {
            path if path.as_os_str().is_empty() => PathBuf::from("."),
            path => path,
        }
    }

    /// The folders that a name in it may lead to.
    fn bounds(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder("").canonicalize().map_err(|error| Error::io("open", &self.path, error))?;
        let repository = folder.ancestors().find_map(|above| {
            let snapshots =
                above.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
            let repository = snapshots.parent()?;
            let name = repository.file_name()?.to_str()?;
            name.starts_with("models--").then(|| repository.to_path_buf())
        });
        let blobs = repository.and_then(|repository| repository.join("blobs").canonicalize().ok());
        Ok([Some(folder), blobs].into_iter().flatten().collect())
    }
}

impl Store for LocalFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self, folder: &str) -> Result<Vec<Item>> {
        let path = self.folder(folder);
        let failed = |error| Error::io("list", &path, error);
        let mut items = Vec::new();
        for item in std::fs::read_dir(&path).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = match item.file_name().into_string() {
                Ok(name) => name,
                Err(name) => {
                    let name = name.to_string_lossy().into_owned();
                    items.push(Item { name, kind: ItemKind::Unnamed, len: 0 });
                    continue;
                }
            };
            let meta = std::fs::metadata(item.path()).ok();
            let kind = match &meta {
                Some(meta) if meta.is_file() => ItemKind::File,
                Some(meta) if meta.is_dir() => ItemKind::Folder,
                _ => ItemKind::Other,
            };
            items.push(Item { name, kind, len: meta.map_or(0, |meta| meta.len()) });
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Blob>> {
        Ok(Box::new(LocalFile::open(&self.path.join(name))?))
    }

    fn has(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }

    fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        if path.exists() { read_small(&path, limit).map(Some) } else { Ok(None) }
    }

    fn leads_out(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.path.join(name);
        let end = path.canonicalize().map_err(|error| Error::io("open", &path, error))?;
        Ok((!self.bounds()?.iter().any(|bound| end.starts_with(bound))).then_some(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("qmerge-local-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_not_utf8_is_listed() {
        use std::os::unix::ffi::OsStrExt;
        let folder = folder("unnamed");
        std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "x").unwrap();
        let items = LocalFolder::new(folder.clone()).list("").unwrap();
        assert_eq!(items.iter().map(|item| item.kind).collect::<Vec<_>>(), [ItemKind::Unnamed]);
        assert!(items[0].name.starts_with("caf"), "{}", items[0].name);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_change_of_the_content_is_told_and_one_of_the_attributes_is_not() {
        let folder = folder("changed");
        let path = folder.join("a");
        std::fs::write(&path, "12345678").unwrap();
        let opened = LocalFile::open(&path).unwrap();
        let (mut one, mut two) = ([0; 2], [0; 3]);
        opened.read_many(&mut [(6, &mut one), (1, &mut two)]).unwrap();
        assert_eq!((&one, &two), (b"78", b"234"));
        std::fs::hard_link(&path, folder.join("b")).unwrap();
        opened.check_unchanged().unwrap();
        std::fs::write(&path, "1234567").unwrap();
        let error = opened.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("/a: it was changed"), "{error}");
        assert!(opened.read_at(6, &mut one).unwrap_err().to_string().contains("truncated"));
        assert_ne!(LocalFile::open(&path).unwrap().identity(), opened.identity());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn names_are_listed_with_what_they_lead_to() {
        let folder = folder("listed");
        let _ = std::fs::create_dir(folder.join("below"));
        std::fs::write(folder.join("below/a"), "123").unwrap();
        for (name, target) in [("inside", "below/a"), ("nowhere", "none"), ("outside", "/dev/null")] {
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        }
        let store = LocalFolder::new(&folder);
        let kinds: Vec<_> = store.list("").unwrap().into_iter().map(|item| (item.name, item.kind)).collect();
        let expected = [
            ("below", ItemKind::Folder),
            ("inside", ItemKind::File),
            ("nowhere", ItemKind::Other),
            ("outside", ItemKind::Other),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(store.leads_out("inside").unwrap(), None);
        assert_eq!(store.leads_out("outside").unwrap(), Some(PathBuf::from("/dev/null")));
        assert_eq!(store.small("inside", 3).unwrap().unwrap(), b"123");
        assert_eq!(store.small("nowhere", 3).unwrap(), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
