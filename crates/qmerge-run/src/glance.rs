//! What linear layers are given, at a glance: of a text's first token, which sees nothing but itself, and on average over some others.
//!
//! A first token's inputs are the same in every text that begins with it. The mean of the others' hardly depends on which they are: it is what a layer is always given, whatever is said.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use qmerge::error::Result;
use qmerge::plan::Plan;

use crate::generate::Random;
use crate::linear::{Input, Precision, Watch};
use crate::memory::{self, give_back};
use crate::model::{Model, weight_name};

/// Tokens behind the first.
const OTHERS: usize = 32;

/// What a glance takes.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    /// Most bytes while the model is run, no weight held.
    pub running: u64,
    /// Bytes of what is found.
    pub held: u64,
    /// Work in nanoseconds of one thread.
    pub work: u64,
}

/// A glance at what the `wanted` weights are given, of a model whose adapters `plan` has.
pub fn takes(model: &Model<'_>, plan: &Plan, wanted: &HashSet<String>, threads: usize) -> Takes {
    let layers = model.inputs();
    let inputs = layers.iter().flatten();
    let directions =
        inputs.map(|inputs| inputs.features * inputs.weights.iter().filter(|name| wanted.contains(*name)).count());
    let tokens = tokens(model);
    Takes {
        running: memory::pass(model, plan, tokens, threads),
        held: 8 * directions.sum::<usize>() as u64,
        work: model.pass_work(Precision::Full, tokens, tokens.div_ceil(2)),
    }
}

fn tokens(model: &Model<'_>) -> usize {
    (1 + OTHERS).min(model.spec().max_positions)
}

/// Of each of the `wanted` weights, by its name: the inputs of the first token, and the mean of those of some others, which are drawn at random, always the same. Those of experts that are not
/// given all of them are left out. The first token is `begin`, or any: where none is usual, a model takes whatever comes first for it.
pub fn inputs(
    model: Model<'_>,
    begin: Option<u32>,
    wanted: &HashSet<String>,
) -> Result<HashMap<String, Vec<Vec<f32>>>> {
    let mut random = Random::new(0);
    let vocab = model.spec().vocab;
    let mut text = vec![begin.filter(|&token| (token as usize) < vocab).unwrap_or(0)];
    text.resize_with(tokens(&model), || random.token(vocab));
    let left = model.layers_for(&|name| wanted.contains(name));
    let mut seen = Seen { wanted, tokens: text.len(), left, inputs: HashMap::new() };
    if left > 0 {
        model.hidden(&[&text], &mut seen)?;
    }
    drop(model);
    give_back();
    Ok(seen.inputs)
}

struct Seen<'w> {
    wanted: &'w HashSet<String>,
    tokens: usize,
    /// Layers up to the last of which anything is wanted.
    left: usize,
    inputs: HashMap<String, Vec<Vec<f32>>>,
}

impl Watch for Seen<'_> {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        let names = paths.iter().map(|path| weight_name(path)).filter(|name| self.wanted.contains(name));
        let names: Vec<String> = names.collect();
        if names.is_empty() || input.tokens() != self.tokens {
            return Ok(());
        }
        let column =
            |of: &dyn Fn(&[f32]) -> f32| input.values().chunks_exact(self.tokens).map(of).collect::<Vec<f32>>();
        let first = column(&|row| row.iter().take(1).sum());
        let mean = column(&|row| row.iter().skip(1).sum::<f32>() / (row.len() - 1).max(1) as f32);
        self.inputs.extend(names.into_iter().map(|name| (name, vec![first.clone(), mean.clone()])));
        Ok(())
    }

    fn layer(&mut self) -> Result<ControlFlow<()>> {
        self.left = self.left.saturating_sub(1);
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}
