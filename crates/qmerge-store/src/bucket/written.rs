//! What was written of an output so far, to be read again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::path::Path as Key;
use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Blob, Item, ItemKind, Store};

use super::{Bucket, Objects};
use crate::folder::RemoteFolder;

/// Weight files under their own names, and what waits beside the output.
#[derive(Debug)]
pub(super) struct Written {
    place: PathBuf,
    /// Of each weight file: its name in the output, its folder, its name there.
    weights: Vec<(String, RemoteFolder, String)>,
    others: RemoteFolder,
}

impl Written {
    pub(super) fn new(
        objects: Arc<dyn Objects>,
        place: &Path,
        partial: &str,
        weights: Vec<Key>,
        is_file: bool,
    ) -> Self {
        let folder =
            |path: &str| RemoteFolder::new(place.to_path_buf(), Box::new(Bucket::new(Arc::clone(&objects), path)));
        let weights = weights.iter().map(|key| {
            let (above, name) = key.as_ref().rsplit_once('/').unwrap_or(("", key.as_ref()));
            // A single file has another name in the plan.
            let ending = name.rsplit('.').next().unwrap_or_default();
            let known = if is_file { format!("model.{ending}") } else { name.to_owned() };
            (known, folder(above), name.to_owned())
        });
        Self { place: place.to_path_buf(), weights: weights.collect(), others: folder(&format!("{partial}/files")) }
    }
}

impl Store for Written {
    fn path(&self) -> &Path {
        &self.place
    }

    fn list(&self, folder: &str) -> Result<Vec<Item>> {
        let mut items = match self.others.list(folder) {
            Err(error) if error.kind() == Kind::Missing => Vec::new(),
            listed => listed?,
        };
        if folder.is_empty() {
            for (name, ..) in &self.weights {
                items.push(Item { name: name.clone(), kind: ItemKind::File, len: self.open(name)?.len() });
            }
            items.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(items)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Blob>> {
        let own = self.weights.iter().find(|(known, ..)| known == name);
        match (own, self.weights.as_slice()) {
            (Some((_, folder, name)), _) => folder.open(name),
            (None, [(known, folder, own)]) if name.rsplit('.').next() == known.rsplit('.').next() => folder.open(own),
            (None, _) => {
                self.others.open(name).map_err(|error| Error::new(error.kind(), error.message()).in_file(&self.place))
            }
        }
    }
}
