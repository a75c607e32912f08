//! Weights that have another inside and store it as it is stored: what they share as writers.

use std::sync::Arc;

use super::{Settings, Settled, Weight, Writer};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

/// A weight with another inside.
pub(super) trait Wrapper: Weight {
    /// The one inside.
    fn stored(&self) -> &Arc<dyn Weight>;

    /// The same around another.
    fn around(&self, stored: Arc<dyn Weight>) -> Arc<dyn Weight>;
}

/// How the one inside is written.
pub(super) fn writer(stored: &dyn Weight) -> Result<&dyn Writer> {
    stored.writer().ok_or_else(|| Error::new(Kind::Bug, "it cannot be stored").in_tensor(stored.name()))
}

/// [`Writer::renewed`] of both.
pub(super) fn renewed(own: &impl Wrapper, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
    Ok(own.around(writer(own.stored().as_ref())?.renewed(values, settings)?))
}

/// [`Writer::settle`] of both.
pub(super) fn settle(own: &impl Wrapper, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
    match own.stored().writer() {
        Some(writer) => {
            let Settled { weight, parts } = writer.settle(held, stored);
            Settled { weight: own.around(weight), parts }
        }
        None => Settled { weight: own.around(Arc::clone(own.stored())), parts: Vec::new() },
    }
}
