//! Kimi Linear: experts with Mixtral's names on disk.

use super::{Arch, generic, mixtral};

pub(super) const ARCH: Arch = Arch { model_types: &["kimi_linear"], experts: Some(mixtral::EXPERTS), ..generic::ARCH };
