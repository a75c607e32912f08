#![doc = include_str!("../README.md")]
//!
//! | to | there is |
//! | --- | --- |
//! | open a checkpoint, from disk or from wherever it is kept | [`open::Checkpoint`], [`open::Store`] |
//! | list its weights, and decode their rows | [`formats::inventory`], [`formats::Reader`] |
//! | open an adapter | [`adapters::Adapter`] |
//! | decide a merge, or a conversion | [`plan::Plan`], of [`plan::Inputs`] and [`plan::Options`] |
//! | predict what it takes, and do it | [`merge::estimate`], [`merge::run`]; [`merge::run_into`] writes to any [`write::Sink`] |
//! | read what became of the adapter | [`report::Report`] |
//! | ask of any merge whether an adapter is in it | [`verify::verify`] |
//! | see what a file is | [`inspect::inspect`] |
//! | cut an adapter to a lower rank | [`truncate::truncate`] |
//! | make one adapter of several, of a tuned model, or of one of another method | [`arithmetic::combine()`], [`arithmetic::extract()`], [`arithmetic::convert()`] |
//! | round by what layers are given | [`round::Calibration`], [`round::StoredCalibration`] |
//! | watch, and stop | [`progress::Progress`] |
//!
//! Fields and variants may be added to all of them: make options with `..Options::default()`. The lists [`formats::FORMATS`], [`adapters::ADAPTERS`] and
//! [`round::ROUNDINGS`] can be read; their traits change as formats and methods come, and are implemented in this crate alone. To run a model with its adapter,
//! to compare, generate and calibrate, there is the crate `qmerge-run`.
//!
//! # The way of the data
//!
//! 1. [`open`]: files become named byte ranges.
//! 2. `arch`: what is known of model families, as data.
//! 3. [`adapters`]: an adapter becomes edits of named weights.
//! 4. [`plan`]: everything decided before the first byte is read.
//! 5. [`merge`] runs the plan, chunk of rows by chunk of rows, on all threads: [`formats`] decode a chunk, `edit` changes it, `check` explains what is not
//!    finite, [`round`] chooses codes, [`formats`] encode them, and [`measure`] sums up what that cost.
//! 6. [`mod@write`]: the output, whole or not at all.
//! 7. [`report`]: what was done and what it cost.

// Tests hold what is computed here to the system's own functions.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod adapters;
#[doc(hidden)]
pub mod allocator;
#[doc(hidden)]
pub mod arch;
pub mod arithmetic;
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
