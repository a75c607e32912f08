//! bitsandbytes LLM.int8: one signed byte per weight, one f32 absmax per row.
//!
//! Parts of `M.weight`: the codes (I8), `M.SCB` (the absmax itself), and `M.weight_format` (a scalar 0; other layouts are
//! a GPU's own and cannot be loaded anywhere). Arithmetic: bitsandbytes 0.50.2 on the CPU, `int8_vectorwise_quant`.

use std::ops::Range;
use std::sync::Arc;

use super::bnb_config;
use super::{
    Choices, Claim, Format, Geometry, Grid, Levels, Module, OnGrid, Part, Settings, Settled, Weight, Writer,
    float_bytes, floats, grow, part,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch, unsupported};
use crate::open::{Entry, ModelConfig};
use crate::simd::rows8;

/// LLM.int8 as a format.
#[derive(Debug)]
pub(super) struct Int8;

impl Format for Int8 {
    fn id(&self) -> &'static str {
        "int8"
    }

    fn takes_conv1d(&self) -> bool {
        true
    }

    fn about(&self) -> &'static str {
        "bitsandbytes LLM.int8, one scale per row"
    }

    fn reads(&self, name: &str) -> bool {
        name.ends_with(".weight_format")
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let Some(lead) = module.get("weight").filter(|lead| lead.dtype == Dtype::I8) else {
            return Ok(Vec::new());
        };
        let named = |error: Error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead));
        self.of_module(module, lead).map(|claim| claim.into_iter().collect()).map_err(named)
    }
    fn create(&self, name: &str, shape: &[usize], _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        match (shape, name.strip_suffix(".weight")) {
            (&[rows, cols], Some(_)) => Ok(Arc::new(Int8Weight::new(name, rows, cols))),
            _ => Err(mismatch(format!("int8 stores matrices named `….weight`, not shape {shape:?}")).in_tensor(name)),
        }
    }

    fn describe(&self, config: &mut ModelConfig, _: &Settings, skipped: Option<&[String]>) -> Result<()> {
        bnb_config::describe(config, None, skipped);
        Ok(())
    }
}

impl Int8 {
    fn of_module(&self, module: &Module<'_>, lead: &Entry) -> Result<Option<Claim>> {
        let format = module.get("weight_format");
        let Some(scales) = module.get("SCB") else {
            return match format {
                Some(_) => Err(mismatch(format!("its scales `{}.SCB` are missing", module.path))
                    .with_hint("the checkpoint is incomplete: download it again")),
                None => Ok(None),
            };
        };
        let [rows, cols] = lead.shape[..] else {
            return Err(malformed(format!("int8 of shape {:?}: a matrix was expected", lead.shape)));
        };
        if scales.dtype != Dtype::F32 || scales.elements() != rows as u64 {
            return Err(malformed(format!("{} of shape {:?}, expected {rows} F32", scales.dtype, scales.shape))
                .in_tensor(&scales.name));
        }
        let mut weight = Int8Weight::new(&lead.name, rows, cols);
        let [_, scales_part, format_part] = &mut weight.parts[..] else { return Ok(None) };
        scales_part.shape = Some(scales.shape.clone());
        let mut entries = vec![lead.clone(), scales.clone()];
        match format {
            Some(format) => {
                if module.checkpoint.read_small(format, 16)?.iter().any(|&byte| byte != 0) {
                    return Err(unsupported("its weight_format is a GPU's tiled layout, not rows")
                        .with_hint("save the model again with a recent bitsandbytes"));
                }
                format_part.dtype = format.dtype;
                format_part.shape = Some(format.shape.clone());
                format_part.bytes = format.bytes;
                entries.push(format.clone());
            }
            None => weight.parts.truncate(2),
        }
        Ok(Some(Claim { weight: Arc::new(weight), entries }))
    }
}

/// One int8 weight.
#[derive(Clone, Debug)]
struct Int8Weight {
    rows: usize,
    cols: usize,
    parts: Vec<Part>,
}

impl Int8Weight {
    fn new(name: &str, rows: usize, cols: usize) -> Self {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let parts = vec![
            Part::new(name.to_owned(), Dtype::I8, vec![rows, cols]),
            Part::new(format!("{module}.SCB"), Dtype::F32, vec![rows]),
            Part::new(format!("{module}.weight_format"), Dtype::U8, Vec::new()),
        ];
        Self { rows, cols, parts }
    }
}

impl Weight for Int8Weight {
    fn format(&self) -> &'static str {
        "int8"
    }

    fn name(&self) -> &str {
        self.parts.first().map_or("", |lead| &lead.name)
    }

    fn shape(&self) -> &[usize] {
        self.parts.first().and_then(|lead| lead.shape.as_deref()).unwrap_or_default()
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.rows, cols: self.cols, row_step: 1 }
    }

    fn value_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn details(&self) -> String {
        "one scale per row".into()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        match part {
            0 => Some((rows.start * self.cols) as u64..(rows.end * self.cols) as u64),
            1 => Some(4 * rows.start as u64..4 * rows.end as u64),
            _ => None,
        }
    }

    fn decode(&self, parts: &[&[u8]], _: Range<usize>, out: &mut [f32]) {
        if self.cols == 0 {
            return;
        }
        for ((out, codes), absmax) in
            out.chunks_exact_mut(self.cols).zip(part(parts, 0).chunks_exact(self.cols)).zip(floats(part(parts, 1)))
        {
            rows8::decode_row(codes, absmax, out);
        }
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl OnGrid for Int8Weight {
    fn grid(&self, parts: &[&[u8]], _: Range<usize>) -> Grid {
        let scales = floats(part(parts, 1)).map(|absmax| absmax / 127.0).collect();
        let grid = Grid::scaled(Levels::Integers(-127, 127), self.cols.max(1), scales, Dtype::F32);
        Grid { choices: Choices::Any, ..grid }
    }

    fn store(&self, parts: &[&[u8]], _: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let [codes, scales, ..] = out else { return };
        let codes = grow(codes, values.len());
        let own = floats(part(parts, 1));
        // What is stored is the absmax, of which the scale is the quotient.
        let absmax: Vec<f32> = match moved {
            Some(grid) => {
                let pairs = own.zip(&grid.scales);
                pairs.map(|(absmax, &scale)| if absmax / 127.0 == scale { absmax } else { scale * 127.0 }).collect()
            }
            None => own.collect(),
        };
        scales.extend(float_bytes(&absmax));
        if self.cols == 0 {
            return;
        }
        let rows = values.chunks_exact(self.cols).zip(codes.chunks_exact_mut(self.cols));
        for ((values, codes), absmax) in rows.zip(absmax) {
            rows8::pack_row(values, absmax, codes);
        }
    }
}

impl Writer for Int8Weight {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn settle(&self, _: &[f32], _: &[Option<Vec<u8>>]) -> Settled {
        let mut parts = vec![None; self.parts.len()];
        if let (Some(last), Some(part)) = (parts.get_mut(2), self.parts.get(2)) {
            *last = Some(vec![0; part.bytes as usize]);
        }
        Settled { weight: Arc::new(self.clone()), parts }
    }

    fn encode(&self, _: &[Option<Vec<u8>>], _: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let [codes, scales, ..] = out else { return };
        let codes = grow(codes, values.len());
        if self.cols == 0 {
            return;
        }
        let mut scratch = vec![0.0; self.cols];
        for (values, codes) in values.chunks_exact(self.cols).zip(codes.chunks_exact_mut(self.cols)) {
            let absmax = rows8::encode_row(values, &mut scratch, codes);
            scales.extend_from_slice(&absmax.to_le_bytes());
        }
    }
}
