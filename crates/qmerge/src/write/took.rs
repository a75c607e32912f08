//! What a part of a merge took, for the report of the whole.

use serde::{Deserialize, Serialize};

/// Kept beside the part's journal once it is complete.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) peak_rss_bytes: Option<u64>,
}

impl Took {
    pub(crate) const FILE_NAME: &str = "part.json";

    /// What two parts take, side by side.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds.max(other.seconds),
            bytes_read: self.bytes_read.saturating_add(other.bytes_read),
            bytes_written: self.bytes_written.saturating_add(other.bytes_written),
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
        }
    }

    /// The same one after the other.
    pub(crate) fn then(self, other: Self) -> Self {
        Self { seconds: self.seconds + other.seconds, ..self.and(other) }
    }
}
