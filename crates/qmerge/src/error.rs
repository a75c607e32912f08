//! What can go wrong, named by what the caller can do about it.
//!
//! An [`Error`] says which file and which tensor, what happened, and, where there is one, a remedy
//! ([`Error::hint`]). Context is added once, at the border where it is known
//! ([`Error::in_file`], [`Error::in_tensor`]), not in each format.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of every fallible function of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// The class of an error: what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Reading or writing failed; trying again may help.
    Io,
    /// A server asks to be left alone for longer than anybody waits: the same will do later.
    Busy,
    /// A file is not what it says it is: broken header, offsets out of range, truncated data.
    Malformed,
    /// The input is well formed but this version cannot do what it asks for.
    Unsupported,
    /// Inputs do not fit each other: shapes, names, ranks.
    Mismatch,
    /// NaN or infinity in an adapter, a delta, a merged value or a scale.
    NotFinite,
    /// A file or folder that was named is not there.
    Missing,
    /// The output exists already.
    Exists,
    /// Wrong options.
    Usage,
    /// The caller asked to stop.
    Cancelled,
    /// A defect of this program.
    Bug,
}

impl Kind {
    /// True if the same may do another time: what was done so far is worth keeping.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Io | Self::Busy | Self::Cancelled)
    }
}

/// An error with the file and the tensor it is about.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    file: Option<PathBuf>,
    tensor: Option<String>,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

impl Error {
    /// A new error without context.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), file: None, tensor: None, hint: None, source: None }))
    }

    /// An operating-system error: `doing` says what was tried ("read", "create").
    pub fn io(doing: &str, path: &Path, source: std::io::Error) -> Self {
        let mut error = Self::new(Kind::Io, format!("cannot {doing}: {source}")).in_file(path);
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                error = error.with_hint("free some space");
            }
            std::io::ErrorKind::FileTooLarge => {
                error = error.with_hint("the system bounds the size of files here (ulimit -f)")
            }
            _ => {}
        }
        error.0.source = Some(source);
        error
    }

    /// An operating-system error from a file that the caller named.
    pub fn input(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::NotFound => {
                Self::new(Kind::Missing, "no such file").in_file(path).with_hint("check the path")
            }
            _ => Self::io("read", path, source),
        }
    }

    /// Names the file, unless an inner layer already did.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.0.file.get_or_insert_with(|| path.to_path_buf());
        self
    }

    /// Names the tensor, unless an inner layer already did.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        self.0.tensor.get_or_insert_with(|| name.to_owned());
        self
    }

    /// Adds the remedy, one sentence.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says of an error of the system what else was being done with the file.
    #[must_use]
    pub(crate) fn doing(mut self, doing: &str) -> Self {
        if let Some(source) = &self.0.source {
            self.0.message = format!("cannot {doing}: {source}");
        }
        self
    }

    /// The same once more, for whoever asks later.
    #[doc(hidden)]
    #[must_use]
    pub fn again(&self) -> Self {
        let inner = &self.0;
        Self(Box::new(Inner {
            kind: inner.kind,
            message: inner.message.clone(),
            file: inner.file.clone(),
            tensor: inner.tensor.clone(),
            hint: inner.hint.clone(),
            source: None,
        }))
    }

    /// The class of this error.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, without the file and the tensor.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file it is about.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The tensor it is about.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// What the user can do, one sentence.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &self.0.tensor {
            write!(f, "`{tensor}`: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(hint) = &self.0.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

/// Shorthand constructors, one per kind that is made in many places.
/// "1 tensor is", "2 tensors are".
pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

pub(crate) fn malformed(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, message)
}

pub(crate) fn mismatch(message: impl Into<String>) -> Error {
    Error::new(Kind::Mismatch, message)
}

pub(crate) fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, message)
}

pub(crate) fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}
