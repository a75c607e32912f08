//! Whole numbers: packed (`pack-quantized`, also Kimi's INT4) or a byte each (`int-quantized`).
//!
//! Packed parts of `M.weight`: `M.weight_packed` (I32, fields of 1 to 8 bits from the low end of each word; since June 2026 fields of 3, 5, 6 and 7 bits cross words, before that the top bits of
//! words are unused: the width tells which), `M.weight_scale`, `M.weight_shape`; with zeros `M.weight_zero_point`, packed along the rows; with groups in another order
//! `M.weight_g_idx`. A byte each: `M.weight` (I8), `M.weight_scale`, and with zeros `M.weight_zero_point`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::scaled::{Codes, Companions, Fresh, Role, Scaled, Second, Tiles, Zeros, dimensions, misfit};
use super::super::{Claim, Format, Module, Part, Setting, Settings, Weight, fp8};
use super::{KEPT, describe, group_size, matrix, may_be, schemes, values};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::formats::settings::{made, sixteen_bits, whole_groups};
use crate::open::{Entry, ModelConfig};

/// Columns of a group, where the user does not say.
const GROUP: usize = 128;

/// Whole numbers of so many bits, or of those that have no name of their own, as a format.
#[derive(Debug)]
pub(in crate::formats) struct Ints {
    id: &'static str,
    about: &'static str,
}

/// Four bits.
pub(in crate::formats) static INT4: Ints =
    Ints { id: "ct-int4", about: "compressed-tensors, integers of 4 bits in groups of 128" };
/// Eight bits, packed or a byte each.
pub(in crate::formats) static INT8: Ints = Ints { id: "ct-int8", about: "compressed-tensors, integers of 8 bits" };
/// Any other number of bits.
pub(in crate::formats) static INT: Ints = Ints { id: "ct-int", about: "compressed-tensors, integers of 1 to 7 bits" };

fn id(bits: usize) -> &'static str {
    match bits {
        4 => INT4.id,
        8 => INT8.id,
        _ => INT.id,
    }
}

impl Format for Ints {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn reads(&self, name: &str) -> bool {
        name.ends_with(".weight_shape") || name.ends_with(".weight_g_idx")
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        // One looks for weights of all widths.
        if self.id != INT4.id || !may_be(module) {
            return Ok(Vec::new());
        }
        let of = |lead: &Entry, claim: Result<Claim>| {
            claim.map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
        };
        if let Some(lead) = module.get("weight_packed").filter(|lead| lead.dtype == Dtype::I32) {
            return of(lead, packed(module, lead)).map(|claim| vec![claim]);
        }
        match module.get("weight").filter(|lead| lead.dtype == Dtype::I8 && module.get("weight_scale").is_some()) {
            Some(lead) => of(lead, bytes(module, lead)).map(|claim| vec![claim]),
            None => Ok(Vec::new()),
        }
    }

    fn is_made(&self) -> bool {
        self.id != INT.id
    }

    fn settings(&self) -> &'static [Setting] {
        if self.id == INT4.id { &[Setting { name: "block_size", of_scales: false }] } else { &[] }
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let (rows, cols, module) = made(self.id, name, shape)?;
        let (bits, group) = match self.id {
            id if id == INT4.id => (4, settings.group(GROUP)?),
            id if id == INT8.id => (8, cols.max(1)),
            _ => return Err(unsupported(format!("{} is not made from other formats", self.id)).in_tensor(name)),
        };
        whole_groups(name, cols, group, true)?;
        let values = sixteen_bits(values);
        let (groups, codes) = (cols / group, fields(bits, true));
        let part = |leaf: &str, dtype, shape| Part::new(format!("{module}.{leaf}"), dtype, shape);
        let tiles = Tiles::runs(group, rows);
        let weight = Scaled {
            codes,
            about: about(bits, tiles, (rows, cols), false, values),
            parts: vec![
                part("weight_packed", Dtype::I32, vec![rows, codes.row_bytes(cols) / 4]),
                part("weight_scale", values, vec![rows, groups]),
                part("weight_shape", Dtype::I64, vec![2]),
            ],
            roles: vec![Role::Codes, Role::Scales, Role::Kept],
            told: vec![(2, shape.iter().flat_map(|&dim| (dim as i64).to_le_bytes()).collect())],
            ..fp8::weight(self.id, name, shape, tiles, values, fresh(bits, Zeros::None))
        };
        Ok(Arc::new(weight))
    }

    fn describe(&self, config: &mut ModelConfig, settings: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let group = if self.id == INT4.id { Some(settings.group(GROUP)?) } else { None };
        let weights = json!({
            "actorder": null,
            "block_structure": null,
            "dynamic": false,
            "group_size": group,
            "num_bits": if group.is_some() { 4 } else { 8 },
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": if group.is_some() { "group" } else { "channel" },
            "symmetric": true,
            "type": "int",
        });
        describe(config, self.id, ("pack-quantized", &weights), skipped)
    }
}

/// Fields of so many bits for numbers on both sides of 0.
fn fields(bits: usize, dense: bool) -> Codes {
    Codes::Fields { bits, dense, low: -(1 << bits >> 1) }
}

fn about(bits: usize, tiles: Tiles, (rows, cols): (usize, usize), zeros: bool, values: Dtype) -> String {
    let zeros = if zeros { ", with zeros" } else { "" };
    format!("{bits} bits, {}{zeros}, decodes to {}", fp8::shared(tiles, rows, cols), values.torch_name())
}

/// How scales are chosen afresh.
fn fresh(bits: usize, zeros: Zeros) -> Fresh {
    let half = ((1_u32 << bits) - 1) as f32 / 2.0;
    if zeros == Zeros::None { Fresh::Symmetric { half } } else { Fresh::Asymmetric }
}

/// A weight of packed fields.
fn packed(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    let shape_entry = found.need(Role::Kept, "weight_shape")?;
    let shape = dimensions(module, shape_entry)?;
    let (matrices, rows, cols) = matrix(&shape, shape_entry)?;
    let widths: Vec<usize> = schemes(module.checkpoint)
        .filter_map(|scheme| scheme.get("num_bits").and_then(Value::as_u64))
        .map(|bits| bits as usize)
        .filter(|bits| (1..=8).contains(bits))
        .collect();
    let widths = if widths.is_empty() { vec![4, 8, 2, 1, 3, 5, 6, 7] } else { widths };
    let fits = |codes: &Codes| {
        let (packed, words) = (lead.shape.split_last(), codes.row_bytes(cols) / 4);
        packed.is_some_and(|(&last, leading)| last == words && leading.iter().product::<usize>() == matrices * rows)
    };
    let either = |bits: &usize| [fields(*bits, true), fields(*bits, false)];
    let codes = widths.iter().flat_map(either).find(fits).ok_or_else(|| {
        misfit(lead, &format!("words of {} bits for a weight of shape {shape:?}", widths.first().unwrap_or(&4)))
    })?;
    let Codes::Fields { bits, dense, .. } = codes else { return Err(misfit(lead, "packed fields")) };
    let tiles = scales_of(module, scales, (matrices, rows, cols))?;
    let mut zeros = Zeros::None;
    if let Some(entry) = module.get("weight_zero_point") {
        let words = if dense { (rows * bits).div_ceil(32) } else { rows.div_ceil(32 / bits) };
        let groups = tiles.groups(cols);
        if entry.dtype != Dtype::I32 || entry.shape != [words, groups] || tiles.rows != 1 {
            return Err(misfit(entry, &format!("I32 of shape [{words}, {groups}]")));
        }
        found.add(Role::Zeros, entry);
        zeros = Zeros::Packed { bits, dense };
    }
    let groups = match module.get("weight_g_idx") {
        None => None,
        Some(entry) => {
            found.add(Role::Kept, entry);
            groups_of(module, entry, cols, tiles.groups(cols))?
        }
    };
    found.keep(KEPT);
    let (values, fresh) = (values(scales), fresh(bits, zeros));
    let ordered = if groups.is_some() { ", in the order of activations" } else { "" };
    let name = format!("{}.weight", module.path);
    Ok(found.claim(Scaled {
        codes,
        zeros,
        about: about(bits, tiles, (matrices * rows, cols), zeros != Zeros::None, values) + ordered,
        groups,
        ..fp8::weight(id(bits), &name, &shape, tiles, values, fresh)
    }))
}

/// A weight of a byte per value.
fn bytes(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    let (matrices, rows, cols) = matrix(&lead.shape, lead)?;
    let tiles = scales_of(module, scales, (matrices, rows, cols))?;
    let mut zeros = Zeros::None;
    if let Some(entry) = module.get("weight_zero_point") {
        if entry.dtype != Dtype::I8 || entry.elements() != scales.elements() {
            return Err(misfit(entry, &format!("I8 of shape {:?}", scales.shape)));
        }
        found.add(Role::Zeros, entry);
        zeros = Zeros::Numbers;
    }
    found.keep(KEPT);
    let (values, fresh) = (values(scales), fresh(8, zeros));
    Ok(found.claim(Scaled {
        codes: Codes::Bytes,
        zeros,
        second: Second::None,
        about: about(8, tiles, (matrices * rows, cols), zeros != Zeros::None, values),
        ..fp8::weight(INT8.id, &lead.name, &lead.shape, tiles, values, fresh)
    }))
}

/// How scales of one, per row, or per group of a row lie.
fn scales_of(module: &Module<'_>, scales: &Entry, (matrices, rows, cols): (usize, usize, usize)) -> Result<Tiles> {
    if !scales.dtype.is_plain_float() {
        return Err(misfit(scales, "scales of BF16, F16 or F32"));
    }
    let all = matrices * rows;
    let elements = scales.elements() as usize;
    if elements == 1 && all != 1 {
        Ok(Tiles::blocks(all, cols, all))
    } else if all > 0 && elements.is_multiple_of(all) && elements >= all {
        Ok(Tiles::runs(group_size(module.checkpoint, scales, cols, elements / all)?, rows))
    } else if all == 0 && elements == 0 {
        Ok(Tiles::runs(cols, rows))
    } else {
        Err(misfit(scales, &format!("one scale, or some for each of {all} rows")))
    }
}

/// The group of each column, where the index says anything: −1 stands for an index that was never set.
fn groups_of(module: &Module<'_>, entry: &Entry, cols: usize, groups: usize) -> Result<Option<Arc<[u32]>>> {
    if entry.dtype != Dtype::I32 || entry.shape != [cols] {
        return Err(misfit(entry, &format!("I32 of shape [{cols}]")));
    }
    let bytes = module.checkpoint.read_small(entry, super::super::MAX_UNCUT_PART)?;
    super::super::scaled::groups(entry, &bytes, groups)
}
