//! How an output gets its name, or goes.

use std::collections::BTreeSet;

use object_store::path::Path as Key;
use qmerge::error::Result;

use super::record::Record;
use super::shared::{TOGETHER, lock};
use super::sink::StoreSink;
use crate::remote::together;

impl StoreSink {
    pub(super) fn publish_all(&mut self, replace: bool) -> Result<()> {
        let others = std::mem::take(&mut *lock(&self.others));
        let is_last = |name: &String| name == "config.json" || name.ends_with(".index.json");
        let (last, first): (Vec<String>, Vec<String>) = others.iter().cloned().partition(is_last);
        let mut own: BTreeSet<Key> = self.shared.files.iter().map(|file| file.key.clone()).collect();
        for name in &others {
            own.insert(self.final_key(name)?);
        }
        let place = |names: &[String]| {
            names.iter().try_for_each(|name| {
                let (from, to) = (self.shared.name(&format!("files/{name}"))?, self.final_key(name)?);
                self.shared.copy(&from, &to)
            })
        };
        if self.is_file {
            place(&first)?;
        }
        self.complete_all()?;
        if !self.is_file {
            place(&first)?;
        }
        place(&last)?;
        if replace {
            let there = self.there()?.into_iter().map(|(key, _)| key);
            self.shared.remove_many(&there.filter(|key| !own.contains(key)).collect::<Vec<_>>())?;
        }
        self.abort_strays(&self.own_keys()?);
        self.shared.clear()
    }

    /// Has all weight files appear under their names. What came of it is recorded before and after, so that a run that goes on knows all parts.
    pub(super) fn complete_all(&self) -> Result<()> {
        self.shared.settle()?;
        if lock(&self.shared.progress).complete.len() == self.shared.files.len() {
            return Ok(());
        }
        self.record(Record::default())?;
        if self.replaces {
            self.make_way()?;
        }
        // A store puts the parts of one together, which takes it seconds.
        let files = (0..self.shared.files.len()).collect();
        together(files, TOGETHER, |number| self.shared.complete(number))?;
        self.record(Record::default())
    }

    /// Takes away what makes the output that is replaced one, and what would be mistaken for this one's.
    fn make_way(&self) -> Result<()> {
        let own: BTreeSet<&Key> = self.shared.files.iter().map(|file| &file.key).collect();
        let complete: BTreeSet<Key> = {
            let progress = lock(&self.shared.progress);
            progress
                .complete
                .iter()
                .filter_map(|number| self.shared.files.get(*number))
                .map(|file| file.key.clone())
                .collect()
        };
        let mut there = self.there()?;
        let says_so = |key: &Key| key.as_ref().ends_with("config.json") || key.as_ref().ends_with(".index.json");
        there.sort_by_key(|(key, _)| !says_so(key));
        there
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !complete.contains(*key) && (own.contains(key) || says_so(key)))
            .try_for_each(|key| self.shared.remove(key))
    }

    /// The weights, and the folder of what a resumed run needs.
    fn own_keys(&self) -> Result<Vec<Key>> {
        let weights = self.shared.files.iter().map(|file| Ok(file.key.clone()));
        weights.chain([self.shared.name("")]).collect()
    }

    /// Aborts uploads to these names that nobody knows of: the answer that named them was lost.
    pub(super) fn abort_strays(&self, keys: &[Key]) {
        for key in keys {
            self.shared.abort_begun(key);
        }
    }

    /// Removes what this run wrote, unless another has taken it over: that one goes on with it.
    pub(super) fn remove_all(&self) {
        drop(self.shared.settle());
        if self.resumed || !self.is_ours().unwrap_or(false) {
            return;
        }
        let complete = std::mem::take(&mut lock(&self.shared.progress).complete);
        for (number, file) in self.shared.files.iter().enumerate() {
            if complete.contains(&number) {
                drop(self.shared.remove(&file.key));
            } else {
                self.shared.abort(&file.key, &file.upload);
            }
        }
        self.abort_strays(&self.own_keys().unwrap_or_default());
        drop(self.shared.clear());
    }
}
