//! WaveFT: the inverse wavelet transform of a few trained coefficients is added, or the coefficients themselves.
//!
//! The coefficients stand in a matrix of four quarters (averages, and details of columns, rows and both), at places that torch draws from `random_loc_seed`; it is
//! wider than the layer by what the filter reaches beyond the edge. One step of the transform makes a patch of the filter's length squared of each. Source: PEFT
//! 0.21, `tuners/waveft`; `use_idwt` false adds the coefficients where they stand.

use std::sync::Arc;

use super::patterns::Patterns;
use super::shira::Sparse;
use super::torch_random::Generator;
use super::wavelets::{self, Wavelet};
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Delta, Tile};
use crate::error::{Result, mismatch, unsupported};

/// WaveFT.
pub(super) struct WaveFt;

const SPECTRUM: &str = "waveft_spectrum";

impl PeftMethod for WaveFt {
    fn peft_type(&self) -> &'static str {
        "WAVEFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[SPECTRUM], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "n_frequency",
            "scaling",
            "wavelet_family",
            "use_idwt",
            "random_loc_seed",
            "n_frequency_pattern",
            "proportional_parameters",
        ])?;
        let fields = config.fields();
        let family = fields.text("wavelet_family")?.unwrap_or_else(|| "db1".to_owned());
        let wavelet = wavelets::by_name(&family);
        let transform = fields.flag_or("use_idwt", true)?;
        if transform && wavelet.is_none() {
            return Err(unsupported(format!(
                "the wavelet `{family}` (`wavelet_family`) is none that PEFT 0.21 transforms with"
            ))
            .with_hint("PEFT's own merge fails for it too"));
        }
        Ok(Box::new(Coefficients {
            number: fields.count("n_frequency", 1, 2592)?,
            pattern: Patterns::new(fields.numbers("n_frequency_pattern")?),
            proportional: fields.flag("proportional_parameters")?,
            scaling: fields.number("scaling")?.unwrap_or(25.0),
            seed: fields.count("random_loc_seed", 0, 777)? as u64,
            wavelet: wavelet.filter(|_| transform),
        }))
    }
}

#[derive(Debug)]
struct Coefficients {
    number: usize,
    pattern: Patterns,
    /// Layers have as many as is their share of all values.
    proportional: bool,
    scaling: f64,
    seed: u64,
    /// None where coefficients are added as they are.
    wavelet: Option<Wavelet>,
}

impl Layers for Coefficients {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("WaveFT")?;
        let total = outputs.checked_mul(inputs).and_then(|total| u32::try_from(total).ok());
        let total = total.ok_or_else(|| {
            unsupported(format!("`{}` has more than 2³² values, for which torch draws otherwise", module.base_name()))
        })?;
        let number = match self.pattern.lookup(module.name())? {
            _ if self.proportional => self.share(module, outputs * inputs),
            number => number.map_or(self.number, |number| number as usize),
        };
        if number as u64 > u64::from(total) {
            let problem = format!("{number} coefficients, but `{}` has {total} values", module.base_name());
            return Err(mismatch(problem).in_file(&module.adapter().config.path));
        }
        let tensor = module.sized(SPECTRUM, &[number])?.to_owned();
        let change = CoefficientsPlan {
            tensor: tensor.clone(),
            places: Generator::new(self.seed).permutation(total, number),
            outputs,
            inputs,
            scale: self.scaling * module.weight(),
            wavelet: self.wavelet,
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors: vec![tensor] }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[SPECTRUM]
    }
}

impl Coefficients {
    /// Coefficients of a layer of so many values, of as many as all layers together would have.
    fn share(&self, module: &Module<'_>, values: usize) -> usize {
        let all: u64 = module.shapes().map(|(outputs, inputs)| (outputs * inputs) as u64).sum();
        let share = values as f64 / all as f64;
        (share * (self.number * module.count()) as f64).round_ties_even().max(1.0) as usize
    }
}

#[derive(Debug)]
struct CoefficientsPlan {
    tensor: String,
    places: Vec<u32>,
    outputs: usize,
    inputs: usize,
    scale: f64,
    wavelet: Option<Wavelet>,
}

impl ChangePlan for CoefficientsPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let spectrum = loader.floats(&self.tensor)?;
        let places = self.places.iter().map(|at| (*at as usize / self.inputs, *at as usize % self.inputs));
        let scale = self.scale as f32;
        let Some(wavelet) = self.wavelet else {
            let entries = places.zip(spectrum).map(|((row, col), x)| (row, col, x * scale)).collect();
            return Ok(Change::add(Sparse::new(entries)));
        };
        let (rows, cols) = (Axis::new(self.outputs, wavelet), Axis::new(self.inputs, wavelet));
        let mut patches: Vec<Patch> = places
            .zip(spectrum)
            .map(|((row, col), value)| {
                let (row, rows_detail) = rows.place(row);
                let (col, cols_detail) = cols.place(col);
                // The quarter at the right has the details of columns, which PEFT takes with the filter of details along rows, and the other way round.
                Patch { row, col, rows_detail: cols_detail, cols_detail: rows_detail, value }
            })
            .collect();
        patches.sort_by_key(|patch| patch.row);
        let (average, detail) = wavelet.filters();
        Ok(Change::add(Patches { patches, average, detail, scale }))
    }

    fn memory(&self) -> u64 {
        64 * self.places.len() as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }
}

/// One side of the matrix of coefficients.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Where the layer begins in it.
    offset: usize,
    /// Coefficients of averages; as many are of details.
    half: usize,
    /// What is cut off before the layer begins.
    before: isize,
}

impl Axis {
    fn new(features: usize, wavelet: Wavelet) -> Self {
        let length = wavelet.length();
        // Filters have an even length, and reach beyond the edge by two less.
        let wide = (features + length - 2).next_multiple_of(2);
        let made = wide + 2 - length;
        let before = (2 * length - 3) / 2 + (made - features) / 2;
        Self { offset: (wide - features) / 2, half: wide / 2, before: before as isize }
    }

    /// Where a coefficient's patch begins, and whether it is of details.
    fn place(self, at: usize) -> (isize, bool) {
        let at = at + self.offset;
        let detail = at >= self.half;
        let number = if detail { at - self.half } else { at };
        (2 * number as isize - self.before, detail)
    }
}

/// What one coefficient makes.
#[derive(Debug)]
struct Patch {
    /// Its first row and column, which may lie before the layer's.
    row: isize,
    col: isize,
    rows_detail: bool,
    cols_detail: bool,
    value: f32,
}

#[derive(Debug)]
struct Patches {
    /// By first row.
    patches: Vec<Patch>,
    average: Vec<f32>,
    detail: Vec<f32>,
    scale: f32,
}

impl Patches {
    fn filter(&self, detail: bool) -> &[f32] {
        if detail { &self.detail } else { &self.average }
    }

    /// The factors of a filter that begins at `first` at the features from `from` on.
    fn within(filter: &[f32], first: isize, from: usize) -> (usize, &[f32]) {
        let skip = usize::try_from(from as isize - first).unwrap_or(0);
        (usize::try_from(first).unwrap_or(0).max(from), filter.get(skip..).unwrap_or(&[]))
    }
}

impl Delta for Patches {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        out.fill(0.0);
        let (length, width) = (self.average.len() as isize, tile.inputs.len());
        let first = self.patches.partition_point(|patch| patch.row + length <= tile.outputs.start as isize);
        let own = self.patches.iter().skip(first).take_while(|patch| patch.row < tile.outputs.end as isize);
        for patch in own {
            let (row, rows) = Self::within(self.filter(patch.rows_detail), patch.row, tile.outputs.start);
            let (col, cols) = Self::within(self.filter(patch.cols_detail), patch.col, tile.inputs.start);
            if col >= tile.inputs.end {
                continue;
            }
            for (at, f) in (row..tile.outputs.end).zip(rows) {
                let start = (at - tile.outputs.start) * width + col - tile.inputs.start;
                let end = (at - tile.outputs.start + 1) * width;
                let out = out.get_mut(start..end).unwrap_or_default();
                out.iter_mut().zip(cols).for_each(|(out, g)| *out += patch.value * (f * g));
            }
        }
        out.iter_mut().for_each(|x| *x *= self.scale);
    }

    fn has_forward(&self) -> bool {
        true
    }

    fn forward(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        let tokens = tokens.max(1);
        let mut sum = vec![0.0_f32; tokens];
        for patch in &self.patches {
            let (row, rows) = Self::within(self.filter(patch.rows_detail), patch.row, 0);
            let (col, cols) = Self::within(self.filter(patch.cols_detail), patch.col, 0);
            sum.fill(0.0);
            for (x, g) in x.chunks_exact(tokens).skip(col).zip(cols) {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += g * x);
            }
            for (y, f) in y.chunks_exact_mut(tokens).skip(row).zip(rows) {
                let factor = self.scale * patch.value * f;
                y.iter_mut().zip(&sum).for_each(|(y, sum)| *y += factor * sum);
            }
        }
    }
}
