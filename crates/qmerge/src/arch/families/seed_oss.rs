//! Seed-OSS: Llama with biases on queries, keys and values (found in the checkpoint).

use super::{Arch, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["seed_oss"], ..llama::ARCH };
