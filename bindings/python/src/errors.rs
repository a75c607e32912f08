//! The library's errors as Python exceptions, whose classes are written in Python (`qmerge/_errors.py`).

use std::error::Error as _;
use std::io;

use pyo3::prelude::*;
use qmerge::error::{Error, Kind};

/// The exception for an error.
pub(crate) fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind() {
        Kind::Io | Kind::Busy => "IoError",
        Kind::Malformed => "MalformedError",
        Kind::Unsupported => "UnsupportedError",
        Kind::Mismatch => "MismatchError",
        Kind::NotFinite => "NotFiniteError",
        Kind::Missing => "NotFoundError",
        Kind::Exists => "ExistsError",
        Kind::Usage => "UsageError",
        Kind::Bug => "InternalError",
        // Who asked to stop raises what made them ask; kinds of a later version have no class yet.
        _ => "Error",
    };
    let file = error.file().map(|path| path.as_os_str());
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let errno = cause.and_then(io::Error::raw_os_error);
    let fields = (class, error.to_string(), file, error.tensor(), error.hint(), errno);
    let made = py.import("qmerge._errors").and_then(|module| module.getattr("make")?.call1(fields));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
