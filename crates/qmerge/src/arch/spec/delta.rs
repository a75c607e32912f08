//! The gated delta rule, as data.

use super::Fields;
use super::attention::heads_of;
use crate::error::Result;

/// A matrix of (key features, value features) for each head, which fades, is read by queries, and is corrected at each position towards what it
/// should give for the position's key. Names are below a layer.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    /// Heads of queries and keys; each serves `value_heads / key_heads` heads of values, one after another.
    pub key_heads: usize,
    /// Heads of values.
    pub value_heads: usize,
    /// Features of a head's query and key.
    pub key: usize,
    /// Features of a head's value.
    pub value: usize,
    /// Positions that the convolution before it sees.
    pub kernel: usize,
    /// The matrices at its entry.
    pub inputs: DeltaInputs,
    /// Convolution of queries, keys and values.
    pub convolution: &'static str,
    /// Logarithms of how fast each head fades, and what is added to the step by which it does.
    pub fading: [&'static str; 2],
    /// Norm of what a head gives, and output.
    pub names: [&'static str; 2],
}

/// How the matrices at the entry are stored: names below a layer.
#[derive(Clone, Copy, Debug)]
pub enum DeltaInputs {
    /// One matrix each.
    Apart {
        /// Queries, keys and values; gates of the output; strengths of corrections; steps of fading.
        names: [&'static str; 4],
    },
    /// Two matrices whose outputs lie by heads of keys: query, key, values, gates; and strengths, steps.
    ByHead {
        /// Both.
        names: [&'static str; 2],
    },
}

/// No layer remembers more values.
const MOST_REMEMBERED: usize = 1 << 22;
/// No convolution sees more positions.
const LONGEST: usize = 1 << 10;

impl Delta {
    /// Features of queries, keys and values together, over which the convolution goes.
    pub fn convolved(&self) -> usize {
        2 * self.key_heads * self.key + self.value_heads * self.value
    }

    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<()> {
        heads_of(fields, self.key_heads, self.key)?;
        heads_of(fields, self.value_heads, self.value)?;
        if !self.value_heads.is_multiple_of(self.key_heads) {
            return Err(fields.misfit(format!(
                "`linear_num_value_heads` is {}, and `linear_num_key_heads`, which must divide it, is {}",
                self.value_heads, self.key_heads
            )));
        }
        if self.value_heads * self.key * self.value > MOST_REMEMBERED {
            return Err(fields.misfit(format!(
                "no model has {} heads that remember {} × {} values",
                self.value_heads, self.key, self.value
            )));
        }
        if self.kernel > LONGEST {
            return Err(fields.misfit(format!("`linear_conv_kernel_dim` is {}, and no model has more", self.kernel)));
        }
        Ok(())
    }
}
