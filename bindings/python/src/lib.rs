//! The compiled half of the Python package `qmerge`. It moves words, documents and errors across the border; what they
//! mean to a Python user is written in Python, in `python/qmerge`.

mod errors;
mod read;
mod watch;

/// The compiled half of qmerge.
#[pyo3::pymodule]
mod _qmerge {
    use std::ffi::OsString;
    use std::io::Write;
    use std::path::PathBuf;

    use pyo3::prelude::*;

    use crate::errors::raised;
    #[pymodule_export]
    use crate::read::{read, tensors};
    use crate::watch::watched;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Does what a command line says, without printing; returns the exit status and the JSON document.
    ///
    /// `progress` is called now and then, on the calling thread, with the work done and the whole of it, the phase, what it counts, and how many of how many are done.
    #[pyfunction]
    #[pyo3(signature = (args, progress=None))]
    fn call(py: Python<'_>, args: Vec<OsString>, progress: Option<Bound<'_, PyAny>>) -> PyResult<(u8, String)> {
        let answer = watched(py, progress.as_ref(), |watch| qmerge_cli::call(args, watch))?;
        Ok((answer.status, answer.json))
    }

    /// Runs the program `qmerge`, the program's name first, and returns its exit status.
    #[pyfunction]
    fn program(py: Python<'_>, args: Vec<OsString>) -> u8 {
        py.detach(|| {
            let status = qmerge_cli::run(args);
            // Rust empties its buffer when its own main returns, and there is none.
            let _ = std::io::stdout().flush();
            status
        })
    }

    /// The page of a merge's report, of a comparison, or of both, from their JSON.
    #[pyfunction]
    fn page(py: Python<'_>, report: Option<&str>, comparison: Option<&str>) -> PyResult<String> {
        qmerge_cli::page(report, comparison).map_err(|error| raised(py, &error))
    }

    /// Why a base cannot be run without torch; `None` if it can.
    #[pyfunction]
    fn why_not_run(py: Python<'_>, base: PathBuf) -> PyResult<Option<String>> {
        py.detach(|| qmerge_cli::why_not_run(&base)).map_err(|error| raised(py, &error))
    }

    /// The folder or file that a path or a hub id stands for.
    #[pyfunction]
    fn resolve(py: Python<'_>, location: PathBuf) -> PyResult<PathBuf> {
        py.detach(|| qmerge::open::resolve(&location)).map_err(|error| raised(py, &error))
    }
}
