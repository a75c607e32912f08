//! Original: the nearest code to the 16-bit weight that the base was quantized from, plus the delta, under the base's scales.
//!
//! The base's code already is the nearest to the original, so a value moves where the delta carries original + D over a boundary. What quantizing the base
//! threw away takes the part that chance has in stochastic rounding: the mean is right, and the error is that of quantizing once instead of twice.

use super::Rounding;

pub(super) struct Original;

impl Rounding for Original {
    fn id(&self) -> &'static str {
        "original"
    }

    fn about(&self) -> &'static str {
        "the base's scales stay, nearest code to the 16-bit weight that the base was made from, with the delta; needs --original"
    }

    fn keeps_scales(&self) -> bool {
        true
    }

    fn needs_original(&self) -> bool {
        true
    }
}
