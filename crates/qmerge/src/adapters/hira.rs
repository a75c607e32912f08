//! HiRA: the base, value by value times a low-rank product, is added.
//!
//! W' = W + W₀ ∘ (B·A), W₀ being the weight before any adapter. Source: PEFT 0.21, `tuners/hira/layer.py`.

use std::sync::Arc;

use super::patterns::Patterns;
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::dtype::Dtype;
use crate::edit::{Change, Map, Product, Reach, Tile};
use crate::error::{Result, mismatch};
use crate::simd::floats::round_to;

/// HiRA.
pub(super) struct Hira;

const LINEAR: [&str; 2] = ["hira_A", "hira_B"];
const EMBEDDING: [&str; 2] = ["hira_embedding_A", "hira_embedding_B"];

impl PeftMethod for Hira {
    fn peft_type(&self) -> &'static str {
        "HIRA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "hira_dropout", "rank_pattern"])?;
        let fields = config.fields();
        Ok(Box::new(Ranks { r: fields.count("r", 1, 32)?, pattern: Patterns::new(fields.numbers("rank_pattern")?) }))
    }
}

#[derive(Debug)]
struct Ranks {
    r: usize,
    pattern: Patterns,
}

impl Layers for Ranks {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let has = |markers: [&'static str; 2]| markers.iter().any(|marker| module.tensors().get(marker).is_some());
        if has(LINEAR) && has(EMBEDDING) {
            let tensor = module.tensors().get("hira_embedding_A").or(module.tensors().get("hira_embedding_B"));
            return Err(mismatch("an embedding's factor beside a layer's").in_tensor(tensor.unwrap_or("")));
        }
        let linear = module.linear("HiRA")?;
        let (on, [a, b], (outputs, inputs)) =
            if has(EMBEDDING) { (On::Embedding, EMBEDDING, module.table()) } else { (On::Matrix, LINEAR, linear) };
        // PEFT 0.21 has a `rank_pattern` and does not look at it.
        let ranks = [self.r, self.pattern.rank(module.name(), self.r)?];
        let stored = module.shape(module.tensor(a)?)?.first();
        let rank = ranks.into_iter().find(|rank| stored == Some(rank)).unwrap_or(self.r);
        let a = module.sized(a, &[rank, inputs])?.to_owned();
        let b = module.sized(b, &[outputs, rank])?.to_owned();
        let tensors = vec![a.clone(), b.clone()];
        let round = module.sixteen_bits();
        let change = ProductOfBasePlan { a, b, rank, outputs, inputs, weight: module.weight(), round };
        Ok(vec![Planned { on, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["hira_B", "hira_embedding_B"]
    }
}

#[derive(Debug)]
struct ProductOfBasePlan {
    a: String,
    b: String,
    rank: usize,
    outputs: usize,
    inputs: usize,
    weight: f64,
    /// PEFT computes in the weight's type.
    round: Option<Dtype>,
}

impl ChangePlan for ProductOfBasePlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let (right, left) = (loader.floats(&self.a)?, loader.floats(&self.b)?);
        let product = Product::new(self.rank, left, right, self.weight as f32, self.round);
        Ok(Change::map(ProductOfBase(product)))
    }

    fn memory(&self) -> u64 {
        12 * self.rank as u64 * (self.inputs as u64 + self.outputs as u64)
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }
}

#[derive(Debug)]
struct ProductOfBase(Product);

impl Map for ProductOfBase {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let mut product = vec![0.0; tile.len()];
        let round = |values: &mut [f32]| {
            if let Some(dtype) = self.0.round {
                round_to(dtype, values);
            }
        };
        self.0.tile(tile, &mut product);
        round(&mut product);
        product.iter_mut().zip(base).for_each(|(x, base)| *x *= base);
        round(&mut product);
        values.iter_mut().zip(product).for_each(|(value, x)| *value += x);
    }
}
