//! AWQ in the layout `gemm`, and what AutoRound writes in it. Source: AutoAWQ 0.2.9.

use std::sync::Arc;

use super::gptq::{in_groups, lead, named, need, no_group, number, parts};
use super::zeros::ZeroPoints;
use super::{Packed, Packing};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::scaled::misfit;
use crate::formats::{Claim, Format, Module};
use crate::open::Entry;

/// AWQ as a format.
#[derive(Debug)]
pub(in crate::formats) struct Awq;

impl Format for Awq {
    fn id(&self) -> &'static str {
        "awq"
    }

    fn about(&self) -> &'static str {
        "AWQ, integers of 4 bits in groups of inputs"
    }

    fn is_made(&self) -> bool {
        false
    }

    /// Out of norms, into the layers behind them.
    fn moves_factors(&self) -> bool {
        true
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let Some(lead) = lead(module).filter(|lead| module.get("g_idx").is_none() && is_awq(module, lead)) else {
            return Ok(Vec::new());
        };
        of_module(module, lead).map(|claim| vec![claim]).map_err(|error| named(module, lead, error))
    }
}

/// True if a word of the codes holds eight outputs.
pub(super) fn is_awq(module: &Module<'_>, lead: &Entry) -> bool {
    let outputs = module.get("scales").and_then(|scales| scales.shape.last().copied());
    lead.shape.last().and_then(|words| words.checked_mul(8)) == outputs && outputs != Some(0)
}

fn of_module(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let (zeros, scales) = (need(module, "qzeros")?, need(module, "scales")?);
    let &[inputs, words] = lead.shape.as_slice() else { return Err(misfit(lead, "a matrix of words")) };
    let outputs = 8 * words;
    let &[count, _] = scales.shape.as_slice() else { return Err(misfit(scales, "a row per group")) };
    if count == 0 || !scales.dtype.is_plain_float() {
        return Err(misfit(scales, &format!("16-bit floats, {outputs} for each group")));
    }
    if zeros.dtype != Dtype::I32 || zeros.shape != [count, words] {
        return Err(misfit(zeros, &format!("I32 of shape [{count}, {words}]")));
    }
    let size = number(module.checkpoint, "group_size");
    if size == Some(0) {
        return Err(no_group(module.checkpoint));
    }
    let said = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| inputs.div_ceil(size) == count);
    let width = said.unwrap_or(inputs.div_ceil(count)).max(1);
    let entries = vec![lead.clone(), zeros.clone(), scales.clone()];
    let weight = Packed {
        format: "awq",
        name: format!("{}.weight", module.path),
        shape: [outputs, inputs],
        bits: 4,
        packing: Packing::Across,
        zeros: ZeroPoints::Interleaved,
        groups: (0..inputs).map(|input| ((input / width).min(count - 1)) as u32).collect(),
        count,
        width,
        values: scales.dtype,
        about: format!("4 bits, {}, decodes to {}", in_groups(count, width), scales.dtype.torch_name()),
        parts: parts(&entries),
    };
    Ok(Claim { weight: Arc::new(weight), entries })
}
