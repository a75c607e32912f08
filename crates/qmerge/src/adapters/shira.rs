//! SHiRA: single values are added, at places that stand in the file. Source: PEFT 0.21, `tuners/shira`.

use std::sync::Arc;

use super::module::OTHER;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::dtype::Dtype;
use crate::edit::{Change, Delta, Tile};
use crate::error::{Result, malformed, mismatch};
use crate::simd::floats::round_to;

/// SHiRA.
pub(super) struct Shira;

const VALUES: &str = "shira_weight";
const PLACES: &str = "shira_indices";

impl PeftMethod for Shira {
    fn peft_type(&self) -> &'static str {
        "SHIRA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[VALUES, PLACES], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        // How places were chosen does not matter once they are stored.
        config.refuse_unknown(&["r", "mask_type", "random_seed"])?;
        Ok(Box::new(Places))
    }
}

/// The tensors say everything.
#[derive(Debug)]
struct Places;

impl Layers for Places {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("SHiRA")?;
        let values = module.tensor(VALUES)?.to_owned();
        let &[number] = module.shape(&values)? else {
            let problem = format!("shape {:?}, expected a list of values", module.shape(&values)?);
            return Err(mismatch(problem).in_tensor(&values).with_hint(OTHER));
        };
        let places = module.sized(PLACES, &[2, number])?.to_owned();
        let tensors = vec![values.clone(), places.clone()];
        let weight = module.weight();
        let change = SparsePlan { values, places, number, is_flat: false, outputs, inputs, weight, round: None };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[VALUES]
    }
}

/// Single values at stored places.
#[derive(Debug)]
pub(super) struct SparsePlan {
    pub(super) values: String,
    pub(super) places: String,
    pub(super) number: usize,
    /// A place is one number, counted row by row; else all rows stand first, then all columns.
    pub(super) is_flat: bool,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) weight: f64,
    /// Rounds values to the weight's type, where PEFT does.
    pub(super) round: Option<Dtype>,
}

impl ChangePlan for SparsePlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let (mut values, places) = (loader.floats(&self.values)?, loader.integers(&self.places)?);
        if let Some(dtype) = self.round {
            round_to(dtype, &mut values);
        }
        let (inputs, width) = (self.inputs as u64, self.inputs.max(1) as u64);
        let place = |at: usize| match self.is_flat {
            true => places.get(at).map(|place| (place / width, place % width)),
            false => places.get(at).copied().zip(places.get(self.number + at).copied()),
        };
        let mut entries = Vec::with_capacity(self.number);
        for (at, value) in values.into_iter().enumerate() {
            let Some((row, col)) = place(at) else { break };
            if row >= self.outputs as u64 || col >= inputs {
                let place = if self.is_flat { (row * width + col).to_string() } else { format!("[{row}, {col}]") };
                let problem = format!("place {place}, but the layer is {} × {}", self.outputs, self.inputs);
                return Err(malformed(problem).in_tensor(&self.places).with_hint(OTHER));
            }
            let value = if self.weight == 1.0 { value } else { (f64::from(value) * self.weight) as f32 };
            entries.push((row as usize, col as usize, value));
        }
        Ok(Change::add(Sparse::new(entries)))
    }

    fn memory(&self) -> u64 {
        44 * self.number as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}

/// Single values that are added.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Output, input and value, by output.
    entries: Vec<(usize, usize, f32)>,
}

impl Sparse {
    /// Output, input and value of each. Places that stand there twice are added in that order.
    pub(super) fn new(mut entries: Vec<(usize, usize, f32)>) -> Self {
        entries.sort_by_key(|(row, ..)| *row);
        Self { entries }
    }
}

impl Delta for Sparse {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        out.fill(0.0);
        let first = self.entries.partition_point(|(row, ..)| *row < tile.outputs.start);
        let own = self.entries.iter().skip(first).take_while(|(row, ..)| *row < tile.outputs.end);
        for (row, col, value) in own.filter(|(_, col, _)| tile.inputs.contains(col)) {
            let at = (row - tile.outputs.start) * tile.inputs.len() + col - tile.inputs.start;
            if let Some(out) = out.get_mut(at) {
                *out += value;
            }
        }
    }

    fn has_forward(&self) -> bool {
        true
    }

    fn forward(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        for (row, col, value) in &self.entries {
            let (from, to) = (col * tokens..(col + 1) * tokens, row * tokens..(row + 1) * tokens);
            if let (Some(x), Some(y)) = (x.get(from), y.get_mut(to)) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += value * x);
            }
        }
    }
}
