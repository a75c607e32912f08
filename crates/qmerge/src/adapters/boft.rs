//! BOFT: a layer's inputs go through a butterfly of blocks of rotations, and its outputs are multiplied by trained factors.
//!
//! W' = diag(s) · W · Mᵀ with M = F_{N−1} ⋯ F₀ and F = P · diag(R₁, R₂, …) · Pᵀ, where R is Cayley's transform of the skew part of what is stored. P brings what
//! lies 2ⁱ half blocks apart together. PEFT computes N > 1 on CUDA only; here as there. Half of it is the rotations of Q / 2, and (1 + s) / 2. Source:
//! PEFT 0.21, `tuners/boft/layer.py`.

use std::sync::Arc;

use super::ia3::ScaledPlan;
use super::module::OTHER;
use super::rotation::{Blocks, cayley, transposed_f32};
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Map, Reach, Side, Tile};
use crate::error::{Result, malformed, mismatch};

/// BOFT.
pub(super) struct Boft;

impl PeftMethod for Boft {
    fn peft_type(&self) -> &'static str {
        "BOFT"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["boft_R", "boft_s"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout"])?;
        let fields = config.fields();
        Ok(Box::new(Butterflies {
            size: fields.count("boft_block_size", 0, 4)?,
            number: fields.count("boft_block_num", 0, 0)?,
            factors: fields.count("boft_n_butterfly_factor", 1, 1)?,
        }))
    }
}

#[derive(Debug)]
struct Butterflies {
    /// Inputs of a block, or 0 where their number is given.
    size: usize,
    number: usize,
    factors: usize,
}

impl Layers for Butterflies {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("BOFT")?;
        let (size, number) = match (self.size, self.number) {
            (size, 0) if size > 0 => (size, inputs / size),
            (0, number) if number > 0 => (inputs / number, number),
            (size, number) => {
                return Err(malformed(format!(
                    "`boft_block_size` is {size} and `boft_block_num` {number}: one of them has to be 0"
                ))
                .in_file(&module.adapter().config.path));
            }
        };
        let spread = u32::try_from(self.factors - 1).ok().and_then(|last| 1_usize.checked_shl(last)).unwrap_or(0);
        let fits = size * number == inputs
            && (self.factors == 1 || size.is_multiple_of(2) && spread > 0 && number.is_multiple_of(spread));
        if !fits {
            return Err(mismatch(format!(
                "the {inputs} inputs of `{}` cannot be cut into {number} blocks of {size} for {} butterfly factors",
                module.base_name(),
                self.factors
            ))
            .in_tensor(module.tensor("boft_R")?)
            .with_hint(OTHER));
        }
        let rotations = module.sized("boft_R", &[self.factors, number, size, size])?.to_owned();
        let scales = module.sized("boft_s", &[outputs, 1])?.to_owned();
        let turn = ButterflyPlan {
            tensor: rotations.clone(),
            factors: self.factors,
            size,
            inputs,
            together: size * spread,
            weight: module.weight(),
        };
        let scale =
            ScaledPlan { tensor: scales.clone(), weight: module.weight(), side: Side::Outputs, number: outputs };
        let planned = |change: Arc<dyn ChangePlan>, tensor| Planned {
            on: On::Matrix,
            outputs,
            inputs,
            change,
            tensors: vec![tensor],
        };
        Ok(vec![planned(Arc::new(turn), rotations), planned(Arc::new(scale), scales)])
    }
}

#[derive(Debug)]
struct ButterflyPlan {
    tensor: String,
    factors: usize,
    size: usize,
    inputs: usize,
    /// Inputs that any of the factors mixes.
    together: usize,
    weight: f64,
}

impl ChangePlan for ButterflyPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let n = self.size;
        let stored = loader.floats(&self.tensor)?;
        let mut factors = Vec::new();
        for (number, stored) in stored.chunks_exact((self.inputs * n).max(1)).enumerate() {
            let mut blocks = Vec::with_capacity(stored.len());
            for block in stored.chunks_exact((n * n).max(1)) {
                let at = |i: usize, j: usize| block.get(i * n + j).map_or(0.0, |x| f64::from(*x));
                let skew: Vec<f64> =
                    (0..n * n).map(|k| 0.5 * self.weight * (at(k / n, k % n) - at(k % n, k / n))).collect();
                let r = cayley(&skew, n)
                    .ok_or_else(|| malformed("values too large for a rotation").in_tensor(&self.tensor))?;
                blocks.extend(transposed_f32(&r, n));
            }
            let order = if self.factors == 1 { Vec::new() } else { order(self.inputs, n << number, n / 2) };
            factors.push((order, Blocks { blocks, size: n, side: Side::Inputs }));
        }
        Ok(Change::map(Butterfly { factors }))
    }

    fn memory(&self) -> u64 {
        let values = (self.factors * self.inputs * self.size) as u64;
        8 * values + 8 * (self.factors * self.inputs) as u64 + 40 * (self.size * self.size) as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: self.together }
    }
}

/// Where each of `n` features comes from: in runs of `run`, pieces of `half` features, the even ones before the odd ones.
fn order(n: usize, run: usize, half: usize) -> Vec<usize> {
    let (run, half) = (run.max(1), half.max(1));
    let pieces = run / half;
    let sorted: Vec<usize> = (0..pieces).step_by(2).chain((1..pieces).step_by(2)).collect();
    let within = |start: usize| sorted.iter().flat_map(move |piece| (0..half).map(move |i| start + piece * half + i));
    (0..n).step_by(run).flat_map(within).collect()
}

/// The factors F₀, F₁, …: the order in which features come together (none: as they are), and the blocks that turn them.
#[derive(Debug)]
struct Butterfly {
    factors: Vec<(Vec<usize>, Blocks)>,
}

/// Moves groups of `width` values to where `order` says, or back.
fn reorder(order: &[usize], width: usize, back: bool, values: &mut [f32]) {
    let old = values.to_vec();
    let groups = |at: usize| at * width..(at + 1) * width;
    for (here, there) in order.iter().enumerate() {
        let (to, from) = if back { (here, *there) } else { (*there, here) };
        if let (Some(to), Some(from)) = (values.get_mut(groups(to)), old.get(groups(from))) {
            to.copy_from_slice(from);
        }
    }
}

impl Map for Butterfly {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        for (order, blocks) in &self.factors {
            if order.is_empty() {
                blocks.apply(tile, base, values);
                continue;
            }
            // The pattern repeats from tile to tile, which begin where runs of the last factor do.
            let order = order.get(..tile.inputs.len()).unwrap_or(order);
            let rows = |values: &mut [f32], back| {
                let rows = values.chunks_exact_mut(tile.inputs.len().max(1));
                rows.for_each(|row| reorder(order, 1, back, row));
            };
            rows(values, false);
            blocks.apply(tile, base, values);
            rows(values, true);
        }
    }

    fn side(&self) -> Option<Side> {
        Some(Side::Inputs)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        for (order, blocks) in self.factors.iter().rev() {
            reorder(order, tokens, false, activations);
            blocks.forward(activations, tokens);
            reorder(order, tokens, true, activations);
        }
    }
}
