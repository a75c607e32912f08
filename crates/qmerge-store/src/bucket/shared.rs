//! What all threads that write an output share: its weight files, and the requests that are made for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use qmerge::error::{Error, Kind, Result};

use super::cells::{Cell, Cells, Piece, Saved};
use super::record::Record;
use super::{Objects, failed, key, wait};
use crate::remote::{Failed, ask, persist};

/// Bytes of a part, at least: stores ask for five megabytes.
pub(super) const PART: u64 = 8 << 20;
/// Parts that an upload may have: stores allow ten thousand.
pub(super) const MOST_PARTS: u64 = 9_000;
/// Bytes of parts that are not whole that are kept in memory.
pub(super) const WAITING: u64 = 64 << 20;
/// Uploads of parts, or of files that are completed, at a time.
pub(super) const TOGETHER: usize = 4;
/// Bytes that this may hold for a run.
pub(crate) const HELD: u64 = 2 * WAITING + TOGETHER as u64 * 2 * PART;

/// A weight file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) key: Key,
    pub(super) upload: String,
    /// What lay under its name before, as [`Shared::mark`] says.
    pub(super) before: String,
    pub(super) cells: Mutex<Cells>,
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) objects: Arc<dyn Objects>,
    pub(super) bucket: String,
    /// Folder of what a resumed run needs.
    pub(super) partial: String,
    pub(super) files: Vec<File>,
    pub(super) progress: Mutex<Progress>,
    pub(super) changed: Condvar,
    /// Bytes that the store is asked to copy by itself.
    pub(super) most_copied: u64,
    /// Held while what waits is put by: two would put the same by, and hold it twice.
    pub(super) saving: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Uploads of parts under way.
    under_way: usize,
    /// Numbers of parts that were begun and are not uploaded, under way or not.
    begun: BTreeSet<u64>,
    /// The next of them.
    number: u64,
    failed: Option<(Kind, String)>,
    /// Bytes of open cells that are in memory.
    pub(super) waiting: u64,
    /// Objects of pieces that were written.
    pub(super) pieces: u64,
    /// What no record has yet. Of this lock and that of a file's cells, the latter is taken first.
    pub(super) next: Record,
    pub(super) complete: BTreeSet<usize>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object's ETag and the time that it is of: the same content put there again has the same ETag.
pub(super) fn mark(meta: &ObjectMeta) -> String {
    format!("{} {}", meta.e_tag.as_deref().unwrap_or_default(), meta.last_modified)
}

impl Shared {
    pub(super) fn name(&self, name: &str) -> Result<Key> {
        key(&self.partial, name).map_err(Failed::error)
    }

    pub(super) fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(bytes);
        ask(|| wait(self.objects.put(key, payload.clone())).map(drop).map_err(failed))
    }

    pub(super) fn get(&self, key: &Key) -> std::result::Result<Vec<u8>, Failed> {
        persist(|| wait(async { self.objects.get(key).await?.bytes().await }).map(Vec::from).map_err(failed))
    }

    /// What tells the object under a name from those before and after it; empty if there is none.
    pub(super) fn mark(&self, key: &Key) -> Result<String> {
        match persist(|| wait(self.objects.head(key)).map_err(failed)) {
            Ok(meta) => Ok(mark(&meta)),
            Err(Failed::Missing) => Ok(String::new()),
            Err(failed) => Err(failed.error()),
        }
    }

    pub(super) fn remove(&self, key: &Key) -> Result<()> {
        self.remove_many(std::slice::from_ref(key))
    }

    /// Removes objects, as many with a request as the store takes.
    pub(super) fn remove_many(&self, keys: &[Key]) -> Result<()> {
        use futures_util::StreamExt;
        let mut left: BTreeSet<Key> = keys.iter().cloned().collect();
        ask(|| {
            let tried = futures_util::stream::iter(left.clone().into_iter().map(Ok)).boxed();
            let removed = wait(self.objects.delete_stream(tried).collect::<Vec<_>>());
            // Those that are known to be gone are not asked for again.
            removed.iter().flatten().for_each(|key| {
                left.remove(key);
            });
            removed.into_iter().try_for_each(|removed| match removed.map_err(failed) {
                // What was removed before a connection broke is not there the second time.
                Err(Failed::Missing) => Ok(()),
                removed => removed.map(drop),
            })
        })
    }

    /// All objects below a folder, with their lengths.
    pub(super) fn below(&self, folder: &str) -> Result<Vec<(Key, u64)>> {
        use futures_util::TryStreamExt;
        let prefix = key(folder, "").map_err(Failed::error)?;
        let listed = ask(|| wait(self.objects.list(Some(&prefix)).try_collect::<Vec<_>>()).map_err(failed))?;
        Ok(listed.into_iter().map(|meta| (meta.location, meta.size)).collect())
    }

    /// Removes what a resumed run would need.
    pub(super) fn clear(&self) -> Result<()> {
        let all = self.below(&self.partial)?;
        let (mut records, rest): (Vec<Key>, Vec<Key>) =
            all.into_iter().map(|(key, _)| key).partition(|key| key.as_ref().contains("/records/"));
        records.sort();
        // The records go last, since without them nobody would know what the rest is; and of them that which names the uploads first: without it nothing is
        // gone on with, and with it alone uploads that are complete would be.
        let (first, others) = records.split_at(records.len().min(1));
        [&rest, first, others].into_iter().try_for_each(|keys| self.remove_many(keys))
    }

    pub(super) fn abort(&self, key: &Key, id: &str) {
        // Nothing more can be done about one that cannot be aborted, and one that is complete is none.
        drop(persist(|| wait(self.objects.abort_multipart(key, &id.to_owned())).map_err(failed)));
    }

    /// Aborts what nobody knows of: uploads to an object, or below it, that an earlier run began.
    pub(super) fn abort_begun(&self, key: &Key) {
        for (key, id) in self.objects.begun(&self.bucket, key).unwrap_or_default() {
            self.abort(&key, &id);
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        lock(&self.progress).failed.as_ref().map_or(Ok(()), |(kind, text)| Err(Error::new(*kind, text.clone())))
    }

    /// Uploads cells that are whole, on threads of their own.
    pub(super) fn upload(self: &Arc<Self>, number: usize, whole: &[usize]) -> Result<()> {
        let Some(file) = self.files.get(number) else { return Ok(()) };
        for &cell in whole {
            // Before the cell is taken, so that at any moment it is open or known to be on its way.
            let begun = {
                let mut progress = lock(&self.progress);
                progress.number += 1;
                let begun = progress.number;
                progress.begun.insert(begun);
                begun
            };
            let taken = {
                let mut cells = lock(&file.cells);
                cells.take(cell)
            };
            let mut progress = lock(&self.progress);
            let Some(pieces) = taken else {
                progress.begun.remove(&begun);
                self.changed.notify_all();
                continue;
            };
            while progress.under_way >= TOGETHER {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            progress.under_way += 1;
            drop(progress);
            // Where no thread can be started, this one does it.
            let pieces = Arc::new(Mutex::new(pieces));
            let (shared, own) = (Arc::clone(self), Arc::clone(&pieces));
            let work = move || shared.upload_cell(begun, (number, cell), std::mem::take(&mut *lock(&own)));
            if std::thread::Builder::new().name("qmerge-upload".into()).spawn(work).is_err() {
                self.upload_cell(begun, (number, cell), std::mem::take(&mut *lock(&pieces)));
            }
        }
        self.check()
    }

    fn upload_cell(&self, begun: u64, (number, cell): (usize, usize), pieces: BTreeMap<u64, Piece>) {
        let held: u64 = pieces.values().filter_map(|piece| piece.bytes.as_ref()).map(|bytes| bytes.len() as u64).sum();
        let put = || -> Result<String> {
            let file = self.files.get(number).ok_or_else(|| Error::new(Kind::Bug, "no such file"))?;
            let mut content = Vec::with_capacity(pieces.values().map(|piece| piece.len).sum::<u64>() as usize);
            let mut pieces = pieces.into_values().peekable();
            while let Some(piece) = pieces.next() {
                match (piece.bytes, piece.saved) {
                    (Some(bytes), _) => content.extend(bytes),
                    (None, Some(saved)) => {
                        // Neighbours that were put by together come together.
                        let mut len = piece.len;
                        let follows = |next: &Piece, len: u64| {
                            next.bytes.is_none() && next.saved == Some(Saved { at: saved.at + len, ..saved })
                        };
                        while let Some(next) = pieces.next_if(|next| follows(next, len)) {
                            len += next.len;
                        }
                        content.extend(self.fetch(saved, len)?);
                    }
                    (None, None) => return Err(Error::new(Kind::Bug, "a piece of the output is nowhere")),
                }
            }
            let payload = PutPayload::from(content);
            let part =
                ask(|| wait(self.objects.put_part(&file.key, &file.upload, cell, payload.clone())).map_err(failed))?;
            Ok(part.content_id)
        };
        // Whoever waits for it must hear of it.
        let part = std::panic::catch_unwind(std::panic::AssertUnwindSafe(put));
        let part = part.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "an upload panicked")));
        if let (Ok(id), Some(file)) = (&part, self.files.get(number)) {
            lock(&file.cells).set(cell, Cell::Uploaded(id.clone()));
        }
        let mut progress = lock(&self.progress);
        progress.under_way -= 1;
        progress.begun.remove(&begun);
        // What nobody wrote is not counted as waiting.
        progress.waiting = progress.waiting.saturating_sub(held);
        match part {
            Ok(id) => progress.next.parts.push((number, cell, id)),
            Err(error) => {
                progress.failed.get_or_insert((error.kind(), error.message().to_owned()));
            }
        }
        self.changed.notify_all();
    }

    fn fetch(&self, saved: Saved, len: u64) -> Result<Vec<u8>> {
        let key = self.name(&format!("pieces/{:08}", saved.object))?;
        let bytes = ask(|| wait(self.objects.get_range(&key, saved.at..saved.at + len)).map_err(failed))?;
        if bytes.len() as u64 == len {
            Ok(bytes.into())
        } else {
            Err(Error::new(Kind::Io, "a piece of the output was cut off"))
        }
    }

    /// Waits until all parts that were begun are uploaded.
    pub(super) fn settle(&self) -> Result<()> {
        let mut progress = lock(&self.progress);
        let last = progress.number;
        while progress.begun.first().is_some_and(|first| *first <= last) {
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        drop(progress);
        self.check()
    }

    /// Puts by what waits for the rest of its parts; with `let_go` it is not kept in memory.
    pub(super) fn save(&self, let_go: bool) -> Result<()> {
        let _saving = lock(&self.saving);
        if let_go && lock(&self.progress).waiting <= WAITING {
            // Another did.
            return Ok(());
        }
        let mut object = Vec::new();
        let mut saved = Vec::new();
        let number = {
            let mut progress = lock(&self.progress);
            progress.pieces += 1;
            progress.pieces
        };
        for (file, all) in self.files.iter().enumerate() {
            for (_, cell) in lock(&all.cells).iter_mut() {
                let Cell::Open(pieces) = cell else { continue };
                for (offset, piece) in pieces.iter().filter(|(_, piece)| piece.saved.is_none()) {
                    let Some(bytes) = &piece.bytes else { continue };
                    saved.push((file, *offset, piece.len, Saved { object: number, at: object.len() as u64 }));
                    object.extend_from_slice(bytes);
                }
            }
        }
        if !object.is_empty() {
            self.put(&self.name(&format!("pieces/{number:08}"))?, object)?;
            for (file, offset, len, place) in &saved {
                let Some(all) = self.files.get(*file) else { continue };
                let mut cells = lock(&all.cells);
                let number = (*offset / cells.size) as usize;
                // It may have been uploaded meanwhile.
                let open = cells.iter_mut().nth(number);
                if let Some((_, Cell::Open(pieces))) = open
                    && let Some(piece) = pieces.get_mut(offset).filter(|piece| piece.len == *len)
                {
                    piece.saved = Some(*place);
                }
            }
            lock(&self.progress).next.pieces.extend(saved);
        }
        if let_go {
            let mut gone = 0;
            for file in &self.files {
                for (_, cell) in lock(&file.cells).iter_mut() {
                    let Cell::Open(pieces) = cell else { continue };
                    for piece in pieces.values_mut().filter(|piece| piece.saved.is_some()) {
                        gone += piece.bytes.take().map_or(0, |bytes| bytes.len() as u64);
                    }
                }
            }
            let mut progress = lock(&self.progress);
            progress.waiting = progress.waiting.saturating_sub(gone);
        }
        Ok(())
    }

    /// Has a weight file appear under its name. Its upload may be complete already, where the answer that said so was lost.
    pub(super) fn complete(&self, number: usize) -> Result<()> {
        let Some(file) = self.files.get(number) else { return Ok(()) };
        if lock(&self.progress).complete.contains(&number) {
            return Ok(());
        }
        let (parts, len) = {
            let cells = lock(&file.cells);
            (cells.parts(), cells.len())
        };
        let (Some(parts), Some(len)) = (parts, len) else {
            return Err(Error::new(Kind::Bug, format!("{} is not whole", file.key)));
        };
        let parts: Vec<PartId> = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        let done =
            persist(|| wait(self.objects.complete_multipart(&file.key, &file.upload, parts.clone())).map_err(failed));
        let there = ask(|| wait(self.objects.head(&file.key)).map_err(failed));
        match (done, there) {
            // An older object may be as long.
            (done, Ok(meta)) if meta.size == len && (done.is_ok() || mark(&meta) != file.before) => {
                let mut progress = lock(&self.progress);
                progress.complete.insert(number);
                progress.next.complete.push(number);
                Ok(())
            }
            (Err(failed), _) => Err(failed.error()),
            (_, Ok(meta)) => Err(Error::new(Kind::Io, format!("{} has {} of {len} bytes", file.key, meta.size))),
            (_, Err(error)) => Err(error),
        }
    }
}
