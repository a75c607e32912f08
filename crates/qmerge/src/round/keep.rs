//! Keep: the base's scales stay, each value takes the nearest code under them.
//!
//! A delta that is small against half a step changes nothing at all; what it does change has the right size, and untouched
//! blocks keep their bytes.

use super::Rounding;

pub(super) struct Keep;

impl Rounding for Keep {
    fn id(&self) -> &'static str {
        "keep"
    }

    fn about(&self) -> &'static str {
        "the base's scales stay, nearest code under them"
    }

    fn keeps_scales(&self) -> bool {
        true
    }
}
