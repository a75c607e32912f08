//! MiSS, which PEFT called Bone before: one small block is added to each run of r inputs.
//!
//! W'[o, i] = W[o, i] + block[i mod r, o], which is a product of rank r; "mini" repeats a block of few outputs. "bat" adds W·B + B to each r × r block of W, B
//! being that of its outputs. Source: PEFT 0.21, `tuners/miss/layer.py`.

use std::sync::Arc;

use super::factored::Factored;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Map, Reach, Tile};
use crate::error::{Result, malformed, mismatch};
use crate::linalg::transposed;

/// MiSS.
pub(super) struct Miss;
/// The same under its old name.
pub(super) struct Bone;

impl PeftMethod for Miss {
    fn peft_type(&self) -> &'static str {
        "MISS"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["miss_block"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "mini_r", "miss_dropout"])?;
        Ok(Box::new(Shards::read(config, "miss_block")?))
    }
}

impl PeftMethod for Bone {
    fn peft_type(&self) -> &'static str {
        "BONE"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["bone_block"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r"])?;
        Ok(Box::new(Shards::read(config, "bone_block")?))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Mini,
    Bat,
}

#[derive(Debug)]
struct Shards {
    block: &'static str,
    r: usize,
    mini: usize,
    kind: Kind,
}

impl Shards {
    fn read(config: &AdapterConfig, block: &'static str) -> Result<Self> {
        let fields = config.fields();
        let kind = match config.json.get("init_weights").filter(|init| !init.is_null() && !init.is_boolean()) {
            None => Kind::Plain,
            Some(init) => match init.as_str() {
                Some("bat") => Kind::Bat,
                Some("mini") if block == "miss_block" => Kind::Mini,
                _ => return Err(malformed(format!("`init_weights` is {init}, which names no variant that is known"))),
            },
        };
        Ok(Self { block, r: fields.count("r", 1, 64)?, mini: fields.count("mini_r", 1, 1)?, kind })
    }
}

impl Layers for Shards {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear(&module.adapter().config.peft_type)?;
        let (r, kind) = (self.r, self.kind);
        let divides = |what: &str, number: usize, by: usize| {
            if number.is_multiple_of(by) {
                return Ok(());
            }
            let problem = format!("`{}` has {number} {what}, which {by} does not divide", module.base_name());
            Err(mismatch(problem).in_file(&module.adapter().config.path))
        };
        let width = match kind {
            Kind::Plain => outputs,
            Kind::Mini => {
                divides("outputs", outputs, self.mini)?;
                self.mini
            }
            Kind::Bat => {
                divides("outputs", outputs, r)?;
                divides("inputs", inputs, r)?;
                let tensor = module.sized(self.block, &[outputs / r, r, r])?.to_owned();
                let change = BatPlan { tensor: tensor.clone(), r, outputs, weight: module.weight() };
                let change = Arc::new(change);
                return Ok(vec![Planned { on: On::Matrix, outputs, inputs, change, tensors: vec![tensor] }]);
            }
        };
        let tensor = module.sized(self.block, &[r, width])?.to_owned();
        let tensors = vec![tensor.clone()];
        // Directions beyond the last input are of no use.
        let rank = r.min(inputs);
        let make = move |loader: &Loader<'_>| {
            let mut block = loader.floats(&tensor)?;
            block.truncate(rank * width);
            let one = transposed(&block, width);
            let left = (0..outputs / width.max(1)).flat_map(|_| one.iter().copied()).collect();
            let right = (0..rank).flat_map(|k| (0..inputs).map(move |i| f32::from(i % r == k))).collect();
            Ok((left, right))
        };
        let change =
            Factored { rank, outputs, inputs, scale: module.weight(), round: None, beside: 0, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["miss_block", "bone_block"]
    }
}

#[derive(Debug)]
struct BatPlan {
    tensor: String,
    r: usize,
    outputs: usize,
    weight: f64,
}

impl ChangePlan for BatPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::map(Bat { blocks: loader.floats(&self.tensor)?, r: self.r, weight: self.weight as f32 }))
    }

    fn memory(&self) -> u64 {
        4 * (self.outputs * self.r) as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: self.r }
    }
}

#[derive(Debug)]
struct Bat {
    /// (outputs / r, r, r).
    blocks: Vec<f32>,
    r: usize,
    weight: f32,
}

impl Map for Bat {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        let r = self.r.max(1);
        let mut delta = vec![0.0; r];
        for (o, row) in tile.outputs.clone().zip(values.chunks_exact_mut(tile.inputs.len().max(1))) {
            let first = o / r * r * r;
            let block = self.blocks.get(first..first + r * r).unwrap_or(&[]);
            for x in row.chunks_exact_mut(r) {
                delta.fill(0.0);
                for (x, b) in x.iter().zip(block.chunks_exact(r)) {
                    delta.iter_mut().zip(b).for_each(|(delta, b)| *delta += x * b);
                }
                let own = block.chunks_exact(r).nth(o % r).unwrap_or(&[]);
                for ((x, delta), own) in x.iter_mut().zip(&delta).zip(own) {
                    *x += self.weight * (delta + own);
                }
            }
        }
    }
}
