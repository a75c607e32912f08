//! Experts of which a few serve each token, and one beside them that may serve all.

use qmerge::arch::spec::{self, Norm, Spec};
use qmerge::error::Result;

use super::router::{Router, Served};
use super::{Dense, FeedForward};
use crate::activation::sigmoid;
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Stack, Watch};
use crate::model::weight_name;
use crate::norm::Normalize;
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
    beside: Option<Beside>,
}

/// What stands around experts that are given the residual stream itself.
#[derive(Debug)]
struct Beside {
    /// Before and after what serves all tokens, and before and after the experts.
    shared: [Normalize; 2],
    experts: [Normalize; 2],
    /// Before the router, without its factors.
    bare: Normalize,
    /// Factors on what the router sees, and on the experts' shares.
    seen: Vec<f32>,
    shares: Vec<f32>,
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
            beside: routed.beside.map(|beside| Beside::new(tensors, spec, routed, &beside, layer)).transpose()?,
        })
    }

    /// What is given all tokens, in groups that are given the same.
    fn first(&self) -> Vec<Vec<&Linear<'a>>> {
        let shared = self.shared.iter().flat_map(Shared::first);
        let router = std::iter::once(&self.router.linear);
        match self.beside {
            None => vec![router.chain(shared).collect()],
            Some(_) => vec![router.collect(), shared.collect()],
        }
    }

    /// Adds what experts give of the columns that they serve of `x`.
    fn add_experts(&self, x: &Input<'_>, served: &[Served], out: &mut [f32], watch: &mut dyn Watch) -> Result<()> {
        let (tokens, hidden, values) = (x.tokens(), self.router.linear.inputs(), x.values());
        for (expert, served) in self.experts.iter().zip(served) {
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
        Ok(())
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
        above: None,
    };
    let names = |module| layout.stacked.map(|name| format!("{layer}.{module}.{name}"));
    let stacked = layout.modules.iter().map(names).find(|[gate_up, _]| tensors.has(gate_up));
    if let Some([gate_up, down]) = stacked {
        let in_out = tensors.arch().stacks_inputs_as_rows();
        let gate_up = Stack::new(tensors, &gate_up, (count, 2 * width, hidden), in_out)?;
        let down = Stack::new(tensors, &down, (count, hidden, width), in_out)?;
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
        self.first().into_iter().chain(shared).chain(experts).collect()
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
        let around = if self.beside.is_some() { 4 } else { 2 };
        around * self.router.linear.inputs() + experts.map(Dense::activations).max().unwrap_or(0)
    }
}

impl FeedForward for Routed<'_> {
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let (tokens, hidden) = (x.tokens(), self.router.linear.inputs());
        let Some(beside) = &self.beside else {
            let first = self.first().into_iter().flatten();
            watch.input(&first.map(Linear::name).collect::<Vec<_>>(), x)?;
            let served = self.router.serve(x, watch.least())?;
            watch.served(&served.iter().map(|served| served.own).collect::<Vec<_>>());
            let mut out = match &self.shared {
                None => vec![0.0; hidden * tokens],
                Some(shared) => shared.forward(x, watch)?,
            };
            self.add_experts(x, &served, &mut out, watch)?;
            return Ok(out);
        };
        let seen = beside.seen(x);
        let seen = x.like(&seen, hidden);
        Linear::show(std::slice::from_ref(&self.router.linear), &seen, watch)?;
        let mut served = self.router.serve(&seen, watch.least())?;
        beside.scale(&mut served);
        watch.served(&served.iter().map(|served| served.own).collect::<Vec<_>>());
        let [before, after] = &beside.shared;
        let mut out = match &self.shared {
            None => vec![0.0; hidden * tokens],
            Some(shared) => {
                let given = before.applied(x.values(), tokens);
                let given = x.like(&given, hidden);
                watch.input(&shared.first().map(Linear::name).collect::<Vec<_>>(), &given)?;
                shared.forward(&given, watch)?
            }
        };
        after.apply(&mut out, tokens);
        let [before, after] = &beside.experts;
        let (given, mut sum) = (before.applied(x.values(), tokens), vec![0.0; hidden * tokens]);
        self.add_experts(&x.like(&given, hidden), &served, &mut sum, watch)?;
        after.apply(&mut sum, tokens);
        out.iter_mut().zip(sum).for_each(|(out, x)| *out += x);
        Ok(out)
    }
}

impl Beside {
    fn new(
        tensors: &Tensors<'_>,
        spec: &Spec,
        routed: &spec::Routed,
        beside: &spec::Beside,
        layer: &str,
    ) -> Result<Self> {
        let path = |name: &str| format!("{layer}.{name}");
        let norm = |name: &str, kind| Normalize::new(tensors, &path(name), spec.hidden, kind, spec.eps);
        let pair = |names: [&str; 2]| -> Result<_> { Ok([norm(names[0], spec.norm)?, norm(names[1], spec.norm)?]) };
        Ok(Self {
            shared: pair(beside.shared)?,
            experts: pair(beside.experts)?,
            bare: norm(beside.seen, Norm::RmsWithoutWeight)?,
            seen: tensors.needed(&path(beside.seen), spec.hidden)?,
            shares: tensors.needed(&path(beside.shares), routed.router.count)?,
        })
    }

    /// What the router sees of the residual stream.
    fn seen(&self, x: &Input<'_>) -> Vec<f32> {
        let tokens = x.tokens();
        let mut seen = self.bare.applied(x.values(), tokens);
        let root = 1.0 / (self.seen.len() as f32).sqrt();
        for (row, factor) in seen.chunks_exact_mut(tokens.max(1)).zip(&self.seen) {
            row.iter_mut().for_each(|x| *x *= factor * root);
        }
        seen
    }

    /// Multiplies the experts' shares.
    fn scale(&self, served: &mut [Served]) {
        for (served, factor) in served.iter_mut().zip(&self.shares) {
            served.tokens.iter_mut().for_each(|(_, share)| *share *= factor);
        }
    }
}

impl<'a> Shared<'a> {
    /// What is given its input.
    fn first(&self) -> impl Iterator<Item = &Linear<'a>> {
        self.gate.iter().chain(&self.dense.inputs)
    }

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
