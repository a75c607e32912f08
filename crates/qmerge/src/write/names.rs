//! Names of what a merge writes beside the weights.

use std::path::{Path, PathBuf};

use crate::open::Checkpoint;

/// Name of the report in the output folder.
pub const FILE_NAME: &str = "qmerge-report.json";

/// Name of the model card in the output folder.
pub const CARD_NAME: &str = "README.md";

/// Folder within the output that holds the residual adapter.
pub const RESIDUAL_FOLDER: &str = "residual-adapter";

/// Where the report of a single-file output goes.
pub fn path_beside(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}.{FILE_NAME}"))
}

/// The name of the report that lies beside a checkpoint's weights, there or not: of a single file its own where there is one.
pub(crate) fn name_of(checkpoint: &Checkpoint) -> String {
    let own = path_beside(&checkpoint.path);
    let own = own.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_file = checkpoint.path != checkpoint.folder();
    own.filter(|own| is_file && checkpoint.store.has(own)).unwrap_or_else(|| FILE_NAME.to_owned())
}
