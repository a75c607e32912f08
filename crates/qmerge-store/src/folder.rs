//! A folder elsewhere as the library sees folders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qmerge::error::{Kind, Result};
use qmerge::open::{Blob, Item, ItemKind, Store};

use crate::ahead::RemoteFile;
use crate::remote::{Failed, Found, Source, ask};

/// A folder. What was once listed or found stays as it was, and so does what could not be: inputs are of one moment, and a server that does not answer is not asked by
/// each who wants to know.
#[derive(Debug)]
pub(crate) struct RemoteFolder {
    path: PathBuf,
    source: Arc<dyn Source>,
    lists: Mutex<HashMap<String, Result<Vec<Item>>>>,
    found: Mutex<HashMap<String, Result<Found>>>,
}

impl RemoteFolder {
    pub(crate) fn new(path: PathBuf, source: Box<dyn Source>) -> Self {
        Self { path, source: source.into(), lists: Mutex::default(), found: Mutex::default() }
    }

    fn look(&self, name: &str) -> Result<Found> {
        kept(&self.found, name, || ask(|| self.source.look(name)))
    }

    fn list_of(&self, folder: &str) -> Result<Vec<Item>> {
        let mut items = ask(|| self.source.list(folder))?;
        items.sort_by(|a, b| a.name.cmp(&b.name));
        if items.is_empty() && folder.is_empty() { Err(Failed::Missing.error()) } else { Ok(items) }
    }
}

/// What was found out before, or is now.
fn kept<T: Clone>(all: &Mutex<HashMap<String, Result<T>>>, name: &str, find: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = || all.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |known: &Result<T>| match known {
        Ok(known) => Ok(known.clone()),
        Err(error) => Err(error.again()),
    };
    if let Some(known) = lock().get(name) {
        return same(known);
    }
    let found = find();
    let kept = same(&found);
    lock().insert(name.to_owned(), kept);
    found
}

impl Store for RemoteFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    /// With slashes on every system.
    fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}/{name}", self.path.display()))
    }

    fn list(&self, folder: &str) -> Result<Vec<Item>> {
        let place = if folder.is_empty() { self.path.clone() } else { self.path_of(folder) };
        kept(&self.lists, folder, || self.list_of(folder)).map_err(|error| error.in_file(&place))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Blob>> {
        let path = self.path_of(name);
        let found = self.look(name).map_err(|error| error.in_file(&path))?;
        Ok(Box::new(RemoteFile::new(path, Arc::clone(&self.source), name, found)))
    }

    fn has(&self, name: &str) -> bool {
        let (folder, own) = name.rsplit_once('/').unwrap_or(("", name));
        match self.list(folder) {
            Ok(items) => items.iter().any(|item| item.name == own && item.kind == ItemKind::File),
            // A server without listings may have it all the same.
            Err(error) if error.kind() == Kind::Missing => false,
            Err(_) => self.look(name).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers nothing, and counts how often it was asked.
    #[derive(Debug)]
    struct Closed(Arc<AtomicUsize>);

    impl Source for Closed {
        fn list(&self, _: &str) -> std::result::Result<Vec<Item>, Failed> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(Failed::Refused("no access".into()))
        }

        fn look(&self, _: &str) -> std::result::Result<Found, Failed> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(Failed::Missing)
        }

        fn get(&self, _: &str, _: &Found, _: Range<u64>) -> std::result::Result<Vec<u8>, Failed> {
            Err(Failed::Missing)
        }
    }

    #[test]
    fn what_failed_once_is_not_asked_for_again() {
        let asked = Arc::new(AtomicUsize::new(0));
        let folder = RemoteFolder::new("s3://b/x".into(), Box::new(Closed(Arc::clone(&asked))));
        for _ in 0..3 {
            let told = folder.list("").unwrap_err().to_string();
            assert!(told.contains("s3://b/x") && told.contains("no access"), "{told}");
            assert!(!folder.has("config.json") && folder.open("config.json").is_err());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "one list, and one look for a file");
    }
}
