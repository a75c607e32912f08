//! What a place elsewhere has to answer, and how often it is asked again.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::Item;

use crate::busy;

/// An object as it was when it was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Length in bytes.
    pub(crate) len: u64,
    /// What tells this content from any other: an ETag, else a time; empty if the server says neither.
    pub(crate) tag: String,
}

impl Found {
    /// True if the tag is of the content. A time has colons.
    pub(crate) fn has_tag(&self) -> bool {
        self.tag.starts_with('"') || self.tag.starts_with("W/") || (!self.tag.is_empty() && !self.tag.contains(':'))
    }
}

/// Why one request did not give what was asked for.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Trying again may help.
    Again(String),
    /// The object is not the one that was looked for.
    Changed,
    /// There is none of that name.
    Missing,
    /// Trying again would not help.
    Refused(String),
    /// The same, with all that is to be said.
    Stated(Error),
}

/// Objects by name, in a folder elsewhere. Every call is one try.
pub(crate) trait Source: Debug + Send + Sync {
    /// What lies in a folder of it ("" for itself), in any order. An empty one and one that is not there look alike.
    fn list(&self, folder: &str) -> std::result::Result<Vec<Item>, Failed>;

    /// Looks for an object.
    fn look(&self, name: &str) -> std::result::Result<Found, Failed>;

    /// The bytes of a range, of the object as it was found.
    fn get(&self, name: &str, found: &Found, range: Range<u64>) -> std::result::Result<Vec<u8>, Failed>;
}

/// Tries for one request; the waits between them come to 10 to 21 seconds, unless the server says how long it wants to be left alone.
const TRIES: u32 = 9;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Tries until something comes of it that trying again would not change.
pub(crate) fn persist<T>(mut once: impl FnMut() -> std::result::Result<T, Failed>) -> std::result::Result<T, Failed> {
    let begun = std::time::Instant::now();
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES {
        match once() {
            Err(Failed::Again(_)) if begun.elapsed() < busy::IN_ALL => {}
            other => return other,
        }
        // Those that failed together do not come back together.
        busy::sleep(wait.mul_f64(0.5 + 0.5 * chance())).map_err(Failed::Stated)?;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    once()
}

/// A number from 0 to 1 that differs between threads and moments; nothing depends on it but when something is tried.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Failed {
    /// As an error of the library, without the object that it is about.
    pub(crate) fn error(self) -> Error {
        match self {
            Self::Again(what) => Error::new(Kind::Io, crate::redacted(&what)).with_hint("try again later"),
            Self::Changed => Error::new(Kind::Malformed, "it was changed while it was read")
                .with_hint("run the command again once nothing writes to it"),
            Self::Stated(error) => error,
            Self::Missing => Error::new(Kind::Missing, "there is nothing of that name").with_hint("check the address"),
            Self::Refused(what) => Error::new(Kind::Usage, crate::redacted(&what))
                .with_hint("check the address, and the credentials in the environment"),
        }
    }
}

/// [`persist`], with errors of the library.
pub(crate) fn ask<T>(once: impl FnMut() -> std::result::Result<T, Failed>) -> Result<T> {
    persist(once).map_err(Failed::error)
}

/// Does `work` on all items, so many at a time; after an error with none that was not begun, and the first error is returned.
pub(crate) fn together<T: Send>(items: Vec<T>, most: usize, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let threads = items.len().min(most);
    let (queue, failed) = (Mutex::new(items), Mutex::new(Ok(())));
    // Its own function, so that the lock does not last for the work.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some(item) = next() {
            if let Err(error) = work(item) {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = std::mem::replace(&mut *failed, Ok(())).and(Err(error));
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_and_the_first_error_ends_it() {
        let done = Mutex::new(Vec::new());
        together((0..100).collect(), 8, |item| {
            done.lock().unwrap().push(item);
            Ok(())
        })
        .unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        let begun = Mutex::new(0);
        let failed = together((0..100).collect(), 1, |item| {
            *begun.lock().unwrap() += 1;
            if item > 97 { Ok(()) } else { Err(Error::new(Kind::Io, item.to_string())) }
        });
        assert_eq!((failed.unwrap_err().message(), begun.into_inner().unwrap()), ("97", 3));
        assert!(together(Vec::<i32>::new(), 8, |_| Ok(())).is_ok());
    }

    #[test]
    fn a_time_is_no_tag() {
        for (tag, is_one) in [
            ("\"1f-2\"", true),
            ("W/\"a:b\"", true),
            ("9b74c989", true),
            ("", false),
            ("2023-01-02T03:04:05+00:00", false),
            ("Mon, 02 Jan 2023 03:04:05 GMT", false),
        ] {
            assert_eq!(Found { len: 1, tag: tag.into() }.has_tag(), is_one, "{tag}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else_is() {
        let mut tries = 0;
        let found = persist(|| {
            tries += 1;
            if tries < 3 { Err(Failed::Again("reset".into())) } else { Ok(tries) }
        });
        assert_eq!(found.unwrap(), 3);
        let mut tries = 0;
        let refused = persist(|| -> std::result::Result<(), Failed> {
            tries += 1;
            Err(Failed::Changed)
        });
        assert!(matches!(refused, Err(Failed::Changed)));
        assert_eq!(tries, 1);
    }
}
