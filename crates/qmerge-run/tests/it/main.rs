//! Models that run, held to transformers and PEFT. One program, since each links both crates.

mod hostile;
mod logits;
mod mixtures;
mod peft_methods;
mod strength;
mod watched;
