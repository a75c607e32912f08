//! Names of what a merge writes beside the weights.

use std::path::{Path, PathBuf};

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
