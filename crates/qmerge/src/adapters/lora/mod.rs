//! LoRA as PEFT writes it: two factors per module, and DoRA's magnitude or a bias beside them.
//!
//! Scaling is `alpha / r`, or `alpha / √r` with rsLoRA, after rank and alpha patterns. Source: PEFT 0.21, `tuners/lora/{model,layer,variants}.py`.

mod config;
mod dora;
mod low_rank;
mod pairs;
mod plain;

use std::sync::Arc;

use config::Diagonal;
pub(super) use config::LoraConfig;
#[cfg(feature = "internals")]
pub(crate) use config::try_patterns;
use dora::DoraPlan;
use low_rank::LowRankPlan;
pub(super) use low_rank::through_kernel;
pub(crate) use pairs::{LoraTensors, Pair};
pub(crate) use plain::plain_config;

use super::{
    Adapter, AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned, ReadOptions, Tensors,
};
use crate::dtype::Dtype;
use crate::edit::{Change, Vector};
use crate::error::{Result, mismatch, unsupported};

/// A warning where the user says that the base is a residual, and no adapter's training left one.
pub(crate) fn idle_residual(adapters: &[Adapter], options: &ReadOptions) -> Option<String> {
    let moves = |adapter: &Adapter| {
        let config = LoraConfig::read(&adapter.config).ok().filter(|_| adapter.config.peft_type == PEFT_TYPE);
        config.is_some_and(|config| config.moves_base().is_some())
    };
    (options.base_is_residual && !adapters.iter().any(moves)).then(|| {
        "--base-is-residual changes nothing here: no adapter's `init_lora_weights` says that a part of the base was moved into it".to_owned()
    })
}

/// LoRA and its variants.
pub(super) struct Lora;

/// `peft_type`.
pub(super) const PEFT_TYPE: &str = "LORA";
/// First factor (rank, in).
const A: &str = "lora_A";
/// Second factor (out, rank), which may have a bias.
const B: &str = "lora_B";
/// A kernel between the two (rank, rank, …), as LyCORIS has it for convolutions.
const MID: &str = "lora_mid";
/// First factor of an embedding (rank, vocabulary).
const EMBEDDING_A: &str = "lora_embedding_A";
/// Second factor of an embedding (dim, rank).
const EMBEDDING_B: &str = "lora_embedding_B";
/// DoRA's magnitude (out).
const MAGNITUDE: &str = "lora_magnitude_vector";

impl PeftMethod for Lora {
    fn peft_type(&self) -> &'static str {
        PEFT_TYPE
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &[A, B, MID, EMBEDDING_A, EMBEDDING_B, MAGNITUDE],
            training_only: &["lora_velora_embed", "lora_monteclora_sampler"],
            ..Markers::default()
        }
    }

    fn default_rank(&self) -> Option<f64> {
        Some(8.0)
    }

    fn listed(&self) -> Option<(&'static [&'static str], &'static str)> {
        Some((&[A, EMBEDDING_A], "shape of A"))
    }

    fn untrained(&self) -> [&'static str; 2] {
        ["its B factors are all zero", "have a B factor of zero"]
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        Ok(Box::new(LoraConfig::read(config)?))
    }
}

/// A and B of a module, and whether they are an embedding's.
fn factors<'t>(module: &str, tensors: &'t Tensors) -> Result<(&'t str, &'t str, bool)> {
    let [a, b, embedding_a, embedding_b] = [A, B, EMBEDDING_A, EMBEDDING_B].map(|marker| tensors.get(marker));
    match (a, b, embedding_a, embedding_b) {
        (Some(a), Some(b), None, None) => Ok((a, b, false)),
        (None, None, Some(a), Some(b)) => Ok((a, b, true)),
        (None, None, None, None) => {
            let orphan = tensors.get(MAGNITUDE).or(tensors.bias(B)).unwrap_or("");
            Err(mismatch(format!("belongs to `{module}`, which has no A and B factors")).in_tensor(orphan))
        }
        _ => {
            let present = a.or(b).or(embedding_a).or(embedding_b).unwrap_or("");
            let other = if a.or(embedding_a).is_some() { "B" } else { "A" };
            Err(mismatch(format!("its partner, the {other} factor of `{module}`, is missing"))
                .in_tensor(present)
                .with_hint("the adapter file is incomplete"))
        }
    }
}

impl Layers for LoraConfig {
    fn refuse(&self, options: &ReadOptions, _: f64) -> Result<()> {
        Self::refuse(self, options)
    }

    fn doubts(&self) -> Vec<String> {
        Self::doubts(self)
    }

    fn check(&self, module: &str, tensors: &Tensors) -> Result<()> {
        factors(module, tensors).map(drop)
    }

    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (a, b, embedding) = factors(module.path(), module.tensors())?;
        let (rank, scale) = match module.stated() {
            Some(stated) => (stated.rank, stated.scale),
            None => self.scaling(module.name())?,
        };
        let diagonal = if module.is_expert() { None } else { self.diagonal(module.path())? };
        let (inputs, outputs) = fitting(module, (a, b), rank, diagonal)?;
        let (mid, inputs) = match module.tensors().get(MID) {
            Some(mid) => (Some(mid.to_owned()), inputs * kernel(module, mid, rank)?),
            None => (None, inputs),
        };
        let mica = self.init.as_deref() == Some("mica");
        let parameter = module.is_parameter() || module.is_expert();
        let rounds_first = embedding || parameter || module.is_attention_input() || mica || diagonal.is_some();
        let dora = self.use_dora && !module.is_expert();
        // PEFT adds the output projection's delta twice, in its merge and in its own forward pass.
        let times = if module.is_attention_output() { 2.0 } else { 1.0 };
        let low_rank = LowRankPlan {
            a: a.to_owned(),
            b: b.to_owned(),
            mid: mid.clone(),
            rank,
            inputs,
            outputs,
            matrices: module.matrices(),
            scale: times * scale * module.weight(),
            order: module.order,
            round: module.sixteen_bits().filter(|_| rounds_first && !dora),
            diagonal,
        };
        let on = if embedding { On::Embedding } else { On::Matrix };
        let mut tensors = vec![a.to_owned(), b.to_owned()];
        tensors.extend(mid);
        // Experts have neither.
        let [magnitude, bias] = [module.tensors().get(MAGNITUDE), module.tensors().bias(B)]
            .map(|tensor| tensor.filter(|_| !module.is_expert()));
        let change: Arc<dyn ChangePlan> = match magnitude {
            Some(magnitude) => {
                tensors.push(magnitude.to_owned());
                let have: usize = module.shape(magnitude)?.iter().product();
                if have != outputs {
                    return Err(mismatch(format!("{have} magnitudes, but `{}` has {outputs} outputs", module.path()))
                        .in_tensor(magnitude));
                }
                Arc::new(DoraPlan { low_rank, magnitude: magnitude.to_owned() })
            }
            None if dora => {
                return Err(
                    mismatch(format!("`use_dora` is set, but `{}` has no magnitude", module.path())).in_tensor(a)
                );
            }
            None => Arc::new(low_rank),
        };
        let mut planned = vec![Planned { on, outputs, inputs, change, tensors }];
        if let Some(bias) = bias {
            planned.push(bias_of(module, bias, outputs, scale)?);
        }
        Ok(planned)
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        // A DoRA's magnitude acts even where its product is zero.
        if self.use_dora { &[] } else { &[B, EMBEDDING_B] }
    }
}

/// Inputs and outputs of one product, if the factors have the rank that the configuration says.
fn fitting(
    module: &Module<'_>,
    (a, b): (&str, &str),
    rank: usize,
    diagonal: Option<Diagonal>,
) -> Result<(usize, usize)> {
    let ((rank_a, inputs), (outputs, rank_b)) = (module.matrix(a)?, module.matrix(b)?);
    let path = module.path();
    if module.is_stack() {
        let experts = module.matrices();
        let want = rank.checked_mul(experts);
        if Some(rank_a) != want || Some(rank_b) != want {
            return Err(mismatch(format!(
                "stacked rank {rank_a} (A) and {rank_b} (B), but {experts} experts of rank {rank} need {}",
                want.unwrap_or(usize::MAX)
            ))
            .in_tensor(a));
        }
        return Ok((inputs, outputs));
    }
    let spread = |stored: usize, blocks: usize, rows: usize, tensor: &str| {
        let wide = stored.checked_mul(blocks).filter(|_| rows.is_multiple_of(blocks));
        wide.ok_or_else(|| {
            mismatch(format!("{rows} rows cannot be cut into the {blocks} equal blocks of `use_bdlora`"))
                .in_tensor(tensor)
                .with_hint("adapter_config.json and the weights are of different adapters")
        })
    };
    let (inputs, rank_b) = match diagonal {
        Some(Diagonal::A(blocks)) => (spread(inputs, blocks, rank_a, a)?, rank_b),
        Some(Diagonal::B(blocks)) => (inputs, spread(rank_b, blocks, outputs, b)?),
        None => (inputs, rank_b),
    };
    if rank_a != rank {
        return Err(mismatch(format!("rank {rank_a}, but the configuration says {rank} for `{path}`"))
            .in_tensor(a)
            .with_hint("adapter_config.json and the weights are of different adapters, or a rank_pattern is missing"));
    }
    if rank_b != rank {
        let grouped = module.is_convolution() && rank_b > 0 && rank.is_multiple_of(rank_b) && rank_b < rank;
        return Err(if grouped {
            unsupported(format!(
                "`{}` is a grouped convolution; its adapter sees all channels, so no grouped weight can hold it",
                module.base_name()
            ))
        } else {
            mismatch(format!("rank {rank_b}, but A has rank {rank}"))
        }
        .in_tensor(b));
    }
    Ok((inputs, outputs))
}

/// The elements of the kernel between A and B, by which A's inputs are fewer than the convolution's.
pub(super) fn kernel(module: &Module<'_>, mid: &str, rank: usize) -> Result<usize> {
    let shape = module.shape(mid)?;
    let elements = shape.get(2..).and_then(|kernel| kernel.iter().try_fold(1_usize, |all, len| all.checked_mul(*len)));
    match (shape, elements) {
        ([outer, inner, _, ..], Some(elements)) if [*outer, *inner] == [rank, rank] && elements <= 1 << 16 => {
            Ok(elements)
        }
        _ => {
            Err(mismatch(format!("shape {shape:?}, expected a kernel between {rank} and {rank} channels"))
                .in_tensor(mid))
        }
    }
}

/// The bias of B, which goes into that of the module.
fn bias_of(module: &Module<'_>, bias: &str, outputs: usize, scale: f64) -> Result<Planned> {
    if !module.has_bias() {
        let problem = format!("`lora_bias` adds to the bias of `{}`, and the base layer has none", module.path());
        return Err(unsupported(problem).in_tensor(bias));
    }
    let have: usize = module.shape(bias)?.iter().product();
    // PEFT forgets the scaling on bitsandbytes layers.
    let forgets = module.options().peft_bugs && !module.is_plain();
    let scale = if forgets { 1.0 } else { scale } * module.weight();
    let change = BiasPlan { tensor: bias.to_owned(), outputs, scale, widens: forgets };
    Ok(Planned { on: On::Bias, outputs: have, inputs: 1, change: Arc::new(change), tensors: vec![bias.to_owned()] })
}

/// A vector that is added to a bias.
#[derive(Debug)]
pub(super) struct BiasPlan {
    pub(super) tensor: String,
    pub(super) outputs: usize,
    pub(super) scale: f64,
    /// PEFT stores the sum as f32 on bitsandbytes layers.
    pub(super) widens: bool,
}

impl ChangePlan for BiasPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::add(Vector { values: loader.floats(&self.tensor)?, scale: self.scale as f32 }))
    }

    fn memory(&self) -> u64 {
        4 * self.outputs as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn stores_as(&self) -> Option<Dtype> {
        self.widens.then_some(Dtype::F32)
    }
}
