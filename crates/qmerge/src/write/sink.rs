//! Where an output is built, out of sight, until it is published whole.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::Existing;
use crate::error::Result;
use crate::open::Store;

/// A weight file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its name in the output.
    pub name: String,
    /// The most bytes that it can take.
    pub most: u64,
    /// Bytes that it has in an interrupted run, at least; 0 if it need not be there.
    pub least: u64,
    /// Bytes within it that nobody writes, which are zero: what aligns the next tensor.
    pub gaps: Vec<Range<u64>>,
}

/// What a run begins with.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// With nothing: what an earlier run left goes. These are the first lines of the journal; an output that has none cannot be gone on with.
    Anew(&'a [u8]),
    /// With the weight files as the interrupted run left them, and so many bytes of its journal.
    Resumed(u64),
}

/// The place of one output.
///
/// Weight files are written in pieces, from several threads and in any order, each byte once; all else as whole files. Nothing of it is seen under the output's
/// name before [`Sink::publish`], and then all of it is. What an interrupted run wrote and listed in its journal is there for the next one.
///
/// The order of calls is `begin`, `reserve`, any of those that take `&self`, and `publish` or `abandon`. A folder beside the target on a local disk is one
/// (`local/`); whoever writes elsewhere hands theirs to [`merge::run_into`](crate::merge::run_into).
pub trait Sink: Debug + Send + Sync {
    /// The name that the output gets, for messages and the report.
    fn path(&self) -> &Path;

    /// Where it is built, for messages.
    fn place(&self) -> &Path {
        self.path()
    }

    /// True if the name is that of the one weight file, and nothing else is wanted but the report.
    fn is_single_file(&self) -> bool {
        false
    }

    /// Takes the place. Errors if something is there that `existing` does not allow to replace or to go on with, or if another process is writing it. Returns the
    /// journal of an interrupted run, where it is to be gone on with.
    fn begin(&mut self, existing: Existing) -> Result<Option<Vec<u8>>>;

    /// Makes room for the weight files, which are numbered in this order, once the journal has its first lines. Errors if there is not enough space, or if what is
    /// to be gone on with is not whole.
    fn reserve(&mut self, files: &[Room], start: Start<'_>) -> Result<()>;

    /// Writes into a weight file, at the latest with the next [`Sink::sync`], and leaves an empty buffer. So an error may be that of an earlier write, and
    /// `sync` has one if any write before it has failed, whoever called for it.
    fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()>;

    /// Returns once all that was written is there for good, even after a power cut.
    fn sync(&self) -> Result<()>;

    /// Appends to the journal, and returns once that is there for good.
    fn append(&self, lines: &[u8]) -> Result<()>;

    /// Ends a weight file at that many bytes.
    fn end(&self, file: usize, bytes: u64) -> Result<()>;

    /// Writes a file of the output, in folders too ("1_Pooling/config.json"). An error among the pieces ends it and is returned.
    fn put(&self, name: &str, pieces: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()>;

    /// Puts by what only a resumed run needs, and returns once it is there for good. It is no part of the output.
    fn stash(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// What was put by under that name, by this run or the one that it goes on with.
    fn stashed(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// What was written so far, to be read again. Unsupported where that cannot be.
    fn written(&self) -> Result<Arc<dyn Store>>;

    /// True if a run may go on with what was written.
    fn can_be_resumed(&self) -> bool;

    /// Gives the output its name, whole and for good. With `replace`, it takes the place of another.
    fn publish(&mut self, replace: bool) -> Result<()>;

    /// Removes what this run wrote. What an earlier one finished stays.
    fn abandon(&mut self);
}
