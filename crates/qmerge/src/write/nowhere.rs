//! An output that nobody keeps, for runs that only say what would be lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Existing, Room, Sink, Start};
use crate::error::{Result, unsupported};
use crate::open::Store;

/// Takes all that is written to an output, and forgets it.
#[derive(Debug)]
pub(crate) struct Nowhere {
    /// The name that the output would get.
    pub(crate) target: PathBuf,
}

impl Sink for Nowhere {
    fn path(&self) -> &Path {
        &self.target
    }

    fn begin(&mut self, _: Existing) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn reserve(&mut self, _: &[Room], _: Start<'_>) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, _: usize, _: u64, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn append(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&self, _: usize, _: u64) -> Result<()> {
        Ok(())
    }

    fn put(&self, _: &str, _: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
        Ok(())
    }

    fn stash(&self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn stashed(&self, _: &str) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn written(&self) -> Result<Arc<dyn Store>> {
        Err(unsupported("what a rehearsal wrote cannot be read"))
    }

    fn can_be_resumed(&self) -> bool {
        false
    }

    fn publish(&mut self, _: bool) -> Result<()> {
        Ok(())
    }

    fn abandon(&mut self) {}
}
