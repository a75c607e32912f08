//! Objects beside the weights that are longer than a request may be: stores take five gigabytes with one, for what is sent and for what they copy.

use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload};
use qmerge::error::{Error, Kind, Result};

use super::shared::{Shared, mark};
use super::{failed, wait};
use crate::remote::ask;

/// Bytes of a part, and of what is sent with one request at most.
pub(super) const PIECE: usize = 16 << 20;
/// Parts that an upload may have.
const MOST: usize = 10_000;
/// Bytes that a store is asked to copy by itself.
pub(super) const MOST_COPIED: u64 = 5_000_000_000;

impl Shared {
    /// Writes an object of pieces, of which no more than a part's bytes are held.
    pub(super) fn put_pieces(&self, key: &Key, pieces: &mut dyn Iterator<Item = Vec<u8>>) -> Result<()> {
        let mut next = Vec::new();
        while let Some(piece) = pieces.next() {
            next.extend(piece);
            if next.len() > PIECE {
                return self.put_parts(key, next, &mut pieces.map(Ok));
            }
        }
        self.put(key, next)
    }

    /// Writes an object as an upload in parts, which begin with `next`.
    fn put_parts(&self, key: &Key, mut next: Vec<u8>, pieces: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
        // Of a run that was killed meanwhile.
        self.abort_begun(key);
        let before = self.mark(key)?;
        let id = ask(|| wait(self.objects.create_multipart(key)).map_err(failed))?;
        let (mut parts, mut len): (Vec<PartId>, u64) = (Vec::new(), 0);
        let mut send = |bytes: Vec<u8>| -> Result<()> {
            let number = parts.len();
            if number == MOST {
                let problem = format!("{key} is longer than {} bytes, the most that a store takes", MOST * PIECE);
                return Err(Error::new(Kind::Unsupported, problem).with_hint("write to a path"));
            }
            len += bytes.len() as u64;
            let payload = PutPayload::from(bytes);
            parts.push(ask(|| wait(self.objects.put_part(key, &id, number, payload.clone())).map_err(failed))?);
            Ok(())
        };
        let sent = || -> Result<()> {
            for piece in pieces {
                // All parts but the last have one length, which some stores ask for.
                while next.len() > PIECE {
                    let rest = next.split_off(PIECE);
                    send(std::mem::replace(&mut next, rest))?;
                }
                next.extend(piece?);
            }
            while next.len() > PIECE {
                let rest = next.split_off(PIECE);
                send(std::mem::replace(&mut next, rest))?;
            }
            send(std::mem::take(&mut next))
        };
        let done = sent().and_then(|()| {
            let completed = ask(|| wait(self.objects.complete_multipart(key, &id, parts.clone())).map_err(failed));
            // It may be complete, and the answer that said so lost.
            let is_there = || wait(self.objects.head(key)).is_ok_and(|meta| meta.size == len && mark(&meta) != before);
            completed.map(drop).or_else(|error| if is_there() { Ok(()) } else { Err(error) })
        });
        done.inspect_err(|_| self.abort(key, &id))
    }

    /// Copies an object: the store does it, or, where it is too long for that, it comes and goes in pieces.
    pub(super) fn copy(&self, from: &Key, to: &Key) -> Result<()> {
        let len = ask(|| wait(self.objects.head(from)).map_err(failed))?.size;
        if len <= self.most_copied {
            return ask(|| wait(self.objects.copy(from, to)).map_err(failed));
        }
        let range = |at: u64| {
            let range = at..len.min(at + PIECE as u64);
            Ok(ask(|| wait(self.objects.get_range(from, range.clone())).map_err(failed))?.into())
        };
        self.put_parts(to, Vec::new(), &mut (0..len).step_by(PIECE).map(range))
    }
}
