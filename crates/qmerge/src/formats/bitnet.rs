//! BitNet as transformers stores it: −1, 0 and 1, four to a byte, and one scale.
//!
//! Parts of `M.weight`: the codes (U8; four quarters of the rows in the same bytes, the first in the lowest bits, each value plus one) and `M.weight_scale`, by which outputs are divided
//! (`linear_class` `bitlinear`) or multiplied (`autobitlinear`). The scale stays, whatever the rounding: it belongs to the model's training. Arithmetic: transformers 5.24.

use serde_json::Value;

use super::scaled::{Blocks, Codes, Companions, Fresh, Role, Scaled, Second, Tiles, misfit};
use super::{Claim, Format, Module, fp8, method};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::open::Entry;

/// BitNet as a format.
#[derive(Debug)]
pub(super) struct Bitnet;

impl Format for Bitnet {
    fn id(&self) -> &'static str {
        "bitnet"
    }

    fn about(&self) -> &'static str {
        "BitNet, -1, 0 and 1 under one scale"
    }

    fn is_made(&self) -> bool {
        false
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let is_code = |lead: &&Entry| lead.dtype == Dtype::U8 && method(module.checkpoint) == Some("bitnet");
        let Some(lead) = module.get("weight").filter(is_code) else { return Ok(Vec::new()) };
        of_module(module, lead)
            .map(|claim| vec![claim])
            .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
    }
}

fn of_module(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scale = found.need(Role::Second, "weight_scale")?;
    let &[quarter, cols] = lead.shape.as_slice() else { return Err(misfit(lead, "a matrix of bytes")) };
    if scale.elements() != 1 || !scale.dtype.is_plain_float() {
        return Err(misfit(scale, "one number"));
    }
    let rows = quarter.checked_mul(4).ok_or_else(|| misfit(lead, "a matrix of bytes"))?;
    let config = module.checkpoint.config.as_ref().and_then(|config| config.quantization());
    let class = config.and_then(|own| own.get("linear_class")).and_then(Value::as_str);
    let second = if class == Some("autobitlinear") { Second::Multiplies } else { Second::Divides };
    let words = quarter * cols;
    let blocks = Blocks { bits: 2, fields: 4, word: 1, descending: false, words, low: -1, levels: 3 };
    let tiles = Tiles::blocks(rows, cols, rows);
    let values = fp8::values(module.checkpoint);
    Ok(found.claim(Scaled {
        codes: Codes::Blocks(blocks),
        second,
        about: format!("-1, 0 and 1, one scale, decodes to {}", values.torch_name()),
        ..fp8::weight("bitnet", &lead.name, &[rows, cols], tiles, values, Fresh::Kept)
    }))
}
