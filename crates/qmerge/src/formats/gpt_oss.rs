//! gpt-oss' experts in MXFP4: 4-bit floats in blocks of 32 under an exponent.
//!
//! Parts of `M.gate_up_proj` and the like: `…_blocks` (U8; experts, outputs, blocks, 16), the first of two codes in the low half of a byte, and `…_scales` (U8; experts, outputs,
//! blocks). Rows are outputs, whereas the plain parameter is (experts, inputs, outputs). Values are exact in bfloat16. How scales are chosen afresh has no
//! reference that runs on a CPU: they are chosen as compressed-tensors does for MXFP4. Arithmetic: transformers 5.23, `convert_moe_packed_tensors`.

use super::scaled::{Codes, Companions, Fresh, Role, Scaled, Tiles, misfit};
use super::{Claim, Format, Module, fp8};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::open::Entry;

/// Values of a block.
const BLOCK: usize = 32;

/// Its id.
pub(crate) const ID: &str = "gpt-oss";

/// gpt-oss' MXFP4 as a format.
#[derive(Debug)]
pub(super) struct GptOss;

impl Format for GptOss {
    fn id(&self) -> &'static str {
        ID
    }

    fn about(&self) -> &'static str {
        "gpt-oss' MXFP4: 4-bit floats in blocks of 32"
    }

    fn is_made(&self) -> bool {
        false
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let leads = module.free().filter_map(|(leaf, lead)| {
            let stem = leaf.strip_suffix("_blocks").filter(|_| lead.dtype == Dtype::U8 && lead.shape.len() == 4)?;
            Some((stem, lead))
        });
        let claim = |(stem, lead): (&str, &Entry)| {
            of_lead(module, stem, lead)
                .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
        };
        leads.map(claim).collect()
    }
}

fn of_lead(module: &Module<'_>, stem: &str, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, &format!("{stem}_scales"))?;
    let &[experts, outputs, blocks, bytes] = lead.shape.as_slice() else { return Err(misfit(lead, "four dimensions")) };
    if bytes != BLOCK / 2 {
        return Err(misfit(lead, "blocks of 16 bytes"));
    }
    if !matches!(scales.dtype, Dtype::U8 | Dtype::F8E8M0) || scales.shape != [experts, outputs, blocks] {
        return Err(misfit(scales, &format!("U8 of shape [{experts}, {outputs}, {blocks}]")));
    }
    let name = lead.name.strip_suffix("_blocks").unwrap_or(&lead.name);
    let shape = [experts, outputs, blocks * BLOCK];
    let tiles = Tiles::runs(BLOCK, outputs);
    let weight = fp8::weight(ID, name, &shape, tiles, Dtype::BF16, Fresh::Powers { up: false });
    Ok(found.claim(Scaled { codes: Codes::E2M1, about: "groups of 32, decodes to bfloat16".into(), ..weight }))
}
