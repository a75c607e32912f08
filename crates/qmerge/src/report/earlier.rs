//! What the report of an earlier merge says of the adapters in its output.

use serde::Deserialize;

use super::name_of;
use crate::adapters::Adapter;
use crate::error::{Result, malformed};
use crate::open::{Checkpoint, MAX_REPORT, content, json, sampled, small_text};

/// The adapters that were merged or taken out.
#[derive(Debug, Deserialize)]
pub(crate) struct Earlier {
    #[serde(default)]
    pub(crate) adapters: Vec<EarlierAdapter>,
    /// All of the report.
    #[serde(skip)]
    pub(crate) text: String,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(crate) struct EarlierAdapter {
    pub(crate) sha256: String,
    pub(crate) weight: f64,
}

impl Earlier {
    /// What the report beside a checkpoint says, if there is one.
    pub(crate) fn beside(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let name = name_of(checkpoint);
        let Some(text) = small_text(&*checkpoint.store, &name, MAX_REPORT)? else { return Ok(None) };
        let read: Self = json::parse_as(&text).map_err(|error| {
            malformed(format!("not a report of qmerge: {error}")).in_file(&checkpoint.store.path_of(&name))
        })?;
        Ok(Some(Self { text, ..read }))
    }
}

/// Of the contents of adapters, each as it was merged; see [`hash_of`].
pub(crate) fn hashes_of(adapters: &[Adapter]) -> Result<Vec<String>> {
    adapters.iter().map(hash_of).collect()
}

/// The SHA-256 of an adapter's contents, as a report has it.
fn hash_of(adapter: &Adapter) -> Result<String> {
    match adapter.is_tuned() {
        // A tuned model is as large as the base.
        true => sampled(&adapter.tensors),
        false => content(adapter.tensors.files.get(..1).unwrap_or_default()),
    }
}
