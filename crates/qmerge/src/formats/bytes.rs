//! A signed byte or an 8-bit float per value, and a scale for each row: quanto's and torchao's.
//!
//! quanto stores `M.weight._data` and `M.weight._scale`, and rounds the product once, to the type of the scales; torchao `M._weight_qdata` and `M._weight_scale`, with zeros that are all 0
//! beside them, and computes in f32. What else they have (quanto's integers of 4 and 2 bits, torchao's packed types) is recognised and refused. Arithmetic:
//! optimum-quanto 0.2.7, torchao 0.18.

use super::scaled::{Codes, Companions, Fresh, Role, Scaled, Tiles, misfit};
use super::{Claim, Format, Module, fp8};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::open::Entry;

/// One library's way as a format.
#[derive(Debug)]
pub(super) struct Bytes {
    id: &'static str,
    about: &'static str,
    /// Names of the codes, of the scales and of what is kept.
    leaves: [&'static str; 3],
}

/// optimum-quanto.
pub(super) static QUANTO: Bytes = Bytes {
    id: "quanto",
    about: "quanto, integers or floats of 8 bits, a scale per row",
    leaves: ["_data", "_scale", ""],
};
/// torchao.
pub(super) static TORCHAO: Bytes = Bytes {
    id: "torchao",
    about: "torchao, integers or floats of 8 bits, a scale per row",
    leaves: ["_weight_qdata", "_weight_scale", "_weight_zero_point"],
};

impl Format for Bytes {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn is_made(&self) -> bool {
        false
    }

    fn reads(&self, name: &str) -> bool {
        self.id == TORCHAO.id && name.ends_with("._weight_zero_point")
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let [codes, ..] = self.leaves;
        let is_code = |lead: &&Entry| matches!(lead.dtype, Dtype::I8 | Dtype::F8E4M3) && lead.shape.len() == 2;
        let Some(lead) = module.get(codes).filter(is_code) else { return Ok(Vec::new()) };
        self.of_module(module, lead)
            .map(|claim| vec![claim])
            .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
    }
}

impl Bytes {
    fn of_module(&self, module: &Module<'_>, lead: &Entry) -> Result<Claim> {
        let [_, scale, kept] = self.leaves;
        let mut found = Companions::new(module, lead);
        let scales = found.need(Role::Scales, scale)?;
        let &[rows, cols] = lead.shape.as_slice() else { return Err(misfit(lead, "a matrix")) };
        if scales.elements() != rows as u64 || !scales.dtype.is_plain_float() {
            return Err(misfit(scales, &format!("one scale for each of {rows} rows")));
        }
        if let Some(zeros) = module.get(kept).filter(|_| !kept.is_empty()) {
            let bytes = module.checkpoint.read_small(zeros, super::MAX_UNCUT_PART)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Err(unsupported("torchao's integers with zero points are not read")
                    .with_hint("take the checkpoint that it was quantized from, and quantize the result afterwards"));
            }
            found.add(Role::Kept, zeros);
        }
        let is_quanto = self.id == QUANTO.id;
        let name = if is_quanto { module.path.to_owned() } else { format!("{}.weight", module.path) };
        let values = if is_quanto { scales.dtype } else { fp8::values(module.checkpoint) };
        let codes = if lead.dtype == Dtype::I8 { Codes::Bytes } else { Codes::E4M3 };
        let tiles = Tiles::runs(cols, rows);
        let half = match (codes, is_quanto) {
            (Codes::E4M3, _) => 448.0,
            (_, true) => 127.0,
            (_, false) => 127.5,
        };
        let weight = fp8::weight(self.id, &name, &lead.shape, tiles, values, Fresh::Symmetric { half });
        Ok(found.claim(Scaled { codes, ..weight }))
    }
}
