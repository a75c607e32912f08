//! The feed-forward of a layer: dense, or routed to experts.

use qmerge::error::Result;
use qmerge::simd::exp::exp;
use qmerge::simd::tanh::tanh;
use rayon::prelude::*;

use crate::attention::softmax;
use crate::linear::{Input, Linear, Watch};
use crate::spec::{self, Activation, Spec};
use crate::tensors::Tensors;
use crate::work;

/// `down(act(gate x) · up x)`, or without a gate `down(act(up x))`.
#[derive(Debug)]
pub(crate) struct Dense<'a> {
    /// Gate and up, both in one, or up alone.
    pub(crate) inputs: Vec<Linear<'a>>,
    pub(crate) down: Linear<'a>,
    width: usize,
    gated: bool,
    activation: Activation,
}

/// Experts of which a few serve each token.
#[derive(Debug)]
pub(crate) struct Routed<'a> {
    pub(crate) router: Linear<'a>,
    pub(crate) experts: Vec<Dense<'a>>,
    per_token: usize,
    normalize: bool,
}

/// Either.
#[derive(Debug)]
pub(crate) enum FeedForward<'a> {
    Dense(Dense<'a>),
    Routed(Routed<'a>),
}

impl<'a> FeedForward<'a> {
    pub(crate) fn new(tensors: &Tensors<'a>, spec: &Spec, layer: &str, routed: bool) -> Result<Self> {
        match (&spec.experts, routed) {
            (Some(experts), true) => Routed::new(tensors, spec, experts, layer).map(Self::Routed),
            _ => Dense::new(tensors, spec, layer).map(Self::Dense),
        }
    }

    pub(crate) fn forward(&self, x: &[f32], hidden: usize, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        match self {
            Self::Dense(dense) => dense.forward(&Input::new(x, hidden), watch),
            Self::Routed(routed) => routed.forward(x, hidden, watch),
        }
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear<'a>> {
        match self {
            Self::Dense(dense) => dense.linears_mut().collect(),
            Self::Routed(routed) => {
                let experts = routed.experts.iter_mut().flat_map(Dense::linears_mut);
                std::iter::once(&mut routed.router).chain(experts).collect()
            }
        }
    }

    pub(crate) fn linears(&self) -> Vec<&Linear<'a>> {
        self.together().concat()
    }

    /// The linear layers in groups that are given the same input, in the order in which they are shown.
    pub(crate) fn together(&self) -> Vec<Vec<&Linear<'a>>> {
        match self {
            Self::Dense(dense) => dense.together().into(),
            Self::Routed(routed) => {
                let experts = routed.experts.iter().flat_map(Dense::together);
                std::iter::once(vec![&routed.router]).chain(experts).collect()
            }
        }
    }

    /// Work of so many tokens.
    pub(crate) fn work(&self, tokens: usize) -> f64 {
        let all = |linears: Vec<&Linear<'a>>, columns: f64| -> f64 {
            linears.iter().map(|linear| work::linear(linear.values(), columns)).sum()
        };
        match self {
            Self::Dense(dense) => all(dense.together().concat(), tokens as f64),
            Self::Routed(routed) => {
                // Each token goes to some experts; an expert without tokens is not decoded.
                let served = (tokens * routed.per_token) as f64 / routed.experts.len().max(1) as f64;
                let used = served.min(1.0);
                let experts = routed.experts.iter().map(|expert| all(expert.together().concat(), served.max(1.0)));
                work::linear(routed.router.values(), tokens as f64) + used * experts.sum::<f64>()
            }
        }
    }

    /// Largest width of what is between the matrices.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.width,
            Self::Routed(routed) => routed.experts.iter().map(|expert| expert.width).max().unwrap_or(0),
        }
    }
}

impl<'a> Dense<'a> {
    fn new(tensors: &Tensors<'a>, spec: &Spec, layer: &str) -> Result<Self> {
        let width = spec.intermediate;
        let linear = |name: &str, outputs, inputs| {
            Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs, spec.transposed)
        };
        let (inputs, down, gated) = match spec.feed_forward {
            spec::FeedForward::Gated { names: [gate, up, down] } => {
                (vec![linear(gate, width, spec.hidden)?, linear(up, width, spec.hidden)?], down, true)
            }
            spec::FeedForward::FusedGated { names: [both, down] } => {
                (vec![linear(both, 2 * width, spec.hidden)?], down, true)
            }
            spec::FeedForward::Plain { names: [up, down] } => (vec![linear(up, width, spec.hidden)?], down, false),
        };
        let down = linear(down, spec.hidden, width)?;
        Ok(Self { inputs, down, width, gated, activation: spec.activation })
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        self.inputs.iter_mut().chain(std::iter::once(&mut self.down))
    }

    fn together(&self) -> [Vec<&Linear<'a>>; 2] {
        [self.inputs.iter().collect(), vec![&self.down]]
    }

    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let size = self.width * x.tokens();
        let mut inner = vec![0.0; if self.gated { 2 * size } else { size }];
        let mut rest = inner.as_mut_slice();
        Linear::show(&self.inputs, x, watch)?;
        for linear in &self.inputs {
            let (own, others) = rest.split_at_mut(linear.outputs() * x.tokens());
            linear.forward_into(x, own)?;
            rest = others;
        }
        let (gate, up) = inner.split_at_mut(size);
        gate.par_chunks_mut(SOME).enumerate().for_each(|(number, gate)| {
            activate(self.activation, gate);
            if let Some(up) = up.chunks(SOME).nth(number) {
                gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
            }
        });
        let inner = Input::new(&inner[..size], self.width);
        Linear::show(std::slice::from_ref(&self.down), &inner, watch)?;
        self.down.forward(&inner)
    }
}

impl<'a> Routed<'a> {
    fn new(tensors: &Tensors<'a>, spec: &Spec, experts: &spec::Experts, layer: &str) -> Result<Self> {
        let path = |module: &&str| format!("{layer}.{module}");
        let has_router = |path: &String| tensors.has(&format!("{path}.gate.weight"));
        let found = experts.modules.iter().map(path).find(has_router);
        let module = found.unwrap_or_else(|| format!("{layer}.{}", experts.modules[0]));
        let width = experts.intermediate;
        let expert = |e: usize| -> Result<Dense<'a>> {
            let [gate, up, down] = experts.names;
            let stacked = format!("{module}.experts.gate_up_proj");
            let (inputs, down) = if tensors.has(&stacked) {
                let part =
                    |name: &str, outputs, inputs| Linear::part(tensors, name, (experts.count, outputs, inputs), e);
                let down = part(&format!("{module}.experts.down_proj"), spec.hidden, width)?;
                (vec![part(&stacked, 2 * width, spec.hidden)?], down)
            } else {
                let linear = |name: &str, outputs, inputs| {
                    Linear::new(tensors, &format!("{module}.experts.{e}.{name}"), outputs, inputs, spec.transposed)
                };
                let inputs = vec![linear(gate, width, spec.hidden)?, linear(up, width, spec.hidden)?];
                (inputs, linear(down, spec.hidden, width)?)
            };
            Ok(Dense { inputs, down, width, gated: true, activation: spec.activation })
        };
        Ok(Self {
            router: Linear::new(tensors, &format!("{module}.gate"), experts.count, spec.hidden, false)?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
            per_token: experts.per_token.min(experts.count),
            normalize: experts.normalize,
        })
    }

    fn forward(&self, x: &[f32], hidden: usize, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let input = Input::new(x, hidden);
        let tokens = input.tokens();
        Linear::show(std::slice::from_ref(&self.router), &input, watch)?;
        let logits = self.router.forward(&input)?;
        // By expert: the tokens it serves, each with the expert's share.
        let mut served: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.experts.len()];
        for t in 0..tokens {
            let mut shares: Vec<f32> = logits.iter().skip(t).step_by(tokens).copied().collect();
            softmax(&mut shares);
            let mut order: Vec<usize> = (0..shares.len()).collect();
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
            let chosen = &order[..self.per_token];
            let sum: f32 = if self.normalize { chosen.iter().map(|&e| shares[e]).sum() } else { 1.0 };
            for &e in chosen {
                served[e].push((t, shares[e] / sum));
            }
        }
        let mut out = vec![0.0; x.len()];
        for (expert, served) in self.experts.iter().zip(&served) {
            if served.is_empty() {
                continue;
            }
            let some: Vec<f32> =
                x.chunks_exact(tokens).flat_map(|row| served.iter().map(move |&(t, _)| row[t])).collect();
            let y = expert.forward(&Input::new(&some, hidden), watch)?;
            for (out, y) in out.chunks_exact_mut(tokens).zip(y.chunks_exact(served.len())) {
                for (&(t, share), y) in served.iter().zip(y) {
                    out[t] += share * y;
                }
            }
        }
        Ok(out)
    }
}

/// Values that are activated at a time; they stay in a first-level cache.
const SOME: usize = 4096;

fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Silu => {
            let mut negated: Vec<f32> = values.iter().map(|x| -x).collect();
            exp(&mut negated);
            values.iter_mut().zip(negated).for_each(|(x, exponential)| *x /= 1.0 + exponential);
        }
        Activation::Gelu => {
            values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2)));
        }
        Activation::GeluTanh => {
            const ROOT: f32 = 0.797_884_6;
            let mut inner: Vec<f32> = values.iter().map(|x| ROOT * (*x + 0.044_715 * *x * *x * *x)).collect();
            tanh(&mut inner);
            values.iter_mut().zip(inner).for_each(|(x, tanh)| *x *= 0.5 * (1.0 + tanh));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_have_their_known_values() {
        // torch.nn.functional's silu, gelu, and gelu with approximate="tanh".
        let x: [f32; 7] = [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0, 6.0];
        let known: [(Activation, [f32; 7]); 3] = [
            (Activation::Silu, [-0.14227761, -0.26894143, -0.04750208, 0.0, 0.31122968, 1.7615942, 5.985164]),
            (Activation::Gelu, [-0.004049694, -0.15865526, -0.046017215, 0.0, 0.34573123, 1.9544997, 6.0]),
            (Activation::GeluTanh, [-0.003637392, -0.15880801, -0.04601725, 0.0, 0.345714, 1.9545977, 6.0]),
        ];
        for (activation, want) in known {
            let mut got = x;
            activate(activation, &mut got);
            for (x, (got, want)) in x.iter().zip(got.iter().zip(want)) {
                assert!((got - want).abs() <= 2e-7 * x.abs(), "{activation:?} of {x}: {got}, not {want}");
            }
        }
    }
}
