//! RoAd: pairs of a layer's outputs are turned and stretched.
//!
//! In each group of g outputs, y[i] and y[i + g/2] become c·y[i] − s·y[i + g/2] and c·y[i + g/2] + s·y[i], with c = α cos θ and s = α sin θ of each output's own
//! (`road_2`, `road_4`) or the pair's (`road_1`). The bias is an output too. Half of it is θ / 2 and (1 + α) / 2. Source: PEFT 0.21, `tuners/road/layer.py`.

use std::sync::Arc;

use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::dtype::Dtype;
use crate::edit::{Change, Map, Reach, Side, Tile};
use crate::error::{Result, malformed, mismatch};
use crate::simd::floats::round_to;

/// RoAd.
pub(super) struct Road;

impl PeftMethod for Road {
    fn peft_type(&self) -> &'static str {
        "ROAD"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["road_theta", "road_alpha"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["variant", "group_size"])?;
        let fields = config.fields();
        let variant = fields.text("variant")?;
        let group = fields.count("group_size", 2, 64)?;
        if !group.is_multiple_of(2) {
            return Err(malformed(format!("`group_size` is {group}, expected an even number")));
        }
        let variant = match variant.as_deref() {
            None | Some("road_1") => Variant::One,
            Some("road_2") => Variant::Two,
            Some("road_4") => Variant::Four,
            Some(other) => {
                return Err(malformed(format!("`variant` is \"{other}\", expected road_1, road_2 or road_4")));
            }
        };
        Ok(Box::new(Turns { variant, group }))
    }
}

/// Numbers per pair of outputs, of θ as of α.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    One,
    Two,
    Four,
}

#[derive(Debug)]
struct Turns {
    variant: Variant,
    group: usize,
}

impl Layers for Turns {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("RoAd")?;
        let Self { variant, group } = *self;
        if !outputs.is_multiple_of(group) {
            return Err(mismatch(format!(
                "`{}` has {outputs} outputs, which groups of {group} (`group_size`) do not fill",
                module.base_name()
            ))
            .in_file(&module.adapter().config.path));
        }
        let number = match variant {
            Variant::One => outputs / 2,
            Variant::Two => outputs,
            Variant::Four => 2 * outputs,
        };
        let theta = module.sized("road_theta", &[number])?.to_owned();
        let alpha = module.sized("road_alpha", &[number])?.to_owned();
        let tensors = vec![theta.clone(), alpha.clone()];
        let round = module.sixteen_bits();
        let change: Arc<dyn ChangePlan> =
            Arc::new(TurnsPlan { theta, alpha, variant, group, outputs, weight: module.weight(), round });
        let mut planned =
            vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::clone(&change), tensors: tensors.clone() }];
        if module.has_bias() {
            planned.push(Planned { on: On::Bias, outputs, inputs: 1, change, tensors });
        }
        Ok(planned)
    }
}

#[derive(Debug)]
struct TurnsPlan {
    theta: String,
    alpha: String,
    variant: Variant,
    group: usize,
    outputs: usize,
    weight: f64,
    /// PEFT rounds the rotation to the weight's type.
    round: Option<Dtype>,
}

impl ChangePlan for TurnsPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let (theta, alpha) = (loader.floats(&self.theta)?, loader.floats(&self.alpha)?);
        let (group, half) = (self.group, self.group / 2);
        let number = |values: &[f32], at: usize| values.get(at).map_or(f64::NAN, |x| f64::from(*x));
        let stretch = |at| 1.0 + self.weight * (number(&alpha, at) - 1.0);
        let angle = |at| self.weight * number(&theta, at);
        let (mut cos, mut sin) = (Vec::with_capacity(self.outputs), Vec::with_capacity(self.outputs));
        for output in 0..self.outputs {
            let (of, within) = (output / group, output % group);
            let (first, second) = match self.variant {
                Variant::One => (of * half + within % half, of * half + within % half),
                Variant::Two => (output, output),
                Variant::Four => (2 * group * of + within, 2 * group * of + group + within),
            };
            cos.push((stretch(first) * libm::cos(angle(first))) as f32);
            sin.push((stretch(second) * libm::sin(angle(second))) as f32);
        }
        if let Some(dtype) = self.round {
            round_to(dtype, &mut cos);
            round_to(dtype, &mut sin);
        }
        Ok(Change::map(Turned { cos, sin, group }))
    }

    fn memory(&self) -> u64 {
        24 * self.outputs as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: self.group, inputs: 1 }
    }
}

#[derive(Debug)]
struct Turned {
    cos: Vec<f32>,
    sin: Vec<f32>,
    group: usize,
}

impl Turned {
    /// Turns rows of `width` values, the first being `first`.
    fn rows(&self, first: usize, width: usize, values: &mut [f32]) {
        let (width, half) = (width.max(1), self.group / 2);
        for (number, group) in values.chunks_exact_mut((self.group * width).max(1)).enumerate() {
            let (upper, lower) = group.split_at_mut(half * width);
            let first = first + number * self.group;
            for (i, (upper, lower)) in upper.chunks_exact_mut(width).zip(lower.chunks_exact_mut(width)).enumerate() {
                let at = |values: &[f32], at: usize| values.get(at).copied().unwrap_or(f32::NAN);
                let (one, two) = (first + i, first + half + i);
                let (c1, s1, c2, s2) = (at(&self.cos, one), at(&self.sin, one), at(&self.cos, two), at(&self.sin, two));
                for (x, y) in upper.iter_mut().zip(lower) {
                    (*x, *y) = (c1 * *x - s1 * *y, c2 * *y + s2 * *x);
                }
            }
        }
    }
}

impl Map for Turned {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        self.rows(tile.outputs.start, tile.inputs.len(), values);
    }

    fn side(&self) -> Option<Side> {
        Some(Side::Outputs)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        self.rows(0, tokens, activations);
    }
}
