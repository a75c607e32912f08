//! What stores experts under Mixtral's names.

use super::{Arch, mixtral};

pub(super) const ARCH: Arch = Arch { model_types: &["minimax"], spec: None, ..mixtral::ARCH };
