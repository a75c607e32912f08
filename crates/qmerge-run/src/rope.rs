//! Rotary position embeddings: each pair of a head's features turns with the position, at a frequency of its own.
//!
//! Frequencies follow transformers' `rope_type`s (default, linear, dynamic, yarn, llama3, longrope). The two halves of a head's rotary
//! part are the pairs' two coordinates.

use std::f64::consts::TAU;

use qmerge::error::{Error, Kind, Result};
use serde_json::{Map, Value};

use crate::fields::Fields;

/// One rotary embedding.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Features of a head that turn; an odd number counts as it is in the frequencies, and one more feature turns.
    dims: usize,
    theta: f64,
    scaling: Scaling,
    /// Factor on both coordinates.
    factor: f32,
    max_positions: usize,
}

#[derive(Clone, Debug)]
enum Scaling {
    None,
    Linear { factor: f64 },
    Dynamic { factor: f64 },
    Yarn { factor: f64, low: f64, high: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    Long { short: Vec<f64>, long: Vec<f64>, original: usize },
}

impl Rope {
    /// Reads `rope_parameters` (of one layer type, where they differ), or the older `rope_theta` and `rope_scaling`.
    pub fn read(fields: &Fields<'_>, head_dim: usize, layer_type: Option<&str>, theta: f64) -> Result<Self> {
        let empty = Map::new();
        let whole = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling")).and_then(Value::as_object);
        let nested = layer_type.and_then(|kind| whole?.get(kind)?.as_object());
        // Parameters by layer type are of no use to a family that has one rope for all.
        let parameters = nested.or(whole.filter(|map| !map.values().any(Value::is_object))).unwrap_or(&empty);
        let number = |key: &str| parameters.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        let theta = number("rope_theta").map_or_else(|| fields.number("rope_theta", theta), Ok)?;
        let share = number("partial_rotary_factor").map_or_else(|| fields.number("partial_rotary_factor", 1.0), Ok)?;
        let dims = (head_dim as f64 * share.clamp(0.0, 1.0)) as usize;
        let max_positions = fields.count("max_position_embeddings")?;
        let original = match number("original_max_position_embeddings") {
            Some(original) => original as usize,
            None => fields.count_if("original_max_position_embeddings")?.unwrap_or(max_positions),
        };
        let missing = |key: &str| Error::new(Kind::Malformed, format!("the rope parameters lack `{key}`"));
        let factor = number("factor").filter(|&factor| factor > 0.0);
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
        let mut attention = 1.0;
        let scaling = match kind.unwrap_or("default") {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: factor.ok_or_else(|| missing("factor"))? },
            "dynamic" => Scaling::Dynamic { factor: factor.ok_or_else(|| missing("factor"))? },
            "yarn" => {
                let factor = factor.unwrap_or(max_positions as f64 / original as f64);
                let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                attention =
                    number("attention_factor").unwrap_or_else(|| match (number("mscale"), number("mscale_all_dim")) {
                        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => magnitude(a) / magnitude(b),
                        _ => magnitude(1.0),
                    });
                let turns = |turns: f64| dims as f64 * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
                let or = |key: &str, default: f64| number(key).filter(|&x| x != 0.0).unwrap_or(default);
                let (mut low, mut high) = (turns(or("beta_fast", 32.0)), turns(or("beta_slow", 1.0)));
                if parameters.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
                    (low, high) = (low.floor(), high.ceil());
                }
                Scaling::Yarn { factor, low: low.max(0.0), high: high.min(dims as f64 - 1.0) }
            }
            "llama3" => Scaling::Llama3 {
                factor: factor.ok_or_else(|| missing("factor"))?,
                low: number("low_freq_factor").ok_or_else(|| missing("low_freq_factor"))?,
                high: number("high_freq_factor").ok_or_else(|| missing("high_freq_factor"))?,
                original: original as f64,
            },
            "longrope" | "su" => {
                let list = |key: &str| -> Result<Vec<f64>> {
                    let values = parameters.get(key).and_then(Value::as_array).ok_or_else(|| missing(key))?;
                    let values: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
                    if values.len() == dims.div_ceil(2) { Ok(values) } else { Err(missing(key)) }
                };
                let stretch = factor.unwrap_or(max_positions as f64 / original as f64);
                attention = number("attention_factor").unwrap_or_else(|| {
                    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() }
                });
                Scaling::Long { short: list("short_factor")?, long: list("long_factor")?, original }
            }
            other => return Err(Error::new(Kind::Unsupported, format!("rope type `{other}` cannot be run"))),
        };
        Ok(Self { dims, theta, scaling, factor: attention as f32, max_positions })
    }

    /// Longest sequence that it was made for.
    pub fn longest(&self) -> usize {
        match self.scaling {
            // Frequencies give way beyond the trained length, by this factor as a rule.
            Scaling::Dynamic { factor } => (self.max_positions as f64 * factor.max(1.0)) as usize,
            _ => self.max_positions,
        }
    }

    /// A rope without scaling.
    pub fn plain(fields: &Fields<'_>, head_dim: usize, theta: f64) -> Result<Self> {
        let max_positions = fields.count("max_position_embeddings")?;
        Ok(Self { dims: head_dim / 2 * 2, theta, scaling: Scaling::None, factor: 1.0, max_positions })
    }

    /// Frequencies for a sequence of `length` positions, one per pair.
    fn frequencies(&self, length: usize) -> Vec<f32> {
        let dims = self.dims as f64;
        let plain = |theta: f64, i: usize| 1.0 / theta.powf(2.0 * i as f64 / dims);
        let one = |i: usize| -> f64 {
            let plain_here = plain(self.theta, i);
            match &self.scaling {
                Scaling::None => plain_here,
                Scaling::Linear { factor } => plain_here / factor,
                Scaling::Dynamic { factor } => {
                    let max = self.max_positions as f64;
                    let stretch = factor * (length as f64).max(max) / max - (factor - 1.0);
                    plain(self.theta * stretch.powf(dims / (dims - 2.0)), i)
                }
                Scaling::Yarn { factor, low, high } => {
                    let high = if high == low { high + 0.001 } else { *high };
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain_here / factor * ramp + plain_here * (1.0 - ramp)
                }
                Scaling::Llama3 { factor, low, high, original } => {
                    let wavelength = TAU / plain_here;
                    if wavelength < original / high {
                        plain_here
                    } else if wavelength > original / low {
                        plain_here / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * plain_here / factor + smooth * plain_here
                    }
                }
                Scaling::Long { short, long, original } => {
                    let stretch = if length > *original { long } else { short };
                    plain_here / stretch[i]
                }
            }
        };
        (0..self.dims.div_ceil(2)).map(|i| one(i) as f32).collect()
    }

    /// Cosines and sines for some positions of a sequence of `length`: each (pairs, positions).
    pub fn angles(&self, positions: std::ops::Range<usize>, length: usize) -> Angles {
        let turn = |f: fn(f32) -> f32| -> Vec<f32> {
            let each = |frequency: f32| positions.clone().map(move |p| f(p as f32 * frequency) * self.factor);
            self.frequencies(length).into_iter().flat_map(each).collect()
        };
        Angles { pairs: self.dims.div_ceil(2), count: positions.len(), cos: turn(f32::cos), sin: turn(f32::sin) }
    }
}

/// Angles of some positions.
#[derive(Clone, Debug)]
pub struct Angles {
    pairs: usize,
    count: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Turns one head's features in place: `x` is a run of rows `tokens` wide, of which the columns from `first` on are these positions.
    pub fn turn(&self, x: &mut [f32], tokens: usize, first: usize) {
        let (left, right) = x[..2 * self.pairs * tokens].split_at_mut(self.pairs * tokens);
        for i in 0..self.pairs {
            let columns = i * tokens + first..i * tokens + first + self.count;
            let angles = i * self.count..(i + 1) * self.count;
            let pairs = left[columns.clone()].iter_mut().zip(&mut right[columns]);
            for ((a, b), (cos, sin)) in pairs.zip(self.cos[angles.clone()].iter().zip(&self.sin[angles])) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
