#![doc = include_str!("../README.md")]
//!
//! # How it goes
//!
//! Weights are decoded chunk by chunk while they are multiplied, so memory is activations and chunks, and what may be held of the
//! checkpoint as it is stored. An adapter kept apart is exact: `y = W x + s·B(A x)`, and no sum of W and B·A is ever rounded to a storage
//! format. All arithmetic is in f32. Activations are stored features first: (features, tokens).
//!
//! 1. [`qmerge::arch`]: a `config.json` becomes a [`Spec`](qmerge::arch::spec::Spec), which is data.
//! 2. [`tensors`]: the tensors of a base, with what adapters do to them.
//! 3. [`linear`], `norm`, `rope`, `activation`: what blocks are made of.
//! 4. `mixer`, `feed_forward`: one file per block that a spec can name; `layer`: both, around the residual stream.
//! 5. [`model`]: tokens become logits.
//! 6. [`text`], [`generate`], [`compare`], [`behaviour`]: what is done with logits.

// Tests hold what is computed here to the system's own functions.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod activation;
pub mod behaviour;
pub mod calibrate;
pub mod compare;
mod feed_forward;
pub mod generate;
mod layer;
pub mod linear;
pub mod memory;
mod mixer;
pub mod model;
mod norm;
mod rope;
pub mod tensors;
pub mod text;
mod work;

pub use linear::Unwatched;
pub use model::{Cache, Model, Options};
