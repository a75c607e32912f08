//! HQQ: whole numbers of 1 to 8 bits with a scale and a zero, which need not be whole, for each group of a row, or of a column.
//!
//! Parts of `M.weight`, as hqq's state dictionary has them: `M.W_q`, `M.scale`, `M.zero`, and what it keeps of its settings, each a tensor (`nbits`, `axis`, `shape`, `packing` and
//! others; text is stored as bytes). The matrix is cut into groups in the order of its elements (`axis` 1), or into as many lines as a group is long (`axis` 0); a word holds codes that
//! lie far from each other, so that a weight is decoded as a whole. Values are `(q − z) · s`, rounded to the type of the scales after either operation. Arithmetic: hqq 0.2.8.

use std::sync::Arc;

use serde_json::json;

use super::scaled::{Blocks, Codes, Companions, Fresh, Role, Scaled, Tiles, Zeros, dimensions, misfit};
use super::settings::{made, sixteen_bits, whole_groups};
use super::{Claim, Format, Module, Part, Setting, Settings, Weight, fp8};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::open::{Entry, ModelConfig};

/// Bits of a code and columns of a group, where the user does not say.
const BITS: usize = 4;
const GROUP: usize = 64;

/// HQQ as a format.
#[derive(Debug)]
pub(super) struct Hqq;

/// What is kept of the settings beside those that are read.
const KEPT: &[&str] = &[
    "group_size",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];

/// Most bytes that a setting takes.
const SETTING: u64 = 64;

impl Format for Hqq {
    fn id(&self) -> &'static str {
        "hqq"
    }

    fn about(&self) -> &'static str {
        "HQQ, integers of 1 to 8 bits in groups with fitted zeros"
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting { name: "bits", of_scales: false }, Setting { name: "block_size", of_scales: false }]
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let (rows, cols, module) = made("hqq", name, shape)?;
        let (bits, size) = chosen(settings)?;
        whole_groups(name, cols, size, true)?;
        let values = sixteen_bits(values);
        let (packing, field, fields, word) = packing(bits);
        let groups = rows * cols / size;
        if word == 1 && !groups.is_multiple_of(fields) {
            let problem = format!("hqq packs {fields} groups into a byte, and it has {groups}");
            return Err(mismatch(problem).in_tensor(name).with_hint("take another format"));
        }
        let lines = groups.div_ceil(fields);
        let part = |leaf: &str, dtype, shape| Part::new(format!("{module}.{leaf}"), dtype, shape);
        let mut weight = Scaled {
            codes: Codes::Blocks(blocks((field, fields, word), bits, lines * size)),
            zeros: Zeros::Fractional,
            about: about(bits, size, false, values),
            parts: vec![
                part("W_q", if word == 1 { Dtype::U8 } else { Dtype::I32 }, vec![lines, size]),
                part("scale", values, vec![groups, 1]),
                part("zero", values, vec![groups, 1]),
            ],
            roles: vec![Role::Codes, Role::Scales, Role::Zeros],
            ..fp8::weight("hqq", name, shape, Tiles::runs(size, rows), values, fresh(bits))
        };
        let number = |number: usize| (Dtype::I32, Vec::new(), (number as i32).to_le_bytes().to_vec());
        let text = |text: String| (Dtype::U8, vec![text.len()], text.into_bytes());
        let flag = |flag: bool| (Dtype::U8, Vec::new(), vec![u8::from(flag)]);
        let dimensions = shape.iter().flat_map(|&dim| (dim as i64).to_le_bytes()).collect();
        let settings = [
            ("nbits", number(bits)),
            ("axis", number(1)),
            ("shape", (Dtype::I64, vec![2], dimensions)),
            ("packing", text(packing.into())),
            ("group_size", number(size)),
            ("unpack_view_dtype", text(if word == 1 { "torch.uint8" } else { "torch.int32" }.into())),
            ("view_as_float", flag(false)),
            ("quant_scale", flag(false)),
            ("quant_zero", flag(false)),
            ("compute_dtype", text(format!("torch.{}", values.torch_name()))),
            ("offload_meta", flag(false)),
            ("encoded_state_dict", flag(true)),
            ("stores_quant_config", flag(true)),
            ("channel_wise", flag(true)),
            ("optimize", flag(false)),
            ("round_zero", flag(bits == 4)),
        ];
        for (leaf, (dtype, shape, bytes)) in settings {
            weight.told.push((weight.parts.len(), bytes));
            weight.parts.push(part(leaf, dtype, shape));
            weight.roles.push(Role::Kept);
        }
        Ok(Arc::new(weight))
    }

    fn describe(&self, config: &mut ModelConfig, settings: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let (bits, size) = chosen(settings)?;
        if let Some(own) = config.quantization().filter(|own| own.get("quant_method") == Some(&json!("hqq"))) {
            let said = |key: &str| own.get("quant_config")?.get("weight_quant_params")?.get(key)?.as_u64();
            let chosen = [("nbits", bits), ("group_size", size), ("axis", 1)];
            let same = chosen.iter().all(|(key, value)| said(key) == Some(*value as u64));
            return if same {
                Ok(())
            } else {
                let problem = format!(
                    "the base is stored as hqq already, and its configuration does not say {bits} bits in groups of {size} for all of it"
                );
                Err(mismatch(problem).in_file(&config.path).with_hint("leave out --to: what has the format keeps it"))
            };
        }
        // In full: the last part of a path may be that of a layer which is quantized.
        let name = |module: &String| module.trim_start_matches('^').trim_end_matches('$').to_owned();
        let plain = skipped.map_or_else(|| vec!["lm_head".into()], |modules| modules.iter().map(name).collect());
        let weights = json!({
            "axis": 1,
            "channel_wise": true,
            "group_size": size,
            "nbits": bits,
            "optimize": false,
            "round_zero": bits == 4,
            "view_as_float": false,
        });
        let quantization = json!({
            "quant_config": {"scale_quant_params": null, "weight_quant_params": weights, "zero_quant_params": null},
            "quant_method": "hqq",
            "skip_modules": plain,
        });
        config.remove_everywhere("quantization_config");
        config.json.insert("quantization_config".into(), quantization);
        Ok(())
    }

    fn reads(&self, name: &str) -> bool {
        [".nbits", ".axis", ".shape", ".packing", ".quant_scale", ".quant_zero"].iter().any(|end| name.ends_with(end))
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let Some(lead) = module.get("W_q") else { return Ok(Vec::new()) };
        of_module(module, lead)
            .map(|claim| vec![claim])
            .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
    }
}

/// A setting that is a number.
fn number(module: &Module<'_>, entry: &Entry) -> Result<i64> {
    let bytes = module.checkpoint.read_small(entry, SETTING)?;
    let number = match entry.dtype {
        Dtype::I64 => bytes.first_chunk().map(|bytes| i64::from_le_bytes(*bytes)),
        Dtype::I32 => bytes.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes))),
        Dtype::U8 | Dtype::Bool => bytes.first().map(|&byte| i64::from(byte)),
        _ => None,
    };
    number.filter(|_| entry.elements() == 1).ok_or_else(|| misfit(entry, "one whole number"))
}

/// Bits and columns of a group, as the user chose them.
fn chosen(settings: &Settings) -> Result<(usize, usize)> {
    Ok((settings.one_of("bits", BITS, &[1, 2, 3, 4, 5, 6, 8])?, settings.group(GROUP)?))
}

/// How codes are packed: hqq's word for it, bits of a field, fields of a word, and its bytes.
const PACKINGS: [(&str, usize, usize, usize); 5] =
    [("8bit_u8", 8, 1, 1), ("4bit_u8", 4, 2, 1), ("3bit_32", 3, 10, 4), ("2bit_u8", 2, 4, 1), ("1bit_u8", 1, 8, 1)];

/// The one that hqq takes for so many bits: the narrowest that holds them.
fn packing(bits: usize) -> (&'static str, usize, usize, usize) {
    PACKINGS.into_iter().rev().find(|(_, field, ..)| *field >= bits).unwrap_or(PACKINGS[0])
}

/// So many words of codes.
fn blocks((bits, fields, word): (usize, usize, usize), of_code: usize, words: usize) -> Blocks {
    Blocks { bits, fields, word, descending: true, words, low: 0, levels: 1 << of_code }
}

fn about(bits: usize, size: usize, by_columns: bool, values: Dtype) -> String {
    let along = if by_columns { " of columns" } else { "" };
    format!("{bits} bits, groups of {size}{along}, decodes to {}", values.torch_name())
}

/// How scales and zeros are chosen afresh: zeros of four bits are rounded, unless hqq is told otherwise.
fn fresh(bits: usize) -> Fresh {
    Fresh::Reciprocal { whole: bits == 4 }
}

fn of_module(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "scale")?;
    let zeros = found.need(Role::Zeros, "zero")?;
    let [bits, axis, shape, packing] = ["nbits", "axis", "shape", "packing"].map(|leaf| found.need(Role::Kept, leaf));
    let (bits_entry, axis_entry, shape_entry, packing_entry) = (bits?, axis?, shape?, packing?);
    found.keep(KEPT);
    for flag in ["quant_scale", "quant_zero"] {
        if let Some(entry) = module.get(flag)
            && number(module, entry)? != 0
        {
            return Err(unsupported("HQQ with scales or zeros that are quantized too is not read").with_hint(ORIGINAL));
        }
    }
    let bits = number(module, bits_entry)?;
    let word = module.checkpoint.read_small(packing_entry, SETTING)?;
    let (_, field, fields, word) = (PACKINGS.into_iter().find(|(own, ..)| own.as_bytes() == word))
        .ok_or_else(|| misfit(packing_entry, "a packing of hqq's"))?;
    let bits = usize::try_from(bits).ok().filter(|bits| (1..=field).contains(bits));
    let bits = bits.ok_or_else(|| misfit(bits_entry, &format!("1 to {field} bits")))?;
    let &[rows, cols] = dimensions(module, shape_entry)?.as_slice() else {
        return Err(misfit(shape_entry, "two dimensions"));
    };
    if !scales.dtype.is_plain_float() {
        return Err(misfit(scales, "scales of F16, BF16 or F32"));
    }
    if zeros.dtype != scales.dtype || zeros.elements() != scales.elements() {
        return Err(misfit(zeros, &format!("{} of shape {:?}", scales.dtype, scales.shape)));
    }
    let (elements, count) = (rows * cols, scales.elements() as usize);
    let size = elements.checked_div(count).filter(|size| *size > 0 && size * count == elements);
    let size = size.ok_or_else(|| misfit(scales, &format!("a scale for each group of {elements} values")))?;
    let by_columns = number(module, axis_entry)? == 0;
    let (lines, width) = if by_columns { (size, count) } else { (count, size) };
    // A scale's values stay within a row; or within a column, or columns that are as far apart as there are scales.
    let is_whole =
        if by_columns { count.is_multiple_of(cols) || cols.is_multiple_of(count) } else { cols.is_multiple_of(size) };
    if !is_whole {
        return Err(unsupported(format!("groups of {size} do not fit rows of {cols} values")).with_hint(ORIGINAL));
    }
    let words = lines.div_ceil(fields) * width;
    if lead.bytes != (words * word) as u64 {
        return Err(misfit(
            lead,
            &format!("{words} words of {word} bytes, as many as {bits} bits take for {elements} values"),
        ));
    }
    let mut groups = None;
    let tiles = if !by_columns {
        Tiles::runs(size, rows)
    } else if count < cols {
        groups = Some((0..cols).map(|column| (column % count) as u32).collect());
        Tiles::blocks(rows, cols / count, rows)
    } else {
        Tiles::spread(size, rows)
    };
    let (name, values) = (format!("{}.weight", module.path), scales.dtype);
    Ok(found.claim(Scaled {
        codes: Codes::Blocks(blocks((field, fields, word), bits, words)),
        zeros: Zeros::Fractional,
        groups,
        about: about(bits, size, by_columns, values),
        ..fp8::weight("hqq", &name, &[rows, cols], tiles, values, fresh(bits))
    }))
}

const ORIGINAL: &str = "take the checkpoint that it was quantized from, and quantize the result afterwards";
