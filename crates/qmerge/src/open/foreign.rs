//! Files of other tools: recognised, so that an error names them and says what to do.
//!
//! How a checkpoint's *weights* are stored is the business of `formats`, and how an adapter's are that of `adapters`; here are files and folders that are no model
//! in the first place.

use std::collections::HashSet;
use std::path::Path;

use super::{Blob, Checkpoint, Entry, ItemKind, Metadata, SMALL_ENDINGS, Store};
use crate::error::{Error, Result, malformed, unsupported};

/// What every Git LFS pointer begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Longest pointer that Git LFS writes.
const MAX_POINTER: u64 = 1024;

const ADAPTER: &str = "the model that it was trained on is the base, and this the adapter";

/// The first bytes of an object, which say what it is before its name does. Errors if that is nothing that is read.
pub(super) fn read_head(blob: &dyn Blob) -> Result<Vec<u8>> {
    let mut head = vec![0; blob.len().min(64) as usize];
    blob.read_at(0, &mut head)?;
    refuse_pointer(&head).map_err(|error| error.in_file(blob.path()))?;
    Ok(head)
}

/// Refuses what Git LFS leaves in place of a file that it has not fetched.
pub(super) fn refuse_pointer(head: &[u8]) -> Result<()> {
    if head.starts_with(POINTER) {
        return Err(malformed("a Git LFS pointer: the file itself was not downloaded")
            .with_hint("run `git lfs pull` in its folder, or download the folder again with `hf download`"));
    }
    Ok(())
}

/// Refuses pointers in place of the small files that would be copied beside the output's weights.
pub(crate) fn refuse_pointers_in(store: &dyn Store) -> Result<()> {
    // A folder that cannot be listed is for whoever needs the list to tell.
    for item in store.list("").unwrap_or_default() {
        let small = item.kind == ItemKind::File && item.len <= MAX_POINTER;
        if small && SMALL_ENDINGS.iter().any(|ending| item.name.ends_with(ending)) {
            refuse_pointer(&head(store, &item.name)).map_err(|error| error.in_file(&store.path_of(&item.name)))?;
        }
    }
    Ok(())
}

/// The first bytes of a file; none where it cannot be read, which whoever opens it will say.
fn head(store: &dyn Store, name: &str) -> Vec<u8> {
    let read = || {
        let blob = store.open(name)?;
        let mut bytes = vec![0; blob.len().min(64) as usize];
        blob.read_at(0, &mut bytes).map(|()| bytes)
    };
    read().unwrap_or_default()
}

/// An adapter by the names of its tensors.
#[derive(Debug)]
struct AdapterKind {
    what: &'static str,
    /// True for a name that this kind gives.
    names: fn(&str) -> bool,
}

const KINDS: &[AdapterKind] = &[
    AdapterKind {
        what: "a diffusers LoRA",
        names: |name| {
            let parts = ["unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "prior."];
            let trained =
                [".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".lora_linear_layer.", "_lora.down.", "_lora.up."];
            trained.iter().skip(2).any(|mark| name.contains(mark))
                || parts.iter().any(|part| name.starts_with(part)) && trained.iter().any(|mark| name.contains(mark))
        },
    },
    AdapterKind {
        what: "a kohya (sd-scripts) or LyCORIS adapter",
        names: |name| {
            ["lora_unet_", "lora_te", "lora_transformer_", "lora_prior_", "lycoris_"]
                .iter()
                .any(|start| name.starts_with(start))
                || [".lora_down.weight", ".lora_up.weight", ".lora_mid.weight"].iter().any(|end| name.ends_with(end))
        },
    },
    AdapterKind { what: "an MLX adapter", names: |name| name.ends_with(".lora_a") || name.ends_with(".lora_b") },
    AdapterKind {
        what: "an adapter",
        names: |name| name.starts_with("base_model.model.") || name.contains(".lora_A.") || name.contains(".lora_B."),
    },
];

/// The kind of adapter that most of some tensors belong to.
fn kind_of(entries: &[Entry]) -> Option<&'static AdapterKind> {
    let most = |kind: &&AdapterKind| {
        let of_kind = entries.iter().filter(|entry| (kind.names)(&entry.name)).count();
        of_kind > entries.len().saturating_sub(of_kind)
    };
    KINDS.iter().find(most)
}

/// Refuses an opened checkpoint that is no model.
pub(super) fn refuse_as_model(checkpoint: &Checkpoint) -> Result<()> {
    let place = checkpoint.files.first().map_or(checkpoint.path.as_path(), |file| file.path());
    if checkpoint.metadata.iter().flatten().any(|(key, _)| key.starts_with("qmerge.")) {
        return Err(unsupported("a calibration that `qmerge calibrate` wrote, not a model")
            .in_file(place)
            .with_hint("it goes with --calibration; the base is the model that it was taken from"));
    }
    if let Some(metadata) = &checkpoint.gguf {
        refuse_gguf(metadata).map_err(|error| error.in_file(place))?;
        return Ok(());
    }
    if let Some(kind) = kind_of(&checkpoint.entries) {
        return Err(unsupported(format!("{}, not a model", kind.what)).in_file(place).with_hint(ADAPTER));
    }
    refuse_empty(checkpoint)
}

/// Refuses GGUF files that hold something else than a language model, by what they say of themselves.
fn refuse_gguf(metadata: &Metadata) -> Result<()> {
    match (metadata.text("general.type").unwrap_or("model"), metadata.architecture()) {
        ("adapter", _) => Err(unsupported("a GGUF adapter, not a model").with_hint(ADAPTER)),
        ("imatrix", _) => Err(unsupported("an importance matrix, not a model").with_hint("it goes with --imatrix")),
        ("mmproj", _) | (_, "clip") => Err(unsupported("what helps a model to see (mmproj), not the model")
            .with_hint("the model is the GGUF file beside it")),
        (_, "") => Err(malformed("the key `general.architecture` is missing: the kind of model is unknown")
            .with_hint("take a file that llama.cpp's converter wrote")),
        _ => Ok(()),
    }
}

/// Refuses tensors without elements in place of weights: what DeepSpeed's ZeRO-3 leaves of parameters that were not gathered.
pub(super) fn refuse_empty(checkpoint: &Checkpoint) -> Result<()> {
    fn parent(path: &str) -> &str {
        path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
    // What has no elements beside a matrix that has none was made so: a decomposition that keeps nothing, a norm of features that there are none of. Parameters that were not gathered are [0],
    // matrices too.
    let has_none = |entry: &&Entry| entry.shape.len() > 1 && entry.shape.contains(&0);
    let none = || checkpoint.entries.iter().filter(has_none).map(|entry| parent(&entry.name));
    let made: HashSet<&str> = none().chain(none().map(parent)).collect();
    let is_made = |name: &str| made.contains(parent(name)) || made.contains(parent(parent(name)));
    let empty = |entry: &&Entry| entry.shape == [0] && entry.dtype.is_plain_float() && !is_made(&entry.name);
    let mut found = checkpoint.entries.iter().filter(empty);
    let Some(first) = found.next() else { return Ok(()) };
    let count = found.count().saturating_add(1);
    Err(malformed(format!(
        "it is empty (shape [0]), as {count} of {} tensors are: ZeRO-3 saves parameters so where it has not gathered them",
        checkpoint.entries.len()
    ))
    .in_file(checkpoint.file_of(first))
    .in_tensor(&first.name)
    .with_hint(
        "save again with stage3_gather_16bit_weights_on_model_save, or run the zero_to_fp32.py that DeepSpeed put beside the checkpoint",
    ))
}

/// A folder without a checkpoint, by what it holds in place of one.
pub(super) fn no_weights(folder: &Path, names: &[&str]) -> Error {
    let is = |wanted: &str| names.contains(&wanted);
    if names.iter().any(|name| name.starts_with("adapter_model")) {
        return unsupported("this folder holds an adapter, not a model").in_file(folder).with_hint(ADAPTER);
    }
    if is("model_index.json") {
        return unsupported("a diffusers pipeline: its models are in the folders below")
            .in_file(folder)
            .with_hint("give one of them, as transformer or unet");
    }
    let pickled = |name: &&str| {
        [".bin", ".pth", ".pt"].iter().any(|ending| name.ends_with(ending))
            && ["pytorch_model", "model", "consolidated"].iter().any(|start| name.starts_with(start))
    };
    if names.iter().any(pickled) {
        return unsupported("the weights are pickled (.bin), and models are read as safetensors only")
            .in_file(folder)
            .with_hint("load the model once and save it with safe_serialization=True");
    }
    malformed("no .safetensors file in this folder")
        .in_file(folder)
        .with_hint("give the folder that holds config.json and the weights")
}
