//! Multi-head latent attention: keys and values are made of one narrow vector for each position.
//!
//! A cache holds the keys and values that were made of it, so that each is made once.

use qmerge::arch::spec::{self, Norm, Queries, Spec};
use qmerge::error::Result;

use super::softmax::{Softmax, attend};
use super::{Mixer, Pass, State};
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::norm::Normalize;
use crate::tensors::Tensors;
use crate::work;

/// The latent attention of one layer.
#[derive(Debug)]
pub(super) struct Latent<'a> {
    spec: spec::Latent,
    /// What is given the residual stream: queries, or the narrow vector that they are made of; keys and values' narrow vector.
    inputs: [Linear<'a>; 2],
    queries: Option<(Normalize, Linear<'a>)>,
    norm: Normalize,
    keys_and_values: Linear<'a>,
    output: Linear<'a>,
}

impl<'a> Latent<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, latent: &spec::Latent, layer: &str) -> Result<Self> {
        let spec::Latent { heads, straight, turned, value, rank, .. } = *latent;
        let [down, norm_name, up, output] = latent.names;
        let linear = |name: &str, outputs, inputs| Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs);
        let norm =
            |name, features| Normalize::new(tensors, &format!("{layer}.{name}"), features, Norm::Rms, latent.eps);
        let asked = heads * (straight + turned);
        let (first, queries) = match latent.queries {
            Queries::Straight(name) => (linear(name, asked, spec.hidden)?, None),
            Queries::Narrow { rank, names: [down, normed, up] } => {
                (linear(down, rank, spec.hidden)?, Some((norm(normed, rank)?, linear(up, asked, rank)?)))
            }
        };
        Ok(Self {
            spec: *latent,
            inputs: [first, linear(down, rank + turned, spec.hidden)?],
            queries,
            norm: norm(norm_name, rank)?,
            keys_and_values: linear(up, heads * (straight + value), rank)?,
            output: linear(output, spec.hidden, heads * value)?,
        })
    }
}

impl Block for Latent<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        let queries = self.queries.iter().map(|(_, queries)| vec![queries]);
        let first = [Vec::new(), self.inputs.iter().collect()];
        first.into_iter().chain(queries).chain([vec![&self.keys_and_values], vec![&self.output]]).collect()
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        let queries = self.queries.iter_mut().map(|(_, queries)| queries);
        let rest = [&mut self.keys_and_values, &mut self.output];
        self.inputs.iter_mut().chain(queries).chain(rest).try_for_each(visit)
    }

    fn work(&self, tokens: usize, seen: usize) -> f64 {
        let features = self.spec.heads * (self.spec.straight + self.spec.turned + self.spec.value) / 2;
        work::linears(&self.together(), tokens as f64) + work::attention(features, tokens, seen)
    }

    fn activations(&self) -> usize {
        let spec::Latent { heads, straight, turned, value, rank, .. } = self.spec;
        let asked = self.queries.as_ref().map_or(0, |(_, queries)| queries.inputs());
        3 * self.output.outputs() + 3 * (rank + turned) + 3 * asked + heads * (6 * (straight + turned) + 5 * value)
    }
}

impl Mixer for Latent<'_> {
    fn forward(
        &self,
        x: &Input<'_>,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let spec::Latent { heads, straight, turned, value, rank, rope, .. } = self.spec;
        let (tokens, width) = (x.tokens(), straight + turned);
        watch.input(&[], x)?;
        let mut first = self.inputs[0].forward(x)?;
        let (mut q, asked) = match &self.queries {
            None => (first, None),
            Some((norm, queries)) => {
                norm.apply(&mut first, tokens);
                (queries.forward(&x.like(&first, queries.inputs()))?, Some((queries, first)))
            }
        };
        let mut narrow = self.inputs[1].forward(x)?;
        let (narrow, common) = narrow.split_at_mut(rank * tokens);
        self.norm.apply(narrow, tokens);
        let narrow = x.like(narrow, rank);
        let made = self.keys_and_values.forward(&narrow)?;
        let turning = q.chunks_exact_mut(width * tokens).map(|head| &mut head[straight * tokens..]);
        for head in turning.chain([&mut *common]) {
            for (sequence, angles) in pass.sequences.iter().zip(&pass.angles[rope]) {
                angles.turn(head, tokens, sequence.columns.start);
            }
        }
        let (mut k, mut v) = (Vec::with_capacity(heads * width * tokens), Vec::with_capacity(heads * value * tokens));
        for head in made.chunks_exact((straight + value) * tokens) {
            let (key, own) = head.split_at(straight * tokens);
            k.extend_from_slice(key);
            k.extend_from_slice(common);
            v.extend_from_slice(own);
        }
        drop(made);
        let how = Softmax {
            heads,
            kv_heads: heads,
            key: width,
            value,
            scale: self.spec.scale,
            window: None,
            chunk: None,
            cap: None,
            sinks: &[],
            lends: None,
        };
        let (mixed, paid) = attend(&how, &q, &k, &v, pass, state, watch.weighs());
        paid.show(&self.inputs, x, pass, watch)?;
        if let Some((queries, narrow)) = &asked {
            paid.show(std::slice::from_ref(*queries), &x.like(narrow, queries.inputs()), pass, watch)?;
        }
        paid.show(std::slice::from_ref(&self.keys_and_values), &narrow, pass, watch)?;
        let mixed = x.like(&mixed, heads * value);
        Linear::show(std::slice::from_ref(&self.output), &mixed, watch)?;
        self.output.forward(&mixed)
    }

    fn cached(&self, positions: usize) -> usize {
        self.spec.heads * (self.spec.straight + self.spec.turned + self.spec.value) * positions
    }
}
