//! Multi-head latent attention, as data.

use super::Fields;
use super::attention::heads_of;
use crate::arch::fields::MOST;
use crate::error::Result;

/// Attention whose keys and values are made of one vector for each position, narrower than they are (DeepSeek). Part of a key comes
/// straight from the residual stream, turns with the position, and is the same for all heads. Names are below a layer.
#[derive(Clone, Copy, Debug)]
pub struct Latent {
    /// Heads.
    pub heads: usize,
    /// Features of a head's query and key that do not turn.
    pub straight: usize,
    /// Features behind them that do.
    pub turned: usize,
    /// Features of a head's value.
    pub value: usize,
    /// Where queries come from.
    pub queries: Queries,
    /// Features of the vector that keys and values are made of.
    pub rank: usize,
    /// What makes that vector and the keys' turning features; its norm; what makes keys and values of it; output.
    pub names: [&'static str; 4],
    /// Added to the mean square in the norms of narrow vectors.
    pub eps: f32,
    /// Number of the rotary embedding in [`Spec::ropes`](super::Spec::ropes).
    pub rope: usize,
    /// Factor on query · key.
    pub scale: f32,
}

/// Where queries come from: names below a layer.
#[derive(Clone, Copy, Debug)]
pub enum Queries {
    /// One matrix.
    Straight(&'static str),
    /// A narrow vector, normalized.
    Narrow {
        /// Its features.
        rank: usize,
        /// What makes it, its norm, what makes queries of it.
        names: [&'static str; 3],
    },
}

impl Latent {
    pub(super) fn check(&self, fields: &Fields<'_>, ropes: usize) -> Result<()> {
        debug_assert!(self.rope < ropes);
        heads_of(fields, self.heads, self.straight + self.turned)?;
        heads_of(fields, self.heads, self.straight + self.value)?;
        if self.rank + self.turned > MOST {
            return Err(fields.misfit(format!("`kv_lora_rank` is {}, and no model has a larger one", self.rank)));
        }
        Ok(())
    }
}
