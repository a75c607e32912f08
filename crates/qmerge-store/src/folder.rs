//! A folder elsewhere as the library sees folders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qmerge::error::{Kind, Result};
use qmerge::open::{Blob, Item, ItemKind, Store};

use crate::ahead::RemoteFile;
use crate::remote::{Failed, Found, Source, ask, persist};

/// A folder. What was once listed or found stays as it was: inputs are of one moment.
#[derive(Debug)]
pub(crate) struct RemoteFolder {
    path: PathBuf,
    source: Arc<dyn Source>,
    lists: Mutex<HashMap<String, Vec<Item>>>,
    found: Mutex<HashMap<String, Found>>,
}

impl RemoteFolder {
    pub(crate) fn new(path: PathBuf, source: Box<dyn Source>) -> Self {
        Self { path, source: source.into(), lists: Mutex::default(), found: Mutex::default() }
    }

    fn look(&self, name: &str) -> std::result::Result<Found, Failed> {
        if let Some(found) = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(found.clone());
        }
        let found = persist(|| self.source.look(name))?;
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), found.clone());
        Ok(found)
    }
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
        if let Some(items) = self.lists.lock().unwrap_or_else(PoisonError::into_inner).get(folder) {
            return Ok(items.clone());
        }
        let place = if folder.is_empty() { self.path.clone() } else { self.path_of(folder) };
        let mut items = ask(|| self.source.list(folder)).map_err(|error| error.in_file(&place))?;
        items.sort_by(|a, b| a.name.cmp(&b.name));
        if items.is_empty() && folder.is_empty() {
            return Err(Failed::Missing.error().in_file(&place));
        }
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned(), items.clone());
        Ok(items)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Blob>> {
        let path = self.path_of(name);
        let found = self.look(name).map_err(|failed| failed.error().in_file(&path))?;
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
