//! MLX: whole numbers in groups with a scale and an offset (`affine`), or small floats in groups with an exponent or an 8-bit float (`mxfp4`, `mxfp8`, `nvfp4`).
//!
//! Parts of `M.weight`: the codes (U32, one stream of fields per row from the low end of each word), `M.scales`, and `M.biases` of the affine kind. Its values are `q · s + b`, rounded to
//! the type of the scales after either operation. The configuration's `quantization` says how many share a scale, for all modules or for one. Arithmetic: mlx 0.32 on a CPU.

use std::sync::Arc;

use serde_json::{Value, json};

use super::scaled::{Codes, Companions, Fresh, Role, Scaled, Tiles, misfit};
use super::settings::{made, sixteen_bits, whole_groups};
use super::{Claim, Format, Module, Part, Setting, Settings, Weight, fp8};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::open::{Entry, ModelConfig};

/// Bits of a code and columns of a group, where the user does not say.
const BITS: usize = 4;
const GROUP: usize = 64;

/// MLX as a format.
#[derive(Debug)]
pub(super) struct Mlx;

impl Format for Mlx {
    fn id(&self) -> &'static str {
        "mlx"
    }

    fn takes_conv1d(&self) -> bool {
        true
    }

    fn about(&self) -> &'static str {
        "MLX, integers of 2 to 8 bits with scales and offsets, or small floats"
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting { name: "bits", of_scales: false }, Setting { name: "block_size", of_scales: false }]
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let (rows, cols, module) = made("mlx", name, shape)?;
        let (bits, size) = (bits(settings)?, settings.group(GROUP)?);
        whole_groups(name, cols, size, true)?;
        // As mlx-lm converts a model.
        let values = sixteen_bits(values);
        let part = |leaf: &str, dtype, cols| Part::new(format!("{module}.{leaf}"), dtype, vec![rows, cols]);
        let tiles = Tiles::runs(size, rows);
        Ok(Arc::new(Scaled {
            codes: Codes::Fields { bits, dense: true, low: 0 },
            about: about(bits, size, values),
            parts: vec![
                part("weight", Dtype::U32, cols * bits / 32),
                part("scales", values, cols / size),
                part("biases", values, cols / size),
            ],
            roles: vec![Role::Codes, Role::Scales, Role::Offsets],
            ..fp8::weight("mlx", name, shape, tiles, values, Fresh::Edge)
        }))
    }

    fn describe(&self, config: &mut ModelConfig, settings: &Settings, _: Option<&[String]>) -> Result<()> {
        let (bits, size) = (bits(settings)?, settings.group(GROUP)?);
        let own = config.quantization().filter(|own| own.contains_key("bits") && !own.contains_key("quant_method"));
        let about = match own {
            None => json!({"bits": bits, "group_size": size, "mode": "affine"}),
            Some(own) => {
                let mode = own.get("mode").is_none_or(|mode| mode == "affine");
                if own.get("bits") != Some(&json!(bits)) || own.get("group_size") != Some(&json!(size)) || !mode {
                    let problem =
                        format!("the base is stored as mlx already, and not with {bits} bits in groups of {size}");
                    return Err(mismatch(problem)
                        .in_file(&config.path)
                        .with_hint("leave out --to: what has the format keeps it"));
                }
                Value::Object(own.clone())
            }
        };
        // mlx-lm writes it twice: under its own name, and under the one that others read.
        config.remove_everywhere("quantization_config");
        config.json.insert("quantization".into(), about.clone());
        config.json.insert("quantization_config".into(), about);
        Ok(())
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let lead = module.get("weight").filter(|lead| lead.dtype == Dtype::U32 && module.get("scales").is_some());
        let Some(lead) = lead else { return Ok(Vec::new()) };
        let named = |error: Error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead));
        of_module(module, lead).map(|claim| vec![claim]).map_err(named)
    }
}

fn bits(settings: &Settings) -> Result<usize> {
    settings.one_of("bits", BITS, &[2, 3, 4, 5, 6, 8])
}

fn about(bits: usize, size: usize, values: Dtype) -> String {
    format!("{bits} bits, groups of {size}, decodes to {}", values.torch_name())
}

/// A field that the configuration has for a module, or for all.
fn said<'c>(module: &Module<'c>, key: &str) -> Option<&'c Value> {
    let config = module.checkpoint.config.as_ref()?;
    let about = config.find("quantization").or_else(|| config.find("quantization_config"))?.as_object()?;
    about.get(module.path).and_then(|own| own.get(key)).or_else(|| about.get(key))
}

fn of_module(module: &Module<'_>, lead: &Entry) -> Result<Claim> {
    let mut found = Companions::new(module, lead);
    let scales = found.need(Role::Scales, "scales")?;
    let biases = module.get("biases");
    let size = said(module, "group_size").and_then(Value::as_u64).unwrap_or(64) as usize;
    if size == 0 {
        let file = module.checkpoint.config.as_ref().map_or(module.checkpoint.path.as_path(), |config| &config.path);
        return Err(malformed("`group_size` is 0: a group has no columns")
            .in_file(file)
            .with_hint("take the size that the model was quantized with: 32, 64 or 128"));
    }
    let ((Some((&words, leading)), Some((&groups, of_scales))), true) =
        ((lead.shape.split_last(), scales.shape.split_last()), lead.shape.len() >= 2)
    else {
        return Err(misfit(lead, "a matrix of words"));
    };
    let cols = groups.checked_mul(size).filter(|cols| *cols > 0).ok_or_else(|| misfit(scales, "a scale per group"))?;
    let bits = words.saturating_mul(32) / cols;
    if leading != of_scales {
        return Err(misfit(scales, &format!("a row of scales for each of {leading:?} rows")));
    }
    let wrong = || misfit(lead, &format!("words of 2, 3, 4, 5, 6 or 8 bits for {groups} groups of {size} columns"));
    if cols * bits != words * 32 {
        return Err(wrong());
    }
    let (codes, values, fresh) = match biases {
        Some(biases) => {
            if biases.dtype != scales.dtype || biases.shape != scales.shape || !scales.dtype.is_plain_float() {
                return Err(misfit(biases, &format!("{} of shape {:?}", scales.dtype, scales.shape)));
            }
            found.add(Role::Offsets, biases);
            if !matches!(bits, 2..=6 | 8) {
                return Err(wrong());
            }
            (Codes::Fields { bits, dense: true, low: 0 }, scales.dtype, Fresh::Edge)
        }
        None if !matches!(scales.dtype, Dtype::U8 | Dtype::F8E8M0 | Dtype::F8E4M3) => {
            return Err(misfit(scales, "exponents, where there are no biases"));
        }
        None => {
            let codes = match bits {
                4 => Codes::E2M1,
                8 => Codes::E4M3,
                _ => return Err(misfit(lead, &format!("words of 4 or 8 bits for {groups} groups of {size} columns"))),
            };
            let fresh = if size == 16 { Fresh::Doubled } else { Fresh::Powers { up: true } };
            (codes, fp8::values(module.checkpoint), fresh)
        }
    };
    let mut shape = leading.to_vec();
    shape.push(cols);
    let matrix = leading.last().copied().unwrap_or(1).max(1);
    let tiles = Tiles::runs(size, matrix);
    // Groups of 16 have 8-bit floats for scales.
    let nvfp4 = size == 16 && scales.dtype == Dtype::U8 && biases.is_none();
    let about = about(bits, size, values);
    let weight = Scaled { codes, about, eights: nvfp4, ..fp8::weight("mlx", &lead.name, &shape, tiles, values, fresh) };
    Ok(found.claim(weight))
}
