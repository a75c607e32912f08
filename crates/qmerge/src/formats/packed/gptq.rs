//! GPTQ, and what AutoRound writes in its layout.
//!
//! Source: GPTQModel 7.7, AutoGPTQ 0.7 and AutoRound 0.16. `checkpoint_format` `gptq` (or none) stores zeros less one, `gptq_v2` as they are, as does AutoRound's own format.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::zeros::ZeroPoints;
use super::{Packed, Packing};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::formats::scaled::{groups, misfit};
use crate::formats::settings::whole_groups;
use crate::formats::{Claim, Format, MAX_UNCUT_PART, Module, Part, Setting, Settings, Weight, method};
use crate::open::{Checkpoint, Entry, ModelConfig};

/// Bits of a code and inputs of a group, where the user does not say.
const BITS: usize = 4;
const GROUP: usize = 128;

/// GPTQ as a format.
#[derive(Debug)]
pub(in crate::formats) struct Gptq;

impl Format for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn takes_conv1d(&self) -> bool {
        true
    }

    fn about(&self) -> &'static str {
        "GPTQ, integers of 4 or 8 bits in groups of inputs (2 and 3 are only read)"
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting { name: "bits", of_scales: false }, Setting { name: "block_size", of_scales: false }]
    }

    fn create(&self, name: &str, shape: &[usize], _: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let (&[outputs, inputs], Some(module)) = (shape, name.strip_suffix(".weight")) else {
            return Err(mismatch(format!("gptq stores matrices named `….weight`, not shape {shape:?}")).in_tensor(name));
        };
        let (bits, width) = (bits(settings)?, settings.group(GROUP)?);
        whole_groups(name, inputs, width, true)?;
        if !outputs.is_multiple_of(32 / bits) {
            return Err(mismatch(format!("its {outputs} outputs do not fill words of {bits} bits"))
                .in_tensor(name)
                .with_hint("take another format"));
        }
        let count = inputs / width;
        // Scales of 16 bits are what its readers have, whatever the model computes in.
        let values = Dtype::F16;
        let part = |leaf: &str, dtype, shape| Part::new(format!("{module}.{leaf}"), dtype, shape);
        Ok(Arc::new(Packed {
            format: "gptq",
            name: name.to_owned(),
            shape: [outputs, inputs],
            bits,
            packing: Packing::Down,
            zeros: ZeroPoints::LessOne,
            groups: (0..inputs).map(|input| (input / width) as u32).collect(),
            count,
            width,
            values,
            about: about(bits, (count, width), "", values),
            parts: vec![
                part("qweight", Dtype::I32, vec![inputs * bits / 32, outputs]),
                part("qzeros", Dtype::I32, vec![count, outputs * bits / 32]),
                part("scales", values, vec![count, outputs]),
                part("g_idx", Dtype::I32, vec![inputs]),
            ],
        }))
    }

    fn describe(&self, config: &mut ModelConfig, settings: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let (bits, group) = (bits(settings)?, settings.group(GROUP)?);
        if let Some(own) = config.quantization().filter(|own| is_described(own)) {
            let same = own.get("bits") == Some(&json!(bits))
                && own.get("group_size") == Some(&json!(group))
                && own.get("checkpoint_format").is_none_or(|format| format == "gptq")
                && own.get("quant_method") == Some(&json!("gptq"));
            return if same {
                Ok(())
            } else {
                Err(mismatch(format!(
                    "the base is stored as gptq already, and not with {bits} bits in groups of {group}"
                ))
                .in_file(&config.path)
                .with_hint("leave out --to: what has the format keeps it"))
            };
        }
        // The head is kept plain by `lm_head`; what else is, by an expression that excludes it.
        let plain = skipped.unwrap_or_default().iter().filter(|entry| *entry != "lm_head");
        let dynamic: Map<String, Value> = plain.map(|entry| (excluded(entry), json!({}))).collect();
        let mut quantization = json!({
            "bits": bits,
            "checkpoint_format": "gptq",
            "desc_act": false,
            "group_size": group,
            "lm_head": false,
            "meta": {"quantizer": [concat!("qmerge:", env!("CARGO_PKG_VERSION"))]},
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": true,
        });
        if let Some(map) = quantization.as_object_mut().filter(|_| !dynamic.is_empty()) {
            map.insert("dynamic".into(), dynamic.into());
        }
        config.remove_everywhere("quantization_config");
        config.json.insert("quantization_config".into(), quantization);
        Ok(())
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

/// True of a configuration of GPTQ's, or of another program's in its layout.
fn is_described(own: &Map<String, Value>) -> bool {
    let text = |key: &str| own.get(key).and_then(Value::as_str);
    match text("quant_method") {
        Some("gptq") => true,
        Some("auto-round" | "intel/auto-round") => text("packing_format") != Some("auto_round:auto_awq"),
        _ => false,
    }
}

/// The expression by which GPTQModel and vLLM keep a module plain.
fn excluded(entry: &str) -> String {
    if entry.starts_with('^') {
        return format!("-:{entry}");
    }
    format!("-:^(.*\\.)?{}(\\.|$)", entry.replace('.', "\\."))
}

fn bits(settings: &Settings) -> Result<usize> {
    settings.one_of("bits", BITS, &[4, 8])
}

fn about(bits: usize, (count, width): (usize, usize), ordered: &str, values: Dtype) -> String {
    format!("{bits} bits, {}{ordered}, decodes to {}", in_groups(count, width), values.torch_name())
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
    if outputs == 0 {
        return Err(misfit(lead, "an output at the least"));
    }
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
        about: about(bits, (count, width), ordered, values),
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
