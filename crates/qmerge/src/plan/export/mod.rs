//! Outputs in another container than the base's: how a model that lies in one lies in the other.
//!
//! One file per container and one line in [`EXPORTS`]. An export says under which name, in which order of rows and in which format each weight of the model is stored, and what the container's
//! file says beside. It knows nothing of adapters and of rounding: weights are decoded, edited and rounded as in any merge, and stored as the model's.

mod folder;
mod general;
mod gguf;
mod importance;
mod lost;
mod requantized;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use super::quantized::Quantized;
use super::steps::ConfigChange;
use super::{Inputs, Options};
use crate::adapters::Names;
use crate::arch::gguf::View;
use crate::error::Result;
use crate::formats::Format;
use crate::open::ModelConfig;
use crate::open::container::WriteContainer;

pub(super) use folder::FOLDER;
pub use importance::Importance;

/// Every export that can be asked for by its name.
pub static EXPORTS: &[&dyn Export] = gguf::ALL;

/// A container, and what is stored in it.
pub trait Export: Debug + Sync {
    /// Its name in `--to`.
    fn id(&self) -> &'static str;

    /// One line for the help and the documentation.
    fn about(&self) -> &'static str;

    /// The end of its files' names, with the dot.
    fn ending(&self) -> &'static str;

    /// True if values become codes.
    fn quantizes(&self) -> bool;

    /// Decides how a model is stored. Errors if it cannot be.
    #[doc(hidden)]
    fn export(&self, model: &Model<'_, '_>) -> Result<Exported>;
}

/// A model that is to be stored.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Model<'a, 'n> {
    pub(super) inputs: &'a Inputs,
    pub(super) options: &'a Options,
    pub(super) names: &'a Names<'n>,
    pub(super) quantized: &'a Quantized<'n>,
    /// Names and dimensions of the output's weights.
    pub(super) weights: &'a [(String, Vec<usize>)],
    pub(super) change: &'a ConfigChange,
    /// An adapter brings tensors that the base lacks.
    pub(super) has_additions: bool,
}

/// How it is stored.
#[doc(hidden)]
#[derive(Debug)]
pub struct Exported {
    /// By the model's name of a weight.
    pub(super) places: HashMap<String, Destination>,
    /// Tensors that are no weights of the model.
    pub(super) constants: Vec<Constant>,
    /// What the base has beside the weights that are written anew is copied.
    pub(super) copies_rest: bool,
    /// Name of the file of tensors.
    pub(super) file: String,
    pub(super) container: Arc<dyn WriteContainer>,
    /// What the container's file says beside its tensors, where it says it as safetensors do.
    pub(super) metadata: Vec<(String, String)>,
    /// Names of tensors in their order; `None` for the container's own.
    pub(super) order: Option<Vec<String>>,
    /// The model's configuration, where it lies beside.
    pub(super) config: Option<ModelConfig>,
    /// Files beside, by name.
    pub(super) beside: Vec<(String, Vec<u8>)>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

/// Where a weight goes.
#[derive(Clone)]
pub(super) enum Destination {
    /// Into no tensor: the container has none for it, and the model needs none.
    Nowhere,
    /// As it is in the base, whose container the output has too.
    Same,
    Tensor {
        /// How it lies there, if otherwise than in the model.
        view: Option<View>,
        format: &'static dyn Format,
        /// How large its inputs are, where that is given.
        importance: Option<Arc<[f32]>>,
        /// Format and importance of the other tensors, where it lies in several.
        others: Vec<Kind>,
    },
}

/// How a tensor is stored, and how large its inputs are, where that is given.
pub(super) type Kind = (&'static dyn Format, Option<Arc<[f32]>>);

impl Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("Nowhere"),
            Self::Same => f.write_str("Same"),
            Self::Tensor { view, format, .. } => write!(f, "{view:?} as {}", format.id()),
        }
    }
}

/// A tensor that is written as it stands here.
#[derive(Clone, Debug)]
pub struct Constant {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Arc<[f32]>,
}

impl Constant {
    /// Its bytes, little endian.
    pub fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// Their number.
    pub fn len(&self) -> u64 {
        4 * self.values.len() as u64
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}
