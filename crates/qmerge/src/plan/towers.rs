//! What a GGUF file does not hold of a model that sees or hears: its towers, which llama.cpp takes from a file of their own.

use super::{Inputs, Options};
use crate::adapters::{Adapter, Changes};
use crate::arch::gguf::towers;
use crate::error::{Result, counted, mismatch};
use crate::open::Checkpoint;

const BOTH_FILES: &str = "merge into a folder (--to bf16) and make both files of that: `qmerge convert` the model's, llama.cpp's `convert_hf_to_gguf.py --mmproj` the other";

impl Inputs {
    /// The tower of the base that a tensor belongs to, or what leads from one into the language model.
    pub(crate) fn tower_of(&self, name: &str) -> Option<&'static str> {
        self.base.config.as_ref().and_then(|config| towers::tower(config, name))
    }

    /// That towers do not come along, where there are any.
    pub(super) fn says_towers_left_out(&self) -> Option<String> {
        let left_out: Vec<&str> = self.base.entries.iter().filter_map(|entry| self.tower_of(&entry.name)).collect();
        let mut names = left_out.clone();
        names.sort_unstable();
        names.dedup();
        let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
        (!names.is_empty()).then(|| {
            format!(
                "the file holds the language model alone, and what it sees or hears with is left out ({}: {}): llama.cpp takes that from an mmproj file, which its `convert_hf_to_gguf.py --mmproj` makes of the base, and which the merge does not change",
                names.join(", "),
                counted(left_out.len(), "tensor", "tensors")
            )
        })
    }
}

/// What to do about a tensor of an adapter that belongs to a tower, where the base is a file that holds none; `is_part` where the adapter changes the language model too.
pub(super) fn hint_of_file(base: &Checkpoint, tensor: &str, is_part: bool) -> Option<String> {
    const PEFT: &str = "base_model.model.";
    let tower = towers::named(tensor.strip_prefix(PEFT).unwrap_or(tensor)).filter(|_| base.is_self_contained())?;
    let or = if is_part { ", or leave these changes out with --allow-unused" } else { "" };
    Some(format!(
        "a GGUF file holds the language model alone, and `{tower}` is no part of it: llama.cpp takes what a model sees or hears with from an mmproj file; merge into the folder that both files are made of{or}"
    ))
}

/// Refuses what an adapter changes of towers where the output has none, or leaves it out and says so.
pub(super) fn set_aside(
    inputs: &Inputs,
    options: &Options,
    adapter: &Adapter,
    changes: &mut Changes,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if options.export.is_none() || inputs.base.is_self_contained() {
        return Ok(());
    }
    let is_kept = |target: &str| inputs.tower_of(target).is_none();
    let edits = changes.edits.iter().filter(|edit| !is_kept(&edit.target));
    let edited = edits.flat_map(|edit| edit.tensors.iter().map(|tensor| (&edit.target, tensor)));
    let replacements = changes.replacements.iter().filter(|replacement| !is_kept(&replacement.target));
    let replaced = replacements.map(|replacement| (&replacement.target, &replacement.tensor));
    let mut all: Vec<(String, String)> =
        edited.chain(replaced).map(|(target, tensor)| (target.clone(), tensor.clone())).collect();
    all.sort_by(|(_, one), (_, other)| one.cmp(other));
    all.dedup_by(|(_, one), (_, other)| one == other);
    let Some((target, first)) = all.first() else { return Ok(()) };
    changes.edits.retain(|edit| is_kept(&edit.target));
    changes.replacements.retain(|replacement| is_kept(&replacement.target));
    let is_part = !changes.edits.is_empty() || !changes.replacements.is_empty();
    let which = format!("{} of {} adapter tensors", all.len(), adapter.tensors.entries.len());
    if !(options.allow_unused && is_part) {
        let problem = format!(
            "it changes `{target}`, which is left out of a GGUF file: llama.cpp takes what a model sees or hears with from an mmproj file ({which})"
        );
        let or = if is_part { ", or leave these changes out with --allow-unused" } else { "" };
        return Err(mismatch(problem).in_file(adapter.file()).in_tensor(first).with_hint(format!("{BOTH_FILES}{or}")));
    }
    warnings.push(format!("{which} change what the model sees or hears with, which a GGUF file does not hold, and are left out, first `{first}`"));
    changes.unused.extend(all.into_iter().map(|(_, tensor)| tensor));
    Ok(())
}
