//! HQQ: whole numbers of 1 to 8 bits with a scale and a zero, which need not be whole, for each group of a row, or of a column.
//!
//! Parts of `M.weight`, as hqq's state dictionary has them: `M.W_q`, `M.scale`, `M.zero`, and what it keeps of its settings, each a tensor (`nbits`, `axis`, `shape`, `packing` and
//! others; text is stored as bytes). The matrix is cut into groups in the order of its elements (`axis` 1), or into as many lines as a group is long (`axis` 0); a word holds codes that
//! lie far from each other, so that a weight is decoded as a whole. Values are `(q − z) · s`, rounded to the type of the scales after either operation. Arithmetic: hqq 0.2.8.

use super::scaled::{Blocks, Codes, Companions, Fresh, Role, Scaled, Tiles, Zeros, dimensions, misfit};
use super::{Claim, Format, Module, fp8};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::open::Entry;

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

    fn is_made(&self) -> bool {
        false
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

/// How codes are packed, by hqq's word for it: bits, codes of a word, and its bytes.
fn packed(packing: &[u8]) -> Option<(usize, usize, usize)> {
    match packing {
        b"8bit_u8" => Some((8, 1, 1)),
        b"4bit_u8" => Some((4, 2, 1)),
        b"3bit_32" => Some((3, 10, 4)),
        b"2bit_u8" => Some((2, 4, 1)),
        b"1bit_u8" => Some((1, 8, 1)),
        _ => None,
    }
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
    let (field, fields, word) = packed(&word).ok_or_else(|| misfit(packing_entry, "a packing of hqq's"))?;
    if !(1..=field as i64).contains(&bits) {
        return Err(misfit(bits_entry, &format!("1 to {field} bits")));
    }
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
    let blocks = Blocks { bits: field, fields, word, descending: true, words, low: 0, levels: 1 << bits };
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
    let along = if by_columns { " of columns" } else { "" };
    // hqq rounds zeros of four bits, unless told otherwise.
    let fresh = Fresh::Reciprocal { whole: bits == 4 };
    Ok(found.claim(Scaled {
        codes: Codes::Blocks(blocks),
        zeros: Zeros::Fractional,
        groups,
        about: format!("{bits} bits, groups of {size}{along}, decodes to {}", values.torch_name()),
        ..fp8::weight("hqq", &name, &[rows, cols], tiles, values, fresh)
    }))
}

const ORIGINAL: &str = "take the checkpoint that it was quantized from, and quantize the result afterwards";
