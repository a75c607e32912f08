//! Files of other tools: recognised, so that an error names them and says what to do.
//!
//! How a checkpoint's *weights* are stored is the business of `formats`; here are files and folders that are no safetensors checkpoint and no PEFT
//! adapter in the first place.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Checkpoint, Entry};
use crate::error::{Error, Result, malformed, unsupported};

/// What every Git LFS pointer begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Longest pointer that Git LFS writes.
const MAX_POINTER: u64 = 1024;
/// Small files that an output takes over, by the end of their name.
const TAKEN_OVER: &[&str] = &[".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"];

const GGUF_MODEL: &str = "take what it was made from (a safetensors checkpoint, or an adapter as PEFT wrote it), and turn a merge into GGUF with llama.cpp's convert_hf_to_gguf.py";

/// Refuses a file by its first bytes.
pub(super) fn refuse_head(head: &[u8]) -> Result<()> {
    if head.starts_with(b"GGUF") {
        return Err(unsupported("a GGUF file, which this version does not read").with_hint(GGUF_MODEL));
    }
    refuse_pointer(head)
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
pub(crate) fn refuse_pointers_in(folder: &Path) -> Result<()> {
    for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = item.path();
        let name = item.file_name();
        let small = || std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_POINTER);
        if TAKEN_OVER.iter().any(|ending| name.to_string_lossy().ends_with(ending)) && small() {
            refuse_pointer(&head(&path)).map_err(|error| error.in_file(&path))?;
        }
    }
    Ok(())
}

/// The first bytes of a file; none where it cannot be read, which whoever opens it will say.
fn head(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A short read gives a short head.
    let _ = File::open(path).and_then(|file| file.take(64).read_to_end(&mut bytes));
    bytes
}

/// An adapter by the names of its tensors.
#[derive(Debug)]
struct AdapterKind {
    what: &'static str,
    /// True for a name that this kind gives.
    names: fn(&str) -> bool,
    /// What to do with it; `None` for PEFT's own, which is read.
    remedy: Option<&'static str>,
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
        remedy: Some("merge it with diffusers: load_lora_weights, fuse_lora, then save_pretrained"),
    },
    AdapterKind {
        what: "a kohya (sd-scripts) or LyCORIS adapter",
        names: |name| {
            ["lora_unet_", "lora_te", "lora_transformer_", "lora_prior_", "lycoris_"]
                .iter()
                .any(|start| name.starts_with(start))
                || [".lora_down.weight", ".lora_up.weight", ".lora_mid.weight"].iter().any(|end| name.ends_with(end))
        },
        remedy: Some(
            "merge it with diffusers (load_lora_weights, fuse_lora, save_pretrained) or with the scripts that trained it",
        ),
    },
    AdapterKind {
        what: "an MLX adapter",
        names: |name| name.ends_with(".lora_a") || name.ends_with(".lora_b"),
        remedy: Some(
            "merge it with `mlx_lm.fuse`, or write it as PEFT does: each lora_a and lora_b transposed, as lora_A.weight and lora_B.weight, with an adapter_config.json",
        ),
    },
    AdapterKind {
        what: "an adapter",
        names: |name| name.starts_with("base_model.model.") || name.contains(".lora_A.") || name.contains(".lora_B."),
        remedy: None,
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
    let place = checkpoint.files.first().map_or(checkpoint.path.as_path(), |file| file.path.as_path());
    if checkpoint.metadata.iter().flatten().any(|(key, _)| key.starts_with("qmerge.")) {
        return Err(unsupported("a calibration that `qmerge calibrate` wrote, not a model")
            .in_file(place)
            .with_hint("it goes with --calibration; the base is the model that it was taken from"));
    }
    if let Some(kind) = kind_of(&checkpoint.entries) {
        return Err(unsupported(format!("{}, not a model", kind.what))
            .in_file(place)
            .with_hint(kind.remedy.unwrap_or("the model that it was trained on is the base, and this the adapter")));
    }
    refuse_empty(checkpoint)
}

/// Refuses a path that holds an adapter of another tool. Whatever else is wrong with it is not looked at here.
pub(crate) fn refuse_as_adapter(path: &Path) -> Result<()> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    refuse_pointers_in(folder)?;
    let files: Vec<_> = if path.is_dir() { weight_files(path) } else { vec![path.to_path_buf()] };
    for file in files {
        let head = head(&file);
        if head.starts_with(b"GGUF") {
            return Err(unsupported("a GGUF file, which is not read as an adapter").in_file(&file).with_hint(
                "take the PEFT folder (adapter_config.json, adapter_model.safetensors) that it was made from",
            ));
        }
        refuse_pointer(&head).map_err(|error| error.in_file(&file))?;
        let Ok(tensors) = Checkpoint::open_container(&file) else { continue };
        if let Some(AdapterKind { what, remedy: Some(remedy), .. }) = kind_of(&tensors.entries) {
            return Err(unsupported(format!("{what}, not one of PEFT")).in_file(&file).with_hint(*remedy));
        }
    }
    Ok(())
}

/// The files of a folder that may hold an adapter: PEFT's own where it is there.
fn weight_files(folder: &Path) -> Vec<std::path::PathBuf> {
    /// More files than these are a model's shards.
    const MOST: usize = 4;
    let own = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| folder.join(name));
    if let Some(file) = own.into_iter().find(|file| file.is_file()) {
        return vec![file];
    }
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|item| item.path());
    let weights = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|ending| ending == "safetensors" || ending == "gguf") && path.is_file()
    };
    let mut files: Vec<_> = items.filter(weights).collect();
    files.sort();
    files.truncate(MOST);
    files
}

/// Refuses tensors without elements in place of weights: what DeepSpeed's ZeRO-3 leaves of parameters that were not gathered.
pub(super) fn refuse_empty(checkpoint: &Checkpoint) -> Result<()> {
    let empty = |entry: &&Entry| entry.shape == [0] && entry.dtype.is_plain_float();
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
pub(super) fn no_weights(folder: &Path, names: &[String]) -> Error {
    let is = |wanted: &str| names.iter().any(|name| name == wanted);
    if names.iter().any(|name| name.starts_with("adapter_model")) {
        return unsupported("this folder holds an adapter, not a model")
            .in_file(folder)
            .with_hint("the model that it was trained on is the base, and this the adapter");
    }
    if is("model_index.json") {
        return unsupported("a diffusers pipeline: its models are in the folders below")
            .in_file(folder)
            .with_hint("give one of them, as transformer or unet");
    }
    if names.iter().any(|name| name.ends_with(".gguf")) {
        return unsupported("the weights are GGUF, which this version does not read")
            .in_file(folder)
            .with_hint(GGUF_MODEL);
    }
    let pickled = |name: &String| {
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
