//! Experts of which a few serve each token, and one beside them that may serve all.

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;

use super::router::Router;
use super::{Dense, FeedForward};
use crate::activation::sigmoid;
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Stack, Watch};
use crate::model::weight_name;
use crate::tensors::Tensors;
use crate::work;

/// Experts of which a few serve each token.
#[derive(Debug)]
pub(super) struct Routed<'a> {
    router: Router<'a>,
    experts: Vec<Dense<'a>>,
    per_token: usize,
    share_inputs: bool,
    shared: Option<Shared<'a>>,
}

/// An expert that serves all tokens.
#[derive(Debug)]
struct Shared<'a> {
    dense: Dense<'a>,
    gate: Option<Linear<'a>>,
}

impl<'a> Routed<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, routed: &spec::Routed, layer: &str) -> Result<Self> {
        let layout = &routed.layout;
        let beside = |module: &str, name: &str| match module.rsplit_once('.') {
            Some((before, _)) => format!("{layer}.{before}.{name}"),
            None => format!("{layer}.{name}"),
        };
        let stored = |module: &&&str| tensors.has(&weight_name(&beside(module, routed.router.name)));
        let module = layout.modules.iter().find(stored).unwrap_or(&layout.modules[0]);
        let router = Router::new(tensors, &routed.router, spec.hidden, |name| beside(module, name))?;
        let shared = |shared: &spec::Shared| -> Result<Shared<'a>> {
            let gate = shared.gate.map(|name| Linear::new(tensors, &format!("{layer}.{name}"), 1, spec.hidden));
            Ok(Shared { dense: Dense::new(tensors, spec, &shared.dense, layer)?, gate: gate.transpose()? })
        };
        Ok(Self {
            router,
            experts: experts(tensors, spec.hidden, routed, (layer, module))?,
            per_token: routed.router.per_token,
            share_inputs: routed.share_inputs,
            shared: routed.shared.as_ref().map(shared).transpose()?,
        })
    }

    /// What is given all tokens.
    fn first(&self) -> Vec<&Linear<'a>> {
        let shared = self.shared.iter().flat_map(|shared| shared.gate.iter().chain(&shared.dense.inputs));
        std::iter::once(&self.router.linear).chain(shared).collect()
    }
}

/// All experts of a layer, stacked or each by itself.
fn experts<'a>(
    tensors: &Tensors<'a>,
    hidden: usize,
    routed: &spec::Routed,
    (layer, module): (&str, &str),
) -> Result<Vec<Dense<'a>>> {
    let (layout, count, width) = (&routed.layout, routed.router.count, routed.width);
    let dense = |inputs, down, interleaved| Dense {
        inputs,
        down,
        width,
        gated: true,
        interleaved,
        activation: routed.activation,
        clamp: routed.clamp,
    };
    let names = |module| layout.stacked.map(|name| format!("{layer}.{module}.{name}"));
    let stacked = layout.modules.iter().map(names).find(|[gate_up, _]| tensors.has(gate_up));
    if let Some([gate_up, down]) = stacked {
        let gate_up = Stack::new(tensors, &gate_up, (count, 2 * width, hidden), layout.in_out)?;
        let down = Stack::new(tensors, &down, (count, hidden, width), layout.in_out)?;
        let one = |number| dense(vec![gate_up.linear(number)], down.linear(number), layout.interleaved);
        return Ok((0..count).map(one).collect());
    }
    let one = |number: usize| {
        let linear = |name: &str, outputs, inputs| {
            Linear::new(tensors, &format!("{layer}.{module}.{number}.{name}"), outputs, inputs)
        };
        let (first, last) = layout.projections();
        let inputs = first.iter().map(|name| linear(name, width, hidden)).collect::<Result<_>>()?;
        Ok(dense(inputs, linear(last, hidden, width)?, false))
    };
    (0..count).map(one).collect()
}

impl Block for Routed<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        let shared = self.shared.iter().map(|shared| vec![&shared.dense.down]);
        let experts = self.experts.iter().flat_map(Dense::together);
        std::iter::once(self.first()).chain(shared).chain(experts).collect()
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(&mut self.router.linear)?;
        if let Some(shared) = &mut self.shared {
            shared.gate.iter_mut().try_for_each(&mut *visit)?;
            shared.dense.each(visit)?;
        }
        self.experts.iter_mut().try_for_each(|expert| expert.each(visit))
    }

    fn work(&self, tokens: usize, _: usize) -> f64 {
        // Each token goes to some experts; an expert without tokens is not decoded.
        let served = (tokens * self.per_token) as f64 / self.experts.len().max(1) as f64;
        let used = served.min(1.0);
        let experts = self.experts.iter().map(|expert| work::linears(&expert.together(), served.max(1.0)));
        let shared = self.shared.iter().map(|shared| shared.dense.work(tokens, 0));
        work::linear(self.router.linear.values(), tokens as f64) + shared.sum::<f64>() + used * experts.sum::<f64>()
    }

    fn activations(&self) -> usize {
        // Beside what an expert takes: the sum of what all of them give, and the columns that one serves.
        let experts = self.experts.iter().chain(self.shared.iter().map(|shared| &shared.dense));
        2 * self.router.linear.inputs() + experts.map(Dense::activations).max().unwrap_or(0)
    }
}

impl FeedForward for Routed<'_> {
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let (tokens, hidden) = (x.tokens(), self.router.linear.inputs());
        let first: Vec<&str> = self.first().iter().map(|linear| linear.name()).collect();
        watch.input(&first, x)?;
        let served = self.router.serve(x, watch.least())?;
        watch.served(&served.iter().map(|served| served.own).collect::<Vec<_>>());
        let mut out = match &self.shared {
            None => vec![0.0; hidden * tokens],
            Some(shared) => shared.forward(x, watch)?,
        };
        let values = x.values();
        for (expert, served) in self.experts.iter().zip(&served) {
            if served.tokens.is_empty() {
                continue;
            }
            let given =
                |&(t, share): &(usize, f32), row: &[f32]| if self.share_inputs { row[t] * share } else { row[t] };
            let some: Vec<f32> = values
                .chunks_exact(tokens)
                .flat_map(|row| served.tokens.iter().map(move |one| given(one, row)))
                .collect();
            let y = expert.forward(&x.like(&some, hidden), watch)?;
            // What was only shown is not served.
            let own = &served.tokens[..served.own];
            for (out, y) in out.chunks_exact_mut(tokens).zip(y.chunks_exact(served.tokens.len())) {
                for (&(t, share), y) in own.iter().zip(y) {
                    out[t] += if self.share_inputs { *y } else { share * y };
                }
            }
        }
        Ok(out)
    }
}

impl Shared<'_> {
    /// What it gives, where the input was shown.
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let mut out = self.dense.behind(x, watch)?;
        if let Some(gate) = &self.gate {
            let mut gate = gate.forward(x)?;
            sigmoid(&mut gate);
            for row in out.chunks_exact_mut(gate.len().max(1)) {
                row.iter_mut().zip(&gate).for_each(|(out, gate)| *out *= gate);
            }
        }
        Ok(out)
    }
}
