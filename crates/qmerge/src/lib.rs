#![doc = include_str!("../README.md")]
//!
//! # The way of the data
//!
//! The list of modules is the data flow:
//!
//! 1. [`open`]: files become named byte ranges.
//! 2. `arch`: what is known of model families, as data.
//! 3. [`adapters`]: an adapter becomes edits of named weights.
//! 4. [`plan`]: everything decided before the first byte is read.
//! 5. [`formats`]: decode and encode one storage format.
//! 6. `edit`, `check`, [`round`], [`measure`]: what happens to a chunk of rows.
//! 7. [`merge`]: runs the plan, chunk by chunk, on all threads.
//! 8. [`mod@write`]: the output, whole or not at all.
//! 9. [`report`]: what was done and what it cost.

// Tests hold what is computed here to the system's own functions.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod adapters;
#[doc(hidden)]
pub mod arch;
mod check;
pub mod dtype;
#[doc(hidden)]
pub mod edit;
#[doc(hidden)]
pub mod edited;
pub mod error;
pub mod formats;
pub mod inspect;
#[cfg(feature = "internals")]
pub mod internals;
#[doc(hidden)]
pub mod linalg;
pub mod measure;
pub mod merge;
pub mod open;
mod parallel;
pub mod plan;
pub mod progress;
pub mod report;
pub mod round;
#[doc(hidden)]
pub mod simd;
pub mod truncate;
pub mod verify;
pub mod write;
