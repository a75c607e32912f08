//! Rotary position embeddings: each pair of a head's features turns with the position, at a frequency of its own.
//!
//! Frequencies follow transformers' `rope_type`s (default, linear, dynamic, yarn, llama3, longrope, proportional; mrope, which is the default where all of
//! a token's positions are the same, as those of text are). The two halves of a head's rotary part are the pairs' two coordinates, or neighbours are.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::spec::Growth;
use crate::error::{Error, Result};

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
    /// Features next to each other are a pair (Cohere, GLM); else the halves of what turns are the pairs' two coordinates.
    pub interleaved: bool,
    /// Factor on scores that goes with it.
    scores: f64,
}

/// What a family's rope is where its configuration does not say.
#[derive(Clone, Copy, Debug)]
pub struct RopeDefaults {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of a head's features that turns.
    pub share: f64,
    /// Longest sequence that it was made for, where a family has a default.
    pub max_positions: Option<usize>,
    /// An `alpha` beside `dynamic` is a fixed factor on theta (HunYuan).
    pub has_alpha: bool,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, share: 1.0, max_positions: None, has_alpha: false }
    }
}

#[derive(Clone, Debug)]
enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    /// Only the first pairs turn.
    Proportional {
        pairs: usize,
        factor: f64,
    },
    Dynamic {
        factor: f64,
    },
    Yarn {
        factor: f64,
        low: f64,
        high: f64,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Long {
        short: Vec<f64>,
        long: Vec<f64>,
        original: usize,
    },
}

/// A sequence that is made longer by scaling is no longer than this.
const LONGEST: f64 = (1_u64 << 32) as f64;

/// Errors if the features that turn, in pairs, are more than a head has.
fn in_pairs(fields: &Fields<'_>, dims: usize, head_dim: usize) -> Result<()> {
    if dims.next_multiple_of(2) <= head_dim {
        return Ok(());
    }
    Err(fields.misfit(format!(
        "a head has {head_dim} features, and a rope turns them in pairs (`head_dim`, or `hidden_size` / `num_attention_heads`)"
    )))
}

/// `rope_parameters` or `rope_scaling`, of one layer type where they differ by it.
struct Parameters<'f, 'c> {
    fields: &'f Fields<'c>,
    values: Option<&'c Map<String, Value>>,
}

impl<'f, 'c> Parameters<'f, 'c> {
    fn read(fields: &'f Fields<'c>, layer_type: Option<&str>) -> Result<Self> {
        let key = if fields.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let Some(value) = fields.get(key) else { return Ok(Self { fields, values: None }) };
        let whole = value.as_object().ok_or_else(|| fields.bad(key, value, "that is not an object"))?;
        let nested = layer_type.and_then(|kind| whole.get(kind)?.as_object());
        // Parameters by layer type are of no use to a family that has one rope for all.
        let values = nested.or(Some(whole).filter(|map| !map.values().any(Value::is_object)));
        Ok(Self { fields, values })
    }

    fn get(&self, key: &str) -> Option<&'c Value> {
        self.values?.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, value: &Value, problem: &str) -> Error {
        self.fields.bad(&format!("rope_parameters.{key}"), value, problem)
    }

    fn missing(&self, key: &str) -> Error {
        self.fields.misfit(format!("the rope's parameters lack `{key}`"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(self.bad(key, value, "that is not a number")),
        }
    }

    fn above_zero(&self, key: &str) -> Result<Option<f64>> {
        match (self.number(key)?, self.get(key)) {
            (Some(x), Some(value)) if x <= 0.0 => Err(self.bad(key, value, "it must be above zero")),
            (number, _) => Ok(number),
        }
    }

    fn needed(&self, key: &str) -> Result<f64> {
        self.above_zero(key)?.ok_or_else(|| self.missing(key))
    }

    /// A factor for each pair of features.
    fn factors(&self, key: &str, pairs: usize) -> Result<Vec<f64>> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let factors = value
            .as_array()
            .filter(|list| list.len() == pairs)
            .and_then(|list| list.iter().map(|item| item.as_f64().filter(|x| x.is_finite() && *x > 0.0)).collect());
        factors.ok_or_else(|| self.bad(key, value, &format!("it must be a list of {pairs} numbers above zero")))
    }

    /// YaRN's factors on attention and on scores, which grow with the logarithm of how far it stretches.
    fn yarn_factors(&self, factor: f64) -> Result<(f64, f64)> {
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * libm::log(factor) + 1.0 };
        let scales = (self.number("mscale")?, self.number("mscale_all_dim")?);
        let scores = scales.1.filter(|all| *all != 0.0).map_or(1.0, |all| magnitude(all) * magnitude(all));
        let attention = self.number("attention_factor")?.unwrap_or_else(|| match scales {
            (Some(a), Some(b)) if a != 0.0 && b != 0.0 => magnitude(a) / magnitude(b),
            _ => magnitude(1.0),
        });
        Ok((attention, scores))
    }

    /// The pairs between which YaRN goes over from frequencies as they are to stretched ones.
    fn yarn(&self, factor: f64, dims: usize, original: usize, theta: f64) -> Result<Scaling> {
        let turns = |turns: f64| dims as f64 * libm::log(original as f64 / (turns * TAU)) / (2.0 * libm::log(theta));
        // Zero is taken for a number that is not given, as transformers takes it.
        let or = |key: &str, default: f64| match self.number(key)? {
            None | Some(0.0) => Ok(default),
            _ => self.needed(key),
        };
        let (mut low, mut high) = (turns(or("beta_fast", 32.0)?), turns(or("beta_slow", 1.0)?));
        if self.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        Ok(Scaling::Yarn { factor, low: low.max(0.0), high: high.min(dims as f64 - 1.0) })
    }

    /// LongRoPE's factor on attention.
    fn long_factor(&self, stretch: f64, original: usize) -> Result<f64> {
        let stretch = self.above_zero("factor")?.unwrap_or(stretch);
        let plain =
            || if stretch <= 1.0 { 1.0 } else { (1.0 + libm::log(stretch) / libm::log(original as f64)).sqrt() };
        let scales = (self.number("short_mscale")?, self.number("long_mscale")?);
        match (self.number("attention_factor")?, scales) {
            (Some(factor), _) => Ok(factor),
            // PhiMoE's own.
            (None, (Some(short), Some(long))) if short == long => Ok(short),
            (None, (None, None)) => Ok(plain()),
            _ => Err(self.fields.unsupported("long_mscale", self.get("long_mscale").unwrap_or(&Value::Null))),
        }
    }
}

impl Rope {
    /// Reads `rope_parameters` (of one layer type, where they differ), or the older `rope_theta` and `rope_scaling`.
    pub fn read(fields: &Fields<'_>, head_dim: usize, layer_type: Option<&str>, theta: f64) -> Result<Self> {
        Self::read_with(fields, head_dim, layer_type, RopeDefaults { theta, ..RopeDefaults::default() })
    }

    /// The same, where more than theta has a default of the family's own.
    pub(crate) fn read_with(
        fields: &Fields<'_>,
        head_dim: usize,
        layer_type: Option<&str>,
        defaults: RopeDefaults,
    ) -> Result<Self> {
        let parameters = Parameters::read(fields, layer_type)?;
        let either = |key: &str, default: f64| match parameters.number(key)? {
            Some(number) => Ok(number),
            None => fields.number(key, default),
        };
        let mut theta = either("rope_theta", defaults.theta)?;
        if theta <= 0.0 {
            return Err(fields.misfit(format!("`rope_theta` is {theta}: it must be above zero")));
        }
        let share = either("partial_rotary_factor", defaults.share)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(fields.misfit(format!("`partial_rotary_factor` is {share}: it must be between 0 and 1")));
        }
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
        // Pairs are then of the whole head, and those beyond the share stand still.
        let is_proportional = kind.and_then(Value::as_str) == Some("proportional");
        let turning = head_dim as f64 * share;
        let dims = if is_proportional { head_dim } else { turning as usize };
        in_pairs(fields, dims, head_dim)?;
        let max_positions = match (fields.positive_if("max_position_embeddings")?, defaults.max_positions) {
            (Some(count), _) | (None, Some(count)) => count,
            (None, None) => fields.count("max_position_embeddings")?,
        };
        let original = match parameters.above_zero("original_max_position_embeddings")? {
            Some(original) => original as usize,
            None => fields.positive_if("original_max_position_embeddings")?.unwrap_or(max_positions),
        };
        let stretch = max_positions as f64 / original as f64;
        let (mut attention, mut scores) = (1.0, 1.0);
        let scaling = match kind.map_or(Some("default"), Value::as_str) {
            Some("default" | "mrope") => Scaling::None,
            Some("proportional") => {
                let factor = parameters.above_zero("factor")?.unwrap_or(1.0);
                Scaling::Proportional { pairs: (turning / 2.0) as usize, factor }
            }
            Some("linear") => Scaling::Linear { factor: parameters.needed("factor")? },
            Some("dynamic") if defaults.has_alpha && parameters.get("alpha").is_some() => {
                theta *= libm::pow(parameters.needed("alpha")?, dims as f64 / (dims as f64 - 2.0));
                Scaling::None
            }
            Some("dynamic") => Scaling::Dynamic { factor: parameters.needed("factor")? },
            Some("yarn") => {
                let factor = parameters.above_zero("factor")?.unwrap_or(stretch);
                (attention, scores) = parameters.yarn_factors(factor)?;
                parameters.yarn(factor, dims, original, theta)?
            }
            Some("llama3") => Scaling::Llama3 {
                factor: parameters.needed("factor")?,
                low: parameters.needed("low_freq_factor")?,
                high: parameters.needed("high_freq_factor")?,
                original: original as f64,
            },
            Some("longrope" | "su") => {
                attention = parameters.long_factor(stretch, original)?;
                let list = |key: &str| parameters.factors(key, dims.div_ceil(2));
                Scaling::Long { short: list("short_factor")?, long: list("long_factor")?, original }
            }
            _ => return Err(fields.unsupported("rope_type", kind.unwrap_or(&Value::Null))),
        };
        Self { dims, theta, scaling, factor: attention as f32, max_positions, interleaved: false, scores }.sound(fields)
    }

    /// How queries grow with their position, which Ministral 3 keeps beside the rope's parameters.
    pub fn growth(fields: &Fields<'_>) -> Result<Option<Growth>> {
        let parameters = Parameters::read(fields, None)?;
        let key = "llama_4_scaling_beta";
        let (Some(rate), Some(value)) = (parameters.number(key)?, parameters.get(key)) else { return Ok(None) };
        if !(rate as f32).is_finite() {
            return Err(parameters.bad(key, value, "too large for a 32-bit number"));
        }
        let every = parameters.needed("original_max_position_embeddings")?.max(1.0) as usize;
        Ok(Some(Growth { rate: rate as f32, every, first: 0 }))
    }

    /// Errors if an angle would be no number, whatever the parameters that bring it about.
    fn sound(self, fields: &Fields<'_>) -> Result<Self> {
        let lengths = [1, self.longest()];
        let frequencies = lengths.iter().flat_map(|&length| self.frequencies(length));
        match frequencies.chain([self.factor, self.scores as f32]).find(|x| !x.is_finite()) {
            None => Ok(self),
            Some(x) => Err(fields.misfit(format!("the rope's parameters give the frequency or factor {x}"))),
        }
    }

    /// Factor on query · key that goes with a longer rope, in families that apply it to all of a head: the square of what `mscale_all_dim` says.
    pub fn scores(&self) -> f64 {
        self.scores
    }

    /// Longest sequence that it was made for.
    pub fn longest(&self) -> usize {
        match self.scaling {
            // Frequencies give way beyond the trained length, by this factor as a rule.
            Scaling::Dynamic { factor } => (self.max_positions as f64 * factor.max(1.0)).min(LONGEST) as usize,
            _ => self.max_positions,
        }
    }

    /// A rope without scaling.
    pub fn plain(fields: &Fields<'_>, head_dim: usize, theta: f64) -> Result<Self> {
        in_pairs(fields, head_dim, head_dim)?;
        let max_positions = fields.count("max_position_embeddings")?;
        let scaling = Scaling::None;
        Self { dims: head_dim, theta, scaling, factor: 1.0, max_positions, interleaved: false, scores: 1.0 }
            .sound(fields)
    }

    /// Factor on both coordinates.
    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// Frequencies for a sequence of `length` positions, one per pair.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let dims = self.dims as f64;
        let plain = |theta: f64, i: usize| 1.0 / libm::pow(theta, 2.0 * i as f64 / dims);
        let one = |i: usize| -> f64 {
            let plain_here = plain(self.theta, i);
            match &self.scaling {
                Scaling::None => plain_here,
                Scaling::Linear { factor } => plain_here / factor,
                Scaling::Proportional { pairs, factor } => {
                    if i < *pairs {
                        plain_here / factor
                    } else {
                        0.0
                    }
                }
                Scaling::Dynamic { factor } => {
                    let max = self.max_positions as f64;
                    let stretch = factor * (length as f64).max(max) / max - (factor - 1.0);
                    plain(self.theta * libm::pow(stretch, dims / (dims - 2.0)), i)
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
                    plain_here / stretch.get(i).copied().unwrap_or(1.0)
                }
            }
        };
        (0..self.dims.div_ceil(2)).map(|i| one(i) as f32).collect()
    }
}
