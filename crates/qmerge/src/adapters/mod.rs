//! Adapters: what an adapter folder means, as edits of named weights.
//!
//! One file per method and one line in [`ADAPTERS`]. A method knows its own tensors and its own configuration, and plans a change of one module's matrix
//! (outputs, inputs) from names and shapes ([`Layers::layer`]); numbers are read later, one weight at a time. What all methods share stands beside them:
//!
//! - `keys`: which module a tensor belongs to, and what it is there;
//! - `read`: the way over all tensors and modules, which puts every tensor into one of four places: merged, replaced, ignored for a stated reason, or
//!   unused, which is an error unless allowed;
//! - `names`, `site` and `place`: the weight that holds a module's matrix, and how it lies there: turned, in a stack of experts, a part of a fused one;
//! - `dialects`: files that other programs than PEFT wrote, as what PEFT's would say;
//! - `parameters`, `added` and `tokens`: modules trained whole, what is added to parameters as it is, and trained rows of embeddings;
//! - `tuned`: models trained whole, as what they differ from their base by.
//!
//! The reference for the meaning of a file is PEFT 0.21; where its merge contradicts its own forward pass, the forward pass wins.

// An adapter's file is hostile: nothing here may panic on it.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod adalora;
mod adapter;
mod added;
pub(crate) mod base_names;
mod beft;
mod beside;
mod boft;
mod c3a;
mod changes;
mod config;
mod defined;
mod deft;
mod delora;
mod dialects;
mod factored;
mod fourierft;
mod frod;
mod glora;
mod gralora;
mod hira;
mod hra;
mod ia3;
mod keys;
mod ln_tuning;
mod loha;
mod lokr;
mod lora;
mod miss;
mod module;
mod moved;
mod names;
mod numbers;
mod numpy_random;
mod of_base;
mod oft;
mod osf;
mod parameters;
mod patterns;
mod peanut;
mod place;
mod plan;
mod randlora;
mod read;
mod refused;
mod road;
mod rotation;
mod scales;
mod shira;
mod site;
mod stacks;
mod supertuning;
mod targets;
mod tinylora;
mod tokens;
mod torch_random;
mod tuned;
mod unilora;
mod vblora;
mod vera;
mod waveft;
mod wavelets;
mod wrapped;

use std::fmt::Debug;

pub use adapter::Adapter;
#[doc(hidden)]
pub use adapter::weight_files;
#[doc(hidden)]
pub use beside::MERGED as MERGED_BESIDE;
pub use beside::{BESIDE_ADAPTER, LeftOut};
#[doc(hidden)]
pub use changes::{Addition, Changes, PlannedEdit, Replacement};
#[cfg(feature = "internals")]
pub(crate) use config::parse as parse_config;
pub use config::{AdapterConfig, Task};
#[cfg(feature = "internals")]
pub(crate) use lora::try_patterns;
pub(crate) use lora::{LoraTensors, Pair, idle_residual, plain_config};
#[doc(hidden)]
pub use module::{Module, Shared, Tensors};
#[doc(hidden)]
pub use names::{Names, Rename};
pub(crate) use numbers::read_floats;
use numbers::read_number;
#[doc(hidden)]
pub use plan::{ChangePlan, Loader, On, Placed, Planned};
pub use scales::Scales;
pub(crate) use stacks::{Piece, Stack, router};
#[doc(hidden)]
pub use tuned::TaskVector;
pub(crate) use wrapped::declared;

use crate::edit::Joining;
use crate::error::Result;

/// Every method whose adapters can be merged.
pub static ADAPTERS: &[&dyn PeftMethod] = &[
    &lora::Lora,
    &tokens::TrainableTokens,
    &ia3::Ia3,
    &loha::LoHa,
    &lokr::LoKr,
    &adalora::AdaLora,
    &oft::Oft,
    &boft::Boft,
    &hra::Hra,
    &vera::Vera,
    &vera::Pvera,
    &randlora::RandLora,
    &fourierft::FourierFt,
    &ln_tuning::LnTuning,
    &miss::Miss,
    &miss::Bone,
    &c3a::C3a,
    &road::Road,
    &shira::Shira,
    &hira::Hira,
    &gralora::GraLora,
    &delora::DeLora,
    &vblora::VbLora,
    &waveft::WaveFt,
    &beft::Beft,
    &supertuning::SuperTuning,
    &deft::Deft,
    &peanut::Peanut,
    &glora::Glora,
    &osf::Osf,
    &tinylora::TinyLora,
    &unilora::UniLora,
    &frod::Frod,
];

/// A method of training an adapter.
pub trait PeftMethod: Sync {
    /// `peft_type` in `adapter_config.json`.
    fn peft_type(&self) -> &'static str;

    /// The names that its tensors go by.
    fn markers(&self) -> Markers;

    /// Reads its own configuration, with PEFT's defaults for what is missing.
    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>>;

    /// What PEFT takes for a rank or an alpha that a configuration leaves out, where it has fields for both.
    #[doc(hidden)]
    fn default_rank(&self) -> Option<f64> {
        None
    }

    /// Markers of the tensors that an inspection lists modules by, one of each module, and what their shapes are called; `None` where all tensors count.
    #[doc(hidden)]
    fn listed(&self) -> Option<(&'static [&'static str], &'static str)> {
        None
    }

    /// What is said of an adapter that is as before any training, and of such modules of one.
    #[doc(hidden)]
    fn untrained(&self) -> [&'static str; 2] {
        UNTRAINED
    }

    /// The field of the configuration that says which rows trained tokens are.
    fn token_indices(&self) -> &'static str {
        "trainable_token_indices"
    }
}

/// What is said of an adapter that is as before any training, whatever its method is, and of such modules of one.
const UNTRAINED: [&str; 2] = ["what begins at zero still is", "have nothing but zeros in what begins at zero"];

/// Components of tensor names: what stands before one is the path of a module.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Markers {
    /// Of a module's tensors ("lora_A").
    pub own: &'static [&'static str],
    /// Of tensors that all modules share ("vera_A"), which belong to no module.
    pub shared: &'static [&'static str],
    /// Of tensors that only training uses.
    pub training_only: &'static [&'static str],
    /// Of copies of modules that were trained whole: what stands behind one is the name of the parameter ("ln_tuning_layers.weight").
    pub whole: &'static [&'static str],
}

/// A method with one adapter's configuration.
#[doc(hidden)]
pub trait Layers: Debug + Send + Sync {
    /// Errors if no fixed weight could hold what this adapter does, or not so many times as the user asked for.
    fn refuse(&self, _options: &ReadOptions, _weight: f64) -> Result<()> {
        Ok(())
    }

    /// What of the configuration was passed over, though it may change what the adapter means.
    fn doubts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Errors if the tensors of a module do not belong together, even where the base has no such module.
    fn check(&self, _module: &str, _tensors: &Tensors) -> Result<()> {
        Ok(())
    }

    /// Plans what becomes of a module: a change of its matrix, of its bias, or both. It looks at names and shapes only.
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>>;

    /// Paths of modules that it changes and the file does not name, by itself or because all tensors are shared.
    fn targets(&self, _names: &Names<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Markers of tensors that are zero before training and make a module's whole change zero then.
    fn zero_at_first(&self) -> &'static [&'static str] {
        &[]
    }
}

/// Where factors on the inputs of a gated feed-forward's last layer go: they do the same to the outputs of the layer before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputFactors {
    /// To the layer before, where both weights are quantized.
    #[default]
    Quantized,
    /// To the layer before, whatever the weights are stored as: as a merge of them quantized has them.
    Moved,
    /// They stay, as in PEFT.
    InPlace,
}

/// Choices that change what an adapter means.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The base already holds the residual weights that a PiSSA, OLoRA, CorDA or LoftQ initialisation left.
    pub base_is_residual: bool,
    /// Reproduce what PEFT writes where that contradicts its own forward pass.
    pub peft_bugs: bool,
    /// Factors on what all adapters do in some modules.
    pub scales: Scales,
    /// Where factors on a layer's inputs go.
    pub input_factors: InputFactors,
    /// How task vectors are joined, of which there may be several for a weight.
    pub joining: Joining,
}
