//! Small floats: FP8 (`float-quantized`), NVFP4 and MXFP4 (two in a byte), MXFP8.
//!
//! Parts of `M.weight`: FP8 and MXFP8 have the codes under that name, the others `M.weight_packed` (U8). `M.weight_scale`: of FP8 one, one per row or one per block, in the type
//! of the model; of NVFP4 one 8-bit float per 16 values, divided by `M.weight_global_scale`; of the MX types an exponent per 32.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::scaled::{Codes, Companions, Fresh, Role, Scaled, Second, Tiles, misfit};
use super::super::{Claim, Format, Module, Part, Settings, Weight, fp8};
use super::{KEPT, matrix, may_be, schemes, values};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::formats::settings::{made, sixteen_bits, whole_groups};
use crate::open::{Checkpoint, Entry, ModelConfig};

/// Small floats of one kind as a format.
#[derive(Debug)]
pub(in crate::formats) struct Floats {
    id: &'static str,
    about: &'static str,
}

/// 8-bit floats.
pub(in crate::formats) static FP8: Floats = Floats { id: "ct-fp8", about: "compressed-tensors, 8-bit floats" };
/// 4-bit floats under 8-bit floats under a 32-bit float.
pub(in crate::formats) static NVFP4: Floats =
    Floats { id: "ct-nvfp4", about: "compressed-tensors, NVFP4: 4-bit floats in groups of 16" };
/// 4-bit floats under exponents.
pub(in crate::formats) static MXFP4: Floats =
    Floats { id: "ct-mxfp4", about: "compressed-tensors, MXFP4: 4-bit floats in groups of 32" };
/// 8-bit floats under exponents.
pub(in crate::formats) static MXFP8: Floats =
    Floats { id: "ct-mxfp8", about: "compressed-tensors, MXFP8: 8-bit floats in groups of 32" };

impl Format for Floats {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        // One looks for weights of all kinds.
        if self.id != FP8.id || !may_be(module) {
            return Ok(Vec::new());
        }
        let packed = module.get("weight_packed").filter(|lead| lead.dtype == Dtype::U8);
        let coded = || {
            module
                .get("weight")
                .filter(|lead| lead.dtype == Dtype::F8E4M3 && super::config(module.checkpoint).is_some())
        };
        let Some(lead) = packed.or_else(coded) else { return Ok(Vec::new()) };
        let claim = if packed.is_some() { nibbles(module, lead) } else { eights(module, lead) };
        claim
            .map(|claim| vec![claim])
            .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))
    }

    fn is_made(&self) -> bool {
        self.made().is_some()
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        let (rows, cols, module) = made(self.id, name, shape)?;
        let Some(Made { size, .. }) = self.made() else {
            return Err(unsupported(format!("{} is not made from other formats", self.id)).in_tensor(name));
        };
        whole_groups(name, cols, size, false)?;
        let part = |leaf: &str, dtype, shape| Part::new(format!("{module}.{leaf}"), dtype, shape);
        let scales = if self.id == NVFP4.id { Dtype::F8E4M3 } else { Dtype::U8 };
        let mut parts = vec![
            part("weight_packed", Dtype::U8, vec![rows, cols / 2]),
            part("weight_scale", scales, vec![rows, cols / size]),
        ];
        let mut roles = vec![Role::Codes, Role::Scales];
        if self.id == NVFP4.id {
            parts.push(part("weight_global_scale", Dtype::F32, vec![1]));
            roles.push(Role::Second);
        }
        let tiles = Tiles::runs(size, rows);
        Ok(Arc::new(Scaled { parts, roles, ..self.fours(name, shape, tiles, sixteen_bits(values)) }))
    }

    fn describe(&self, config: &mut ModelConfig, _: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let Some(Made { size, layout, strategy, scales }) = self.made() else { return Ok(()) };
        let weights = json!({
            "actorder": null,
            "block_structure": null,
            "dynamic": false,
            "group_size": size,
            "num_bits": 4,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": scales,
            "strategy": strategy,
            "symmetric": true,
            "type": "float",
        });
        super::describe(config, self.id, (layout, &weights), skipped)
    }
}

/// How 4-bit floats are stored where they are made, and called.
struct Made {
    /// Columns of a group.
    size: usize,
    layout: &'static str,
    strategy: &'static str,
    scales: &'static str,
}

impl Floats {
    /// Of the 4-bit kinds; the others are read, and written back where a base has them.
    fn made(&self) -> Option<Made> {
        match self.id {
            id if id == NVFP4.id => Some(Made {
                size: 16,
                layout: "nvfp4-pack-quantized",
                strategy: "tensor_group",
                scales: "torch.float8_e4m3fn",
            }),
            id if id == MXFP4.id => {
                Some(Made { size: 32, layout: "mxfp4-pack-quantized", strategy: "group", scales: "torch.uint8" })
            }
            _ => None,
        }
    }

    /// A weight of 4-bit floats without its parts.
    fn fours(&self, name: &str, shape: &[usize], tiles: Tiles, values: Dtype) -> Scaled {
        let (second, fresh, about) = if self.id == NVFP4.id {
            (Second::Divides, Fresh::Doubled, "groups of 16 under one scale")
        } else {
            (Second::None, Fresh::Powers { up: false }, "groups of 32")
        };
        Scaled {
            codes: Codes::E2M1,
            second,
            about: format!("{about}, decodes to {}", values.torch_name()),
            ..fp8::weight(self.id, name, shape, tiles, values, fresh)
        }
    }
}

fn is_exponent(scales: &Entry) -> bool {
    matches!(scales.dtype, Dtype::U8 | Dtype::F8E8M0)
}

/// Groups of so many columns, with a scale for each.
fn grouped(scales: &Entry, shape: &[usize], lead: &Entry, size: usize) -> Result<Tiles> {
    let (matrices, rows, cols) = matrix(shape, lead)?;
    if scales.elements() != (matrices * rows * cols.div_ceil(size)) as u64 {
        return Err(misfit(
            scales,
            &format!("a scale per {size} of {cols} columns in each of {} rows", matrices * rows),
        ));
    }
    Ok(Tiles::runs(size, rows))
}

/// 4-bit floats.
fn nibbles(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    let mut shape = lead.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = last.saturating_mul(2);
    }
    let name = format!("{}.weight", module.path);
    let (kind, size) = if scales.dtype == Dtype::F8E4M3 {
        let global = found.need(Role::Second, "weight_global_scale")?;
        let (matrices, ..) = matrix(&shape, lead)?;
        if global.dtype != Dtype::F32 || global.elements() != 1 && global.elements() != matrices as u64 {
            return Err(misfit(global, "one F32"));
        }
        (&NVFP4, 16)
    } else if is_exponent(scales) {
        (&MXFP4, 32)
    } else {
        return Err(misfit(scales, "scales of F8_E4M3 or U8"));
    };
    found.keep(KEPT);
    found.keep(&["weight_shape"]);
    let tiles = grouped(scales, &shape, lead, size)?;
    Ok(found.claim(kind.fours(&name, &shape, tiles, fp8::values(module.checkpoint))))
}

/// 8-bit floats.
fn eights(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "weight_scale")?;
    found.keep(KEPT);
    let grouped = is_exponent(scales).then(|| grouped(scales, &lead.shape, lead, 32));
    let (format, tiles, fresh) = match grouped {
        Some(tiles) => (MXFP8.id, tiles?, Fresh::Powers { up: false }),
        None => (FP8.id, fp8::tiles(&lead.shape, scales, block(module.checkpoint))?, Fresh::Symmetric { half: 448.0 }),
    };
    Ok(found.claim(fp8::weight(format, &lead.name, &lead.shape, tiles, values(scales), fresh)))
}

/// The block that the configuration names.
fn block(checkpoint: &Checkpoint) -> [usize; 2] {
    let sides = |scheme: &serde_json::Map<String, Value>| {
        let sides = scheme.get("block_structure")?.as_array()?;
        match (sides.first()?.as_u64()?, sides.get(1)?.as_u64()?) {
            (rows, cols) if rows > 0 && cols > 0 => Some([rows as usize, cols as usize]),
            _ => None,
        }
    };
    schemes(checkpoint).find_map(sides).unwrap_or([128, 128])
}
