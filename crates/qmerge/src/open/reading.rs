//! Reading entries: parts of one, small ones whole, many at once and ahead of who asks for them.

use super::{Checkpoint, Entry};
use crate::error::{Kind, Result, malformed};
use crate::parallel::lock;

impl Checkpoint {
    /// Reads `buffer.len()` bytes of an entry, from `offset` within it.
    pub fn read_at(&self, entry: &Entry, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= entry.bytes);
        if let Some(order) = self.orders.get(&entry.name).filter(|_| end.is_some()) {
            return self.read_ordered(entry, order, offset, buffer);
        }
        let place = end.and_then(|_| entry.start.checked_add(offset)).zip(self.files.get(entry.file));
        let Some((start, file)) = place else {
            return Err(self.error(
                entry,
                Kind::Bug,
                format!("bytes from {offset} on were asked for, and it has {}", entry.bytes),
            ));
        };
        file.read_at(start, buffer).map_err(|error| error.in_tensor(&entry.name))
    }

    /// Reads a whole entry that is known to be small.
    ///
    /// Refuses anything above `limit` bytes, so a hostile header cannot make us allocate.
    pub fn read_small(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        self.refuse_large(entry, limit)?;
        if let Some(read) = lock(&self.ahead).remove(&entry.name) {
            return Ok(read);
        }
        let mut buffer = vec![0; entry.bytes as usize];
        self.read_at(entry, 0, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads whole entries that are known to be small, each of at most `limit` bytes, in one go.
    pub(crate) fn read_entries(&self, entries: &[&Entry], limit: u64) -> Result<Vec<Vec<u8>>> {
        entries.iter().try_for_each(|entry| self.refuse_large(entry, limit))?;
        self.read_starts(entries, limit)
    }

    fn refuse_large(&self, entry: &Entry, limit: u64) -> Result<()> {
        if entry.bytes > limit {
            return Err(malformed(format!("{} bytes, expected at most {limit}", entry.bytes))
                .in_file(self.file_of(entry))
                .in_tensor(&entry.name));
        }
        Ok(())
    }

    /// Reads the first bytes of entries in one go: all of them, or `most` where that is less.
    pub(crate) fn read_starts(&self, entries: &[&Entry], most: u64) -> Result<Vec<Vec<u8>>> {
        let mut starts: Vec<Vec<u8>> = entries.iter().map(|entry| vec![0; entry.bytes.min(most) as usize]).collect();
        if !self.orders.is_empty() {
            let read = |(entry, start): (&&Entry, &mut Vec<u8>)| self.read_at(entry, 0, start);
            entries.iter().zip(&mut starts).try_for_each(read)?;
            return Ok(starts);
        }
        let mut by_file: Vec<Vec<(u64, &mut [u8])>> = self.files.iter().map(|_| Vec::new()).collect();
        for (entry, start) in entries.iter().zip(&mut starts) {
            match by_file.get_mut(entry.file) {
                Some(reads) => reads.push((entry.start, start)),
                None => return Err(self.error(entry, Kind::Bug, "it lies in no file")),
            }
        }
        for (file, (blob, mut reads)) in self.files.iter().zip(by_file).enumerate() {
            if blob.read_many(&mut reads).is_err() {
                // One by one, the error names the tensor.
                let here = entries.iter().filter(|entry| entry.file == file);
                for (entry, (_, buffer)) in here.zip(&mut reads) {
                    self.read_at(entry, 0, buffer)?;
                }
            }
        }
        Ok(starts)
    }

    /// Reads entries now that [`Checkpoint::read_small`] will be asked for, as far as they are no larger than `limit` bytes, in one go. Each is given out once.
    pub(crate) fn read_ahead(&self, wanted: impl Fn(&Entry) -> bool, limit: u64) {
        let small = |entry: &&Entry| entry.bytes <= limit && wanted(entry);
        let entries: Vec<&Entry> = self.entries.iter().filter(small).collect();
        // What cannot be read is for whoever asks for it to say.
        let Ok(read) = self.read_starts(&entries, limit) else { return };
        let mut ahead = lock(&self.ahead);
        ahead.extend(entries.iter().map(|entry| entry.name.clone()).zip(read));
    }
}
