#![doc = include_str!("../README.md")]
//!
//! | to | there is |
//! | --- | --- |
//! | make a model of a base, or of a base and its adapters kept apart | [`tensors::Tensors`], [`Model`], [`Options`] |
//! | turn text into tokens and back | [`text::Tokenizer`] |
//! | continue a text | [`generate::generate`] |
//! | measure merges against the adapter kept apart | [`compare::compare`] |
//! | take the moments that rounding goes by | [`calibrate::FromModel`] |
//!
//! # Compare a merge with its adapter
//!
//! ```
//! # fn main() -> qmerge::error::Result<()> {
//! # use qmerge::{adapters::Adapter, open::Checkpoint, plan::{Inputs, Options as PlanOptions, Plan}, progress::Silent};
//! use qmerge_run::compare::{Candidate, Task, compare};
//! use qmerge_run::{Model, Options, tensors::Tensors, text::Tokenizer};
//!
//! # let open = |name: &str| Checkpoint::open(format!("../qmerge-cli/demo/{name}").as_ref());
//! # let adapter = Adapter::open("../qmerge-cli/demo/adapter".as_ref(), 1.0)?;
//! let inputs = Inputs::new(open("base-bf16")?, vec![adapter])?;
//! let plan = Plan::new(&inputs, &PlanOptions::default())?;
//! // What stands where a merge would: here a base in four bits.
//! let merged = Inputs::new(open("base-nf4")?, Vec::new())?;
//!
//! let tokenizer = Tokenizer::open(&[&*inputs.base.store])?;
//! let tokens = tokenizer.encode(&"So it was said of him. ".repeat(8))?;
//! let options = Options { threads: 1, ..Options::default() };
//! let base = Model::new(&Tensors::new(&inputs, None), options)?;
//! let apart = Model::new(&Tensors::new(&inputs, Some(&plan)), options)?;
//! let merge = Model::new(&Tensors::new(&merged, None), options)?;
//! let candidates = [("base", &base), ("apart", &apart), ("merge", &merge)].map(|(name, model)| Candidate { name: name.into(), model });
//! let task = Task { text: "a sentence".into(), tokens, begin: Vec::new(), context: 32, windows: Some(1), prompts: Vec::new(), continuation: 0, batch: 32 };
//! let found = compare(&candidates, &task, &tokenizer, &Silent)?;
//! assert_eq!(found.models[1].kl, 0.0); // the reference
//! assert!(found.models[2].kl > 0.0 && found.models[2].verdict.is_some());
//! # Ok(()) }
//! ```
//!
//! # Calibrate a merge
//!
//! The model is run with its adapter kept apart, over a text or over one that it writes itself, while the merge takes moments and rounds.
//!
//! ```
//! # fn main() -> qmerge::error::Result<()> {
//! # use qmerge::{adapters::Adapter, open::Checkpoint, plan::{Inputs, Options as PlanOptions, Plan}, progress::Silent};
//! use qmerge::plan::{Data, Method};
//! use qmerge::{merge, round};
//! use qmerge_run::calibrate::{Amount, FromModel};
//! use qmerge_run::text::Beginnings;
//! # use qmerge_run::{Model, Options, tensors::Tensors};
//!
//! # let base = Checkpoint::open("testdata/tiny/llama_nf4".as_ref())?;
//! # let adapter = Adapter::open("testdata/tiny/llama_nf4_lora/adapter".as_ref(), 1.0)?;
//! # let inputs = Inputs::new(base, vec![adapter])?;
//! # let apart = Plan::new(&inputs, &PlanOptions::default())?;
//! # let output = std::env::temp_dir().join(format!("qmerge-calibrated-{}", std::process::id()));
//! let model = Model::new(&Tensors::new(&inputs, Some(&apart)), Options { threads: 1, ..Options::default() })?;
//! let tokens: Vec<u32> = (0..1024).map(|token| token % 48).collect(); // a text's
//! let mut calibration = FromModel::text(&model, &tokens, &Beginnings::default(), "text.txt".as_ref(), Amount::Usual)?;
//!
//! let known = Data::Known(qmerge_run::calibrate::weights(&inputs)?.into());
//! let options = PlanOptions { rounding: Method::Named(round::BEST), data: known, ..PlanOptions::default() };
//! let plan = Plan::new(&inputs, &options)?;
//! let report = merge::run(&inputs, &plan, Some(&mut calibration), &output, &merge::RunOptions::default(), &Silent)?;
//! assert!(report.summary.kept_output > Some(0.9));
//! # std::fs::remove_dir_all(&output).ok();
//! # Ok(()) }
//! ```
//!
//! # How it goes
//!
//! Weights are decoded chunk by chunk while they are multiplied, so memory is activations and chunks, and what may be held of the
//! checkpoint as it is stored. An adapter kept apart is exact: `y = W x + s·B(A x)`, and no sum of W and B·A is ever rounded to a storage
//! format. All arithmetic is in f32. Activations are stored features first: (features, tokens).
//!
//! 1. `qmerge::arch`: a `config.json` becomes a `Spec`, which is data.
//! 2. [`tensors`]: the tensors of a base, with what adapters do to them.
//! 3. `linear`, `norm`, `rope`, `activation`: what blocks are made of.
//! 4. `mixer`, `feed_forward`: one file per block that a spec can name; `layer`: both, around the residual stream.
//! 5. `model`: tokens become logits.
//! 6. [`text`], [`generate`], [`compare`], `behaviour`: what is done with logits.

// Tests hold what is computed here to the system's own functions.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod activation;
#[doc(hidden)]
pub mod behaviour;
pub mod calibrate;
pub mod compare;
mod feed_forward;
pub mod generate;
mod layer;
#[doc(hidden)]
pub mod linear;
#[doc(hidden)]
pub mod memory;
mod mixer;
#[doc(hidden)]
pub mod model;
mod norm;
mod per_layer;
mod rope;
mod streams;
pub mod tensors;
pub mod text;
mod work;

#[doc(hidden)]
pub use linear::Unwatched;
pub use model::{Cache, Model, Options};
