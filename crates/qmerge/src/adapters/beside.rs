//! Trained weights that trainers write into other files of the adapter's folder.
//!
//! PEFT writes one weight file. LLaVA and its kin put the projector that was trained whole into `non_lora_trainables.bin`, ms-swift a vision tower
//! into `vit.safetensors`: tensors under the base's names, which are merged as modules trained whole. What is not the base's is named: a value head
//! or reward model's head plays no part in the model's output, rows for new tokens do.

use crate::error::Result;
use crate::open::{ItemKind, Store};

/// The name of a calibration that lies in the folder of the adapter in whose training it was taken.
pub const BESIDE_ADAPTER: &str = "qmerge_calibration.safetensors";

/// Files whose tensors are the base's own, trained whole.
pub const MERGED: &[&str] = &[
    "non_lora_trainables.bin",
    "non_lora_trainables.safetensors",
    "non_lora_state_dict.bin",
    "non_lora_state_dict.safetensors",
    "mm_projector.bin",
    "mm_projector.safetensors",
    "vit.safetensors",
    "vit.bin",
];

/// Rows of tokens that the base does not have.
const NEW_TOKENS: &[&str] = &["new_embeddings.safetensors", "new_embeddings.bin"];

/// Heads of training methods.
const VALUE_HEADS: &[&str] = &["value_head.safetensors", "value_head.bin", "v_head.safetensors", "v_head.bin"];

/// What a trainer needs to go on, and other forms of the adapter itself.
const NOT_TRAINED: &[&str] = &[
    "adapter_model.safetensors",
    "adapter_model.bin",
    "optimizer.bin",
    "optimizer.pt",
    "optimizer.safetensors",
    "scheduler.bin",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
    "rng_state.pth",
    "reference.safetensors",
];

/// Tensor files beside an adapter's own.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// To be merged with it.
    pub(super) merged: Vec<String>,
    /// Left out of the merge; the first only if the user allows it.
    pub(super) left_out: Vec<LeftOut>,
}

/// A tensor file that is not merged.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its name.
    pub file: String,
    /// Why.
    pub reason: &'static str,
    /// True if the model's output is another without it.
    pub matters: bool,
}

/// Sorts the files of a folder; `own` are the adapter's weights.
pub(super) fn look(folder: &dyn Store, own: &str) -> Result<Beside> {
    let items = folder.list("")?.into_iter().filter(|item| item.kind == ItemKind::File);
    let mut beside = Beside::default();
    for name in items.map(|item| item.name).filter(|name| is_tensors(name)) {
        let is = |list: &[&str]| list.contains(&name.as_str());
        let is_other = is(NOT_TRAINED) || name.starts_with("rng_state_") || name == BESIDE_ADAPTER;
        if name == own || is_other {
            continue;
        }
        if is(MERGED) {
            beside.merged.push(name);
            continue;
        }
        let (reason, matters) = if is(NEW_TOKENS) {
            ("it holds rows of new tokens for the embeddings, which this version does not merge", true)
        } else if is(VALUE_HEADS) {
            ("a value head, which plays no part in what the model writes", false)
        } else {
            ("its tensors are not the adapter's, and what they are is not known", false)
        };
        beside.left_out.push(LeftOut { file: name, reason, matters });
    }
    Ok(beside)
}

fn is_tensors(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending))
}
