//! 8-bit floats with a scale for each block of a matrix, as `quant_method: fp8` says: DeepSeek's checkpoints and those made like them.
//!
//! Parts of `M.weight`: the codes (F8_E4M3), and `M.weight_scale_inv` (blocks of 128 × 128 unless `weight_block_size` says otherwise; ragged at the edges), which is a multiplier despite
//! its name, of f32 or of powers of two; or `M.weight_scale`, one for each row or for the matrix. Experts may be stacked: `experts.gate_up_proj` and
//! `experts.gate_up_proj_scale_inv`. The product is computed in f32 and rounded to the model's type. Arithmetic: transformers 5.23, `Fp8Quantize` and `Fp8Dequantize`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::scaled::{Codes, Companions, Fresh, Role, Scaled, Second, Tiles, Zeros, misfit};
use super::{Claim, Format, Module, Part, Settings, Weight, method};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::{Checkpoint, Entry, ModelConfig};

/// Rows and columns of a block, where the configuration does not say.
pub(super) const BLOCK: usize = 128;

/// 8-bit floats as a format.
#[derive(Debug)]
pub(super) struct Fp8;

impl Format for Fp8 {
    fn id(&self) -> &'static str {
        "fp8"
    }

    fn about(&self) -> &'static str {
        "8-bit floats, a scale per block of 128 × 128"
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        if matches!(method(module.checkpoint), Some("compressed-tensors" | "modelopt" | "quanto" | "torchao")) {
            return Ok(Vec::new());
        }
        let leads = module.free().filter(|(leaf, lead)| {
            // A scale may be an 8-bit float too.
            let is_code = lead.dtype == Dtype::F8E4M3 && !leaf.ends_with("_scale") && !leaf.ends_with("_scale_inv");
            is_code || is_four(module, leaf, lead)
        });
        let claim = |(leaf, lead): (&str, &Entry)| {
            of_lead(module, leaf, lead)
                .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
        };
        leads.filter_map(|lead| claim(lead).transpose()).collect()
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        let (rows, cols, module) = super::settings::made("fp8", name, shape)?;
        let scales = vec![rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
        let parts = vec![
            Part::new(name.to_owned(), Dtype::F8E4M3, shape.to_vec()),
            Part::new(format!("{module}.weight_scale_inv"), Dtype::F32, scales),
        ];
        let tiles = Tiles::blocks(BLOCK, BLOCK, rows);
        let weight = Scaled {
            parts,
            roles: vec![Role::Codes, Role::Scales],
            ..weight("fp8", name, shape, tiles, values, Fresh::Inverse { powers: false })
        };
        Ok(Arc::new(weight))
    }

    fn describe(&self, config: &mut ModelConfig, _: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let head = ["lm_head".to_owned()];
        if let Some(own) = config.quantization().filter(|own| own.get("quant_method") == Some(&json!("fp8")))
            && own.get("weight_block_size") != Some(&json!([BLOCK, BLOCK]))
        {
            return Err(mismatch(format!("the base is stored as fp8 already, and not in blocks of {BLOCK} × {BLOCK}"))
                .in_file(&config.path)
                .with_hint("leave out --to: what has the format keeps it"));
        }
        config.remove_everywhere("quantization_config");
        let quantization = json!({
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": skipped.unwrap_or(&head),
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        });
        config.json.insert("quantization_config".into(), quantization);
        Ok(())
    }
}

/// A weight of 8-bit floats without its parts.
pub(super) fn weight(
    format: &'static str,
    name: &str,
    shape: &[usize],
    tiles: Tiles,
    values: Dtype,
    fresh: Fresh,
) -> Scaled {
    let cols = shape.last().copied().unwrap_or(0);
    let rows = shape.iter().rev().skip(1).product();
    Scaled {
        format,
        name: name.to_owned(),
        shape: shape.to_vec(),
        rows,
        cols,
        codes: Codes::E4M3,
        tiles,
        second: Second::None,
        eights: false,
        zeros: Zeros::None,
        groups: None,
        values,
        fresh,
        about: format!("{}, decodes to {}", shared(tiles, rows, cols), values.torch_name()),
        parts: Vec::new(),
        roles: Vec::new(),
        multipliers: None,
        unrounded: None,
        told: Vec::new(),
    }
}

/// What shares a scale, in words.
pub(super) fn shared(tiles: Tiles, rows: usize, cols: usize) -> String {
    match tiles {
        Tiles { rows: 1, cols: own, .. } if own >= cols => "one scale per row".into(),
        Tiles { rows: 1, cols: own, .. } => format!("groups of {own}"),
        Tiles { rows: own, matrix, cols: wide, .. } if own >= matrix && wide >= cols => {
            if matrix < rows {
                "one scale per matrix".into()
            } else {
                "one scale".into()
            }
        }
        Tiles { rows, cols, .. } => format!("blocks of {rows} × {cols}"),
    }
}

fn of_lead(module: &Module<'_>, leaf: &str, lead: &Entry) -> Result<Option<Claim>> {
    let (inverse, direct) = (format!("{leaf}_scale_inv"), format!("{leaf}_scale"));
    let mut found = Companions::new(module, lead);
    let scales = if module.get(&inverse).is_some() {
        found.need(Role::Scales, &inverse)?
    } else if module.get(&direct).is_some() || leaf == "weight" && method(module.checkpoint).is_some() {
        found.need(Role::Scales, &direct)?
    } else {
        // Floats that were merely cast have no scales, and are nobody's.
        return Ok(None);
    };
    // Scales of the layer's activations.
    if leaf == "weight" {
        found.keep(&["input_scale", "activation_scale", "output_scale", "input_scale_ub"]);
    } else {
        let activations = [format!("{leaf}_input_scale"), format!("{leaf}_activation_scale")];
        found.keep(&activations.each_ref().map(String::as_str));
    }
    let values = values(module.checkpoint);
    if is_four(module, leaf, lead) {
        return fours(lead, scales, values).map(|weight| Some(found.claim(weight)));
    }
    let tiles = tiles(&lead.shape, scales, block(module.checkpoint)?)?;
    let powers = !scales.dtype.is_plain_float();
    Ok(Some(found.claim(weight("fp8", &lead.name, &lead.shape, tiles, values, Fresh::Inverse { powers }))))
}

/// True of 4-bit floats, two in a byte, as DeepSeek stores experts beside weights of 8 bits.
fn is_four(module: &Module<'_>, leaf: &str, lead: &Entry) -> bool {
    lead.dtype == Dtype::I8
        && method(module.checkpoint) == Some("fp8")
        && module.get(&format!("{leaf}_scale_inv")).is_some()
}

/// A weight of them. How many values share a scale follows from the number of scales, as transformers reads it.
fn fours(lead: &Entry, scales: &Entry, values: Dtype) -> Result<Scaled> {
    let mut shape = lead.shape.clone();
    let (Some(last), [leading @ .., lines, groups]) = (shape.last_mut(), scales.shape.as_slice()) else {
        return Err(misfit(scales, "a matrix of scales"));
    };
    *last = last.checked_mul(2).ok_or_else(|| misfit(lead, "a matrix of bytes"))?;
    let [stack @ .., rows, cols] = shape.as_slice() else { return Err(misfit(lead, "a matrix, or a stack of them")) };
    let is_whole = |of: usize, count: usize, step: usize| count > 0 && of.is_multiple_of(count * step);
    let is_scale = matches!(scales.dtype, Dtype::F8E8M0 | Dtype::U8) || scales.dtype.is_plain_float();
    if stack != leading || stack.len() > 1 || !is_whole(*rows, *lines, 1) || !is_whole(*cols, *groups, 16) || !is_scale
    {
        return Err(misfit(scales, &format!("scales for equal tiles of a weight of shape {shape:?}")));
    }
    let tiles = Tiles::blocks(rows / lines, cols / groups, *rows);
    let fresh = if scales.dtype.is_plain_float() { Fresh::Exact { half: 6.0 } } else { Fresh::Powers { up: false } };
    let about = format!(
        "4 bits, {}, decodes to {}",
        shared(tiles, stack.iter().product::<usize>() * rows, *cols),
        values.torch_name()
    );
    Ok(Scaled { codes: Codes::E2M1, about, ..weight("fp8", &lead.name, &shape, tiles, values, fresh) })
}

/// How scales of that shape lie in a weight of 8-bit floats.
pub(super) fn tiles(shape: &[usize], scales: &Entry, block: [usize; 2]) -> Result<Tiles> {
    let (matrices, rows, cols) = match *shape {
        [rows, cols] => (1, rows, cols),
        [matrices, rows, cols] => (matrices, rows, cols),
        _ => {
            return Err(malformed(format!(
                "8-bit floats of shape {shape:?}: a matrix was expected, or a stack of them"
            )));
        }
    };
    let is_scale = scales.dtype.is_plain_float() || matches!(scales.dtype, Dtype::F8E8M0 | Dtype::U8);
    let blocks = [rows.div_ceil(block[0].max(1)), cols.div_ceil(block[1].max(1))];
    // Dimensions of 1 do not tell a stack from a matrix, nor a column from a row.
    let flat = |dims: &[usize]| dims.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
    let have = flat(&scales.shape);
    let whole = Tiles::blocks(rows, cols, rows);
    let fits = |dims: &[usize]| have == flat(dims);
    let tiles = if fits(&[]) && scales.elements() == 1 && (blocks != [1, 1] || matrices > 1) {
        Tiles::blocks(matrices * rows, cols, matrices * rows)
    } else if scales.shape.len() >= 2 && fits(&[matrices, blocks[0], blocks[1]]) {
        Tiles::blocks(block[0], block[1], rows)
    } else if fits(&[matrices, rows]) {
        Tiles::runs(cols, rows)
    } else if fits(&[matrices]) {
        whole
    } else {
        return Err(misfit(
            scales,
            &format!(
                "one scale, one for each of {rows} rows, or {} × {} for blocks of {} × {}, for a weight of shape {shape:?}",
                blocks[0], blocks[1], block[0], block[1]
            ),
        ));
    };
    if is_scale { Ok(tiles) } else { Err(misfit(scales, "scales of F32, BF16, F16 or F8_E8M0")) }
}

/// The configuration's block; an error if it has no extent.
fn block(checkpoint: &Checkpoint) -> Result<[usize; 2]> {
    let config = checkpoint.config.as_ref();
    let given = config.and_then(|config| config.quantization()).and_then(|about| about.get("weight_block_size"));
    let Some(given) = given.filter(|given| !given.is_null()) else { return Ok([BLOCK; 2]) };
    let sides: Option<Vec<u64>> = given.as_array().and_then(|sides| sides.iter().map(Value::as_u64).collect());
    match sides.as_deref() {
        Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok([rows as usize, cols as usize]),
        _ => Err(wrong_block(checkpoint, given)),
    }
}

fn wrong_block(checkpoint: &Checkpoint, given: &Value) -> Error {
    let file = checkpoint.config.as_ref().map_or(checkpoint.path.as_path(), |config| config.path.as_path());
    malformed(format!("`weight_block_size` is {given}, expected two positive numbers"))
        .in_file(file)
        .with_hint("most checkpoints have [128, 128]")
}

/// The type that the model computes in: what a loader makes of these weights.
pub(super) fn values(checkpoint: &Checkpoint) -> Dtype {
    let config = checkpoint.config.as_ref();
    let named = config.and_then(|config| config.find("dtype").or_else(|| config.find("torch_dtype")));
    let named = named.and_then(Value::as_str).and_then(Dtype::from_torch_name);
    named.filter(|dtype| dtype.is_plain_float()).unwrap_or(Dtype::BF16)
}
