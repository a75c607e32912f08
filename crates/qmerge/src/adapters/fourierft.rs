//! FourierFT: the real part of the inverse Fourier transform of a few trained coefficients is added.
//!
//! D[p, q] = scaling / (outputs · inputs) · Σ c cos(2π (u p / outputs + v q / inputs)), the places (u, v) drawn from `random_loc_seed`. Cosines of sums are
//! products, so that D is a product of factors, of twice as many columns as there are different u, or v. Source: PEFT 0.21, `tuners/fourierft/layer.py`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::factored::{Factored, Pair};
use super::patterns::Patterns;
use super::torch_random::Generator;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, mismatch, unsupported};
use crate::linalg::transposed;

/// FourierFT.
pub(super) struct FourierFt;

const SPECTRUM: &str = "fourierft_spectrum";

impl PeftMethod for FourierFt {
    fn peft_type(&self) -> &'static str {
        "FOURIERFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &[SPECTRUM], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["n_frequency", "scaling", "random_loc_seed", "n_frequency_pattern"])?;
        let fields = config.fields();
        Ok(Box::new(Spectra {
            number: fields.count("n_frequency", 1, 1000)?,
            pattern: Patterns::new(fields.numbers("n_frequency_pattern")?),
            scaling: fields.number("scaling")?.unwrap_or(150.0),
            seed: fields.count("random_loc_seed", 0, 777)? as u64,
        }))
    }
}

#[derive(Debug)]
struct Spectra {
    number: usize,
    pattern: Patterns,
    scaling: f64,
    seed: u64,
}

impl Layers for Spectra {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("FourierFT")?;
        let total = outputs.checked_mul(inputs).and_then(|total| u32::try_from(total).ok());
        let total = total.ok_or_else(|| {
            unsupported(format!("`{}` has more than 2³² values, for which torch draws otherwise", module.base_name()))
        })?;
        let number = self.pattern.lookup(module.name())?.map_or(self.number, |number| number as usize);
        if number as u64 > u64::from(total) {
            let problem = format!("{number} frequencies, but `{}` has {total} values", module.base_name());
            return Err(mismatch(problem).in_file(&module.adapter().config.path));
        }
        let tensor = module.sized(SPECTRUM, &[number])?.to_owned();
        let drawn = Generator::new(self.seed).permutation(total, number);
        let places: Vec<(usize, usize)> =
            drawn.iter().map(|at| (*at as usize / inputs, *at as usize % inputs)).collect();
        // Grouped by what takes fewer values.
        let different = |of: fn(&(usize, usize)) -> usize| {
            places.iter().map(of).collect::<std::collections::BTreeSet<usize>>().len()
        };
        let (by_output, by_input) = (different(|place| place.0), different(|place| place.1));
        let (rank, tensors) = (2 * by_output.min(by_input), vec![tensor.clone()]);
        let make = move |loader: &Loader<'_>| {
            let spectrum = loader.floats(&tensor)?;
            Ok(if by_input <= by_output {
                factors(&places, &spectrum, outputs, inputs)
            } else {
                // Dᵀ has u and v exchanged.
                let turned: Vec<_> = places.iter().map(|(u, v)| (*v, *u)).collect();
                let (left, right) = factors(&turned, &spectrum, inputs, outputs);
                (transposed(&right, outputs), transposed(&left, rank))
            })
        };
        let scale = self.scaling / f64::from(total) * module.weight();
        let change = Factored {
            rank,
            outputs,
            inputs,
            scale,
            round: None,
            beside: 8 * (outputs + inputs) as u64,
            of_base: false,
            make,
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[SPECTRUM]
    }
}

/// cos and sin of 2π j / n for all j.
fn circle(n: usize) -> Vec<(f64, f64)> {
    let angle = |j: usize| std::f64::consts::TAU * j as f64 / n as f64;
    (0..n).map(|j| (libm::cos(angle(j)), libm::sin(angle(j)))).collect()
}

/// Σ c cos(2π (u p / rows + v q / cols)) as a product: for each v, of Σ c cos(2π u p / rows) with cos(2π v q / cols), and minus that of the sines.
fn factors(places: &[(usize, usize)], spectrum: &[f32], rows: usize, cols: usize) -> Pair {
    let mut by_v: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    for ((u, v), c) in places.iter().zip(spectrum) {
        by_v.entry(*v).or_default().push((*u, f64::from(*c)));
    }
    let (of_rows, of_cols) = (circle(rows), circle(cols));
    let at = |circle: &[(f64, f64)], a: usize, b: usize| {
        circle.get((a as u64 * b as u64 % circle.len().max(1) as u64) as usize).copied().unwrap_or_default()
    };
    let mut left = Vec::with_capacity(rows * 2 * by_v.len());
    for p in 0..rows {
        for terms in by_v.values() {
            let (mut cos, mut sin) = (0.0, 0.0);
            for (u, c) in terms {
                let (x, y) = at(&of_rows, *u, p);
                cos += c * x;
                sin -= c * y;
            }
            left.extend([cos as f32, sin as f32]);
        }
    }
    let mut right = Vec::with_capacity(cols * 2 * by_v.len());
    for v in by_v.keys() {
        right.extend((0..cols).map(|q| at(&of_cols, *v, q).0 as f32));
        right.extend((0..cols).map(|q| at(&of_cols, *v, q).1 as f32));
    }
    (left, right)
}
