#![doc = include_str!("../README.md")]
//!
//! # How it goes
//!
//! Weights are decoded chunk by chunk while they are multiplied, so memory is activations and chunks, and what may be held of the
//! checkpoint as it is stored. An adapter kept apart is exact: `y = W x + s·B(A x)`, and no sum of W and B·A is ever rounded to a storage
//! format. All arithmetic is in f32. Activations are stored features first: (features, tokens).
//!
//! 1. [`families`]: a `config.json` ([`fields`]) becomes a [`spec::Spec`].
//! 2. [`tensors`]: the tensors of a base, with what adapters do to them.
//! 3. [`linear`], `attention`, `feed_forward`, `norm`, [`rope`]: the blocks.
//! 4. [`model`]: tokens become logits.
//! 5. [`text`], [`generate`], [`compare`], [`behaviour`]: what is done with logits.

// Tests hold what is computed here to the system's own functions.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod attention;
pub mod behaviour;
pub mod calibrate;
pub mod compare;

pub mod families;
mod feed_forward;
pub mod fields;
pub mod generate;

pub mod linear;
pub mod memory;
pub mod model;
mod norm;
pub mod rope;
pub mod spec;
pub mod tensors;
pub mod text;
mod work;

pub use linear::Unwatched;
pub use model::{Cache, Model, Options};
