//! What an interrupted run leaves to be gone on with: one object after the other, each with what is known more, and the library's journal.

use serde::{Deserialize, Serialize};

use super::cells::Saved;

/// One step of the list.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Uploads, in the order of the files; in the first record alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) uploads: Vec<Upload>,
    /// Parts that are there: file, cell, name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<(usize, usize, String)>,
    /// Bytes of cells that are not whole: file, place, length, and where they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pieces: Vec<(usize, u64, u64, Saved)>,
    /// Files that are complete under their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) complete: Vec<usize>,
    /// Of the journal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) lines: String,
}

/// A weight file's upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) id: String,
    /// Bytes of a cell.
    pub(super) size: u64,
    /// What lay under the name when it was begun; empty if nothing did.
    #[serde(default)]
    pub(super) before: String,
}
