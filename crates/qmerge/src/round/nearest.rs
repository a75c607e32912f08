//! Nearest: fresh scales and the nearest code, as the format's own library quantizes. From equal inputs this gives PEFT's bytes.

use super::Rounding;

pub(super) struct Nearest;

impl Rounding for Nearest {
    fn id(&self) -> &'static str {
        "nearest"
    }

    fn about(&self) -> &'static str {
        "fresh scales, nearest code: what PEFT and the format's own library do"
    }
}
