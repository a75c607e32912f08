//! Arithmetic on adapters: several become one, and what a tuned model differs by becomes one; one of any method becomes a
//! LoRA, and one that was merged is taken out again.
//!
//! The result is an ordinary LoRA, with one rank for all modules and a scaling of 1, which is inside its factors: it needs no patterns and no rsLoRA, and loads
//! wherever a LoRA does. Modules of less rank are filled up with zeros. Names and meaning of the methods are those of PEFT 0.21's `add_weighted_adapter`
//! (`tuners/lora/model.py`); what that gets wrong is put right: rsLoRA's result is not √r too large, ranks of a rank_pattern and biases of B are not lost, no base
//! is initialised anew, a rank above a matrix's own is filled up, and one adapter alone goes by the method that was asked for.

mod combine;
mod compared;
mod convert;
mod cut;
mod extract;
mod gathered;
mod gguf_lora;
mod in_file;
mod jobs;
mod joined;
mod matched;
mod method;
mod new_adapter;
mod report;
mod seen;
mod stacked;
mod svd;
mod target;
mod undo;

pub use crate::edit::Majority;
pub use combine::{CombineOptions, combine};
pub use convert::{ConvertOptions, convert};
pub use extract::{ExtractOptions, extract};
pub use gguf_lora::convert_to_gguf;
pub use method::{METHODS, Method};
pub use report::{
    Combination, CombinedAdapter, CombinedWeight, Conversion, ConvertedWeight, DroppedTensor, ExtractedWeight,
    Extraction,
};
pub use seen::Seen;
pub use svd::Wanted;
pub use undo::undo;
