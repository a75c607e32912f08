//! GGUF adapters, as llama.cpp's `convert_lora_to_gguf.py` writes them and its programs load them.
//!
//! A weight's factors stand under its name in GGUF (`blk.0.attn_q.weight.lora_a`), where B's rows are in the order of the weight's: those of queries and keys may
//! be paired by neighbours. An embedding's A is turned. The factor is `adapter.lora.alpha / r`, or 1 where alpha is 0 or missing; whatever else PEFT's
//! configuration said of scaling is not in the file. Source: llama.cpp, `convert_lora_to_gguf.py`, `src/llama-adapter.{cpp,h}`.

use super::{Dialect, Foreign, Stated, Translation};
use crate::adapters::keys::{Key, Role};
use crate::adapters::{Adapter, Names};
use crate::arch::gguf::{File, towers};
use crate::error::{Error, Result, malformed, mismatch, unsupported};
use crate::open::Value;
use crate::open::arranged::Arrangement;

#[derive(Debug)]
pub(super) struct Gguf;

const PEFT_FOLDER: &str = "take the PEFT folder (adapter_config.json, adapter_model.safetensors) that it was made from";

impl Dialect for Gguf {
    fn writer(&self) -> &'static str {
        "llama.cpp"
    }

    fn claims(&self, file: &Foreign<'_>) -> bool {
        file.tensors.gguf.as_ref().is_some_and(|keys| keys.text("general.type") == Some("adapter"))
    }

    fn read(&self, file: &Foreign<'_>) -> Result<Translation> {
        let Some(keys) = file.tensors.gguf.as_deref() else { return Err(malformed("not a GGUF file")) };
        let refuse = |problem: String| -> Error { unsupported(problem).with_hint(PEFT_FOLDER) };
        match keys.text("adapter.type") {
            Some("lora") => {}
            Some(other) => return Err(refuse(format!("a GGUF adapter of the type `{other}`, and only LoRA is known"))),
            None => return Err(malformed("the key `adapter.type` is missing: the kind of adapter is unknown")),
        }
        if keys.get("adapter.alora.invocation_tokens").is_some() {
            return Err(unsupported(
                "an aLoRA acts only behind its invocation tokens, so no fixed weight can hold its effect",
            )
            .with_hint("serve the base with the adapter kept apart"));
        }
        let alpha = match keys.get("adapter.lora.alpha") {
            None => 0.0,
            Some(Value::Float(alpha)) if alpha.is_finite() => alpha,
            Some(_) => return Err(malformed("the key `adapter.lora.alpha` is no finite float")),
        };
        let architecture = keys.architecture();
        let layout = File::of(file.tensors).ok().flatten().ok_or_else(|| {
            refuse(format!("a GGUF adapter of the architecture `{architecture}`, whose names and order of rows are not known to this version"))
        })?;
        let mut found = Translation::default();
        found.config.insert("peft_type".into(), "LORA".into());
        let repository =
            keys.text("general.base_model.0.repo_url").and_then(|url| url.strip_prefix("https://huggingface.co/"));
        if let Some(base) = repository {
            found.config.insert("base_model_name_or_path".into(), base.into());
        }
        for entry in &file.tensors.entries {
            let name = entry.name.as_str();
            let Some((stored, end)) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "lora_a" | "lora_b"))
            else {
                let reason = "llama.cpp passes over what is no factor in an adapter";
                found.keys.insert(name.to_owned(), Key::of(name, Role::PassedOver(reason)));
                continue;
            };
            let own = stored.strip_suffix(".weight").and_then(|path| layout.named_module(path));
            let Some(own) = own else {
                return Err(refuse(format!("a factor of `{stored}`, which no model of the architecture `{architecture}` has that this version knows"))
                    .in_tensor(name));
            };
            if !entry.dtype.is_plain_float() {
                return Err(refuse(format!("stored as {}, and factors are read as F32, F16 or BF16", entry.dtype))
                    .in_tensor(name));
            }
            let &[rows, cols] = &entry.shape[..] else {
                return Err(refuse(format!("shape {:?}, expected a matrix", entry.shape)).in_tensor(name));
            };
            let is_a = end == "lora_a";
            let rank = match (is_a, own.is_table) {
                (true, true) => {
                    found.arrangements.push((name.to_owned(), Arrangement::turned(rows, cols)));
                    cols
                }
                (true, false) => rows,
                (false, _) => cols,
            };
            let stated = Stated { rank, scale: if alpha == 0.0 { 1.0 } else { alpha / rank as f64 }, heads: own.heads };
            found.state(&own.module, stated, name)?;
            let marker = match (is_a, own.is_table) {
                (true, false) => "lora_A",
                (false, false) => "lora_B",
                (true, true) => "lora_embedding_A",
                (false, true) => "lora_embedding_B",
            };
            found.keys.insert(name.to_owned(), Key::of(&own.module, Role::Own(marker, false)));
        }
        found.tell_scaling("r", "lora_alpha");
        Ok(found)
    }

    fn check_base(&self, adapter: &Adapter, names: &Names<'_>) -> Result<()> {
        let Ok(Some(layout)) = File::of(&adapter.tensors) else { return Ok(()) };
        let own = layout.architecture();
        let (what, fits) = match names.checkpoint.gguf.as_deref() {
            Some(keys) => {
                (format!("a GGUF file of the architecture `{}`", keys.architecture()), keys.architecture() == own)
            }
            // Of a model that sees it is its language model's.
            None => {
                let config = names.checkpoint.config.as_ref();
                let of_base = config.and_then(|config| towers::stored(config).ok());
                let fits = layout.model_types().contains(&names.model_type());
                let fits = fits || of_base.is_some_and(|(_, layout)| layout.architecture() == own);
                (format!("of the type `{}`", names.model_type()), fits)
            }
        };
        if fits {
            return Ok(());
        }
        let types = layout.model_types().join(", ");
        Err(mismatch(format!("a GGUF adapter for the architecture `{own}` ({types}), but the base is {what}"))
            .with_hint("the order of rows is the architecture's: merge it into a model of its own, or take the PEFT folder that it was made from"))
    }
}
