//! GPTQ, and what AutoRound writes in its layout.
//!
//! Source: GPTQModel 7.7, AutoGPTQ 0.7 and AutoRound 0.16. `checkpoint_format` `gptq` (or none) stores zeros less one, `gptq_v2` as they are, as does AutoRound's own format.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::zeros::ZeroPoints;
use super::{Packed, Packing};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::formats::scaled::{groups, misfit};
use crate::formats::{Claim, Format, MAX_UNCUT_PART, Module, Part, method};
use crate::open::{Checkpoint, Entry};

/// GPTQ as a format.
#[derive(Debug)]
pub(in crate::formats) struct Gptq;

impl Format for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn about(&self) -> &'static str {
        "GPTQ, integers of 2, 3, 4 or 8 bits in groups of inputs"
    }

    fn is_made(&self) -> bool {
        false
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let Some(lead) = lead(module) else { return Ok(Vec::new()) };
        let is_ours = module.get("g_idx").is_some() || !super::awq::is_awq(module, lead);
        if !is_ours {
            return Ok(Vec::new());
        }
        of_module(module, lead).map(|claim| vec![claim]).map_err(|error| named(module, lead, error))
    }
}

/// Packed codes, if the module has any.
pub(super) fn lead<'c>(module: &Module<'c>) -> Option<&'c Entry> {
    module.get("qweight").filter(|lead| lead.dtype == Dtype::I32 && module.get("scales").is_some())
}

pub(super) fn named(module: &Module<'_>, lead: &Entry, error: Error) -> Error {
    error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead))
}

/// A companion that must be there.
pub(super) fn need<'c>(module: &Module<'c>, leaf: &str) -> Result<&'c Entry> {
    module.get(leaf).ok_or_else(|| {
        mismatch(format!("its companion `{}.{leaf}` is missing", module.path))
            .with_hint("the checkpoint is incomplete: download it again")
    })
}

/// What the configuration says of the way of storing.
pub(super) fn config(checkpoint: &Checkpoint) -> Option<&Map<String, Value>> {
    checkpoint.config.as_ref()?.quantization()
}

pub(super) fn number(checkpoint: &Checkpoint, key: &str) -> Option<i64> {
    config(checkpoint)?.get(key)?.as_i64()
}

fn zero_points(checkpoint: &Checkpoint) -> ZeroPoints {
    let text = |key: &str| config(checkpoint).and_then(|about| about.get(key)?.as_str()).unwrap_or("");
    let is_auto_round = method(checkpoint).is_some_and(|method| method.ends_with("auto-round"));
    let whole = text("checkpoint_format") == "gptq_v2" || is_auto_round && text("packing_format") == "auto_round";
    let by_word = config(checkpoint)
        .and_then(|about| about.get("meta")?.get("quantizer"))
        .is_some_and(|quantizer| quantizer.to_string().contains("gptqmodel"));
    match (whole, by_word) {
        (true, _) => ZeroPoints::Whole,
        (false, true) => ZeroPoints::LessOnes,
        (false, false) => ZeroPoints::LessOne,
    }
}

fn of_module(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let checkpoint = module.checkpoint;
    let (zeros, scales) = (need(module, "qzeros")?, need(module, "scales")?);
    let index = module.get("g_idx");
    let &[words, outputs] = lead.shape.as_slice() else { return Err(misfit(lead, "a matrix of words")) };
    let (bits, inputs) = match index {
        Some(index) => {
            let inputs = index.elements() as usize;
            let bits = words.saturating_mul(32).checked_div(inputs).unwrap_or(0);
            (bits, inputs)
        }
        None => {
            let bits = number(checkpoint, "bits").unwrap_or(4).clamp(0, 8) as usize;
            (bits, words.saturating_mul(32).checked_div(bits).unwrap_or(0))
        }
    };
    if !matches!(bits, 2 | 3 | 4 | 8) || inputs * bits != words * 32 {
        return Err(misfit(lead, &format!("words of 2, 3, 4 or 8 bits for {inputs} inputs")));
    }
    let &[count, of_scales] = scales.shape.as_slice() else { return Err(misfit(scales, "a row per group")) };
    if of_scales != outputs || count == 0 || !scales.dtype.is_plain_float() {
        return Err(misfit(scales, &format!("16-bit floats, {outputs} for each group")));
    }
    let row = ZeroPoints::row_bytes(bits, outputs) / 4;
    if zeros.dtype != Dtype::I32 || zeros.shape != [count, row] {
        return Err(misfit(zeros, &format!("I32 of shape [{count}, {row}]")));
    }
    let size = number(checkpoint, "group_size");
    if size == Some(0) {
        return Err(no_group(checkpoint));
    }
    let said = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| inputs.div_ceil(size) == count);
    let width = said.unwrap_or(inputs.div_ceil(count)).max(1);
    let runs = || (0..inputs).map(|input| ((input / width).min(count - 1)) as u32).collect::<Arc<[u32]>>();
    let mut entries = vec![lead.clone(), zeros.clone(), scales.clone()];
    let groups = match index {
        None => runs(),
        Some(index) => {
            if index.dtype != Dtype::I32 {
                return Err(misfit(index, "I32"));
            }
            entries.push(index.clone());
            groups(index, &checkpoint.read_small(index, MAX_UNCUT_PART)?, count)?.unwrap_or_else(runs)
        }
    };
    let ordered = if groups.is_sorted() { "" } else { ", in the order of activations" };
    let values = scales.dtype;
    let weight = Packed {
        format: "gptq",
        name: format!("{}.weight", module.path),
        shape: [outputs, inputs],
        bits,
        packing: Packing::Down,
        zeros: zero_points(checkpoint),
        groups,
        count,
        width,
        values,
        about: format!("{bits} bits, {}{ordered}, decodes to {}", in_groups(count, width), values.torch_name()),
        parts: parts(&entries),
    };
    Ok(Claim { weight: Arc::new(weight), entries })
}

pub(super) fn in_groups(count: usize, width: usize) -> String {
    if count == 1 { "one scale per output".into() } else { format!("groups of {width}") }
}

pub(super) fn parts(entries: &[Entry]) -> Vec<Part> {
    let part = |entry: &Entry| Part {
        name: entry.name.clone(),
        dtype: entry.dtype,
        shape: Some(entry.shape.clone()),
        bytes: entry.bytes,
    };
    entries.iter().map(part).collect()
}

pub(super) fn no_group(checkpoint: &Checkpoint) -> Error {
    let file = checkpoint.config.as_ref().map_or(checkpoint.path.as_path(), |config| config.path.as_path());
    malformed("`group_size` is 0: a group has no inputs")
        .in_file(file)
        .with_hint("take the size that the model was quantized with, or −1 for one group")
}
