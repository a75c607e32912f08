//! Experts of which a few serve each token.

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;

use super::{Dense, FeedForward};
use crate::activation::softmax;
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::model::weight_name;
use crate::tensors::Tensors;
use crate::work;

/// Experts of which a few serve each token.
#[derive(Debug)]
pub(super) struct Routed<'a> {
    router: Linear<'a>,
    experts: Vec<Dense<'a>>,
    per_token: usize,
    normalize: bool,
}

impl<'a> Routed<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, routed: &spec::Routed, layer: &str) -> Result<Self> {
        let layout = &routed.layout;
        let router = |module: &str| match module.rsplit_once('.') {
            Some((before, _)) => format!("{layer}.{before}.{}", routed.router),
            None => format!("{layer}.{}", routed.router),
        };
        let stored = |module: &&&str| tensors.has(&weight_name(&router(module)));
        let module = layout.modules.iter().find(stored).unwrap_or(&layout.modules[0]);
        let experts = format!("{layer}.{module}");
        let (count, width, hidden) = (routed.count, routed.width, spec.hidden);
        let expert = |number: usize| -> Result<Dense<'a>> {
            let [gate_up, down] = layout.stacked.map(|name| format!("{experts}.{name}"));
            let (inputs, down) = if tensors.has(&gate_up) {
                let part = |name: &str, outputs, inputs| Linear::part(tensors, name, (count, outputs, inputs), number);
                let down = part(&down, hidden, width)?;
                (vec![part(&gate_up, 2 * width, hidden)?], down)
            } else {
                let [gate, up, down] = layout.each.map(|name| format!("{experts}.{number}.{name}"));
                let linear = |path: &str, outputs, inputs| Linear::new(tensors, path, outputs, inputs);
                (vec![linear(&gate, width, hidden)?, linear(&up, width, hidden)?], linear(&down, hidden, width)?)
            };
            Ok(Dense { inputs, down, width, gated: true, activation: routed.activation })
        };
        Ok(Self {
            router: Linear::new(tensors, &router(module), count, hidden)?,
            experts: (0..count).map(expert).collect::<Result<_>>()?,
            per_token: routed.per_token.min(count),
            normalize: routed.normalize,
        })
    }
}

impl Block for Routed<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        std::iter::once(vec![&self.router]).chain(self.experts.iter().flat_map(Dense::together)).collect()
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(&mut self.router)?;
        self.experts.iter_mut().try_for_each(|expert| expert.each(visit))
    }

    fn work(&self, tokens: usize, _: usize) -> f64 {
        // Each token goes to some experts; an expert without tokens is not decoded.
        let served = (tokens * self.per_token) as f64 / self.experts.len().max(1) as f64;
        let used = served.min(1.0);
        let experts = self.experts.iter().map(|expert| work::linears(&expert.together(), served.max(1.0)));
        work::linear(self.router.values(), tokens as f64) + used * experts.sum::<f64>()
    }

    fn activations(&self) -> usize {
        // Beside what an expert takes: the sum of what all of them give, and the columns that one serves.
        2 * self.router.inputs() + self.experts.first().map_or(0, Dense::activations)
    }
}

impl FeedForward for Routed<'_> {
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let (tokens, hidden) = (x.tokens(), self.router.inputs());
        Linear::show(std::slice::from_ref(&self.router), x, watch)?;
        let logits = self.router.forward(x)?;
        let x = x.values();
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
