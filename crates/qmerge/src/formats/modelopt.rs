//! NVIDIA ModelOpt's NVFP4 and FP8.
//!
//! Parts of `M.weight`, which has that name as it is stored: 4-bit floats (U8, two in a byte) with `M.weight_scale`, an 8-bit float per 16 values, and `M.weight_scale_2`, a multiplier of those;
//! or 8-bit floats with `M.weight_scale`, one for the matrix, for each row or for each block. `M.input_scale` and the like stay. Which weights are so is told by their tensors; the checkpoint is
//! known as ModelOpt's by `config.json` or by `hf_quant_config.json` beside it. Arithmetic: nvidia-modelopt 0.47.

use super::scaled::{Codes, Companions, Fresh, Role, Scaled, Second, Tiles, misfit};
use super::{Claim, Format, Module, fp8, method};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::open::{Checkpoint, Entry};

/// Values of a group of 4-bit floats.
const GROUP: usize = 16;

/// ModelOpt as a format.
#[derive(Debug)]
pub(super) struct ModelOpt;

impl Format for ModelOpt {
    fn id(&self) -> &'static str {
        "modelopt"
    }

    fn about(&self) -> &'static str {
        "NVIDIA ModelOpt, NVFP4 and 8-bit floats"
    }

    fn is_made(&self) -> bool {
        false
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let Some(lead) = module.get("weight") else { return Ok(Vec::new()) };
        let is_four = lead.dtype == Dtype::U8 && module.get("weight_scale_2").is_some();
        let is_eight =
            lead.dtype == Dtype::F8E4M3 && module.get("weight_scale").is_some() && is_modelopt(module.checkpoint);
        if !is_four && !is_eight {
            return Ok(Vec::new());
        }
        let claim = if is_four { fours(module, lead) } else { eights(module, lead) };
        claim
            .map(|claim| vec![claim])
            .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
    }
}

fn is_modelopt(checkpoint: &Checkpoint) -> bool {
    match method(checkpoint) {
        Some(method) => matches!(method, "modelopt" | "modelopt_fp4"),
        None => checkpoint.store.has("hf_quant_config.json"),
    }
}

/// Companions that stay what they are. A scale of inputs that belongs to the weight's own values does not: the adapter would have to be scaled too.
fn keep(module: &Module<'_>, found: &mut Companions<'_, '_>) -> Result<()> {
    if module.get("pre_quant_scale").is_some() || module.get("input_quantizer._pre_quant_scale").is_some() {
        return Err(unsupported("ModelOpt's AWQ, which scales a layer's inputs, is not read")
            .with_hint("take the checkpoint that it was quantized from, and quantize the result afterwards"));
    }
    found.keep(&["input_scale", "output_scale"]);
    Ok(())
}

fn fours(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    let second = found.need(Role::Second, "weight_scale_2")?;
    keep(module, &mut found)?;
    let (matrices, rows, half) = match *lead.shape.as_slice() {
        [rows, half] => (1, rows, half),
        [matrices, rows, half] => (matrices, rows, half),
        _ => return Err(misfit(lead, "a matrix, or a stack of them")),
    };
    let (all, cols) = (matrices * rows, half * 2);
    if scales.dtype != Dtype::F8E4M3 || scales.elements() != (all * cols.div_ceil(GROUP)) as u64 {
        return Err(misfit(scales, &format!("F8_E4M3, a scale per {GROUP} of {cols} columns in each of {all} rows")));
    }
    if second.dtype != Dtype::F32 || second.elements() != 1 && second.elements() != matrices as u64 {
        return Err(misfit(second, "one F32"));
    }
    let mut shape = lead.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = cols;
    }
    let tiles = Tiles::runs(GROUP, rows);
    let values = fp8::values(module.checkpoint);
    Ok(found.claim(Scaled {
        codes: Codes::E2M1,
        second: Second::Multiplies,
        about: format!("groups of {GROUP} under one scale, decodes to {}", values.torch_name()),
        ..fp8::weight("modelopt", &lead.name, &shape, tiles, values, Fresh::Doubled)
    }))
}

fn eights(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    keep(module, &mut found)?;
    let tiles = fp8::tiles(&lead.shape, scales, [fp8::BLOCK; 2])?;
    let values = fp8::values(module.checkpoint);
    Ok(found.claim(fp8::weight("modelopt", &lead.name, &lead.shape, tiles, values, Fresh::Exact { half: 448.0 })))
}
