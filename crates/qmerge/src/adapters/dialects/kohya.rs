//! Adapters of diffusion models as kohya's sd-scripts and LyCORIS write them: one file, whose names have underscores for dots.
//!
//! The factor is `alpha / rank` of each module by itself, 1 where there is no alpha. Source: sd-scripts, `networks/lora.py`; LyCORIS 3, `lycoris/modules`.

use std::collections::BTreeMap;

use super::diffusion::{Component, Components, Whereabouts};
use super::{Dialect, Foreign, Stated, Translation};
use crate::adapters::keys::{Key, Role};
use crate::adapters::{Names, read_number};
use crate::error::{Result, unsupported};
use crate::open::{Checkpoint, Entry};

#[derive(Debug)]
pub(super) struct Kohya;

/// What module names begin with, and the part of the pipeline that it stands for.
const PREFIXES: &[(&str, Component)] = &[
    ("lora_unet_", Component::Denoiser),
    ("lora_transformer_", Component::Denoiser),
    ("lycoris_", Component::Denoiser),
    ("lora_te_", Component::Text(0)),
    ("lora_te1_", Component::Text(0)),
    ("lora_te2_", Component::Text(1)),
    ("lora_te3_", Component::Text(2)),
];

/// What stands behind a module's name: the method, and the method's own name for the tensor.
const TENSORS: &[(&str, &str, &str)] = &[
    ("lora_down.weight", "LORA", "lora_A"),
    ("lora_up.weight", "LORA", "lora_B"),
    ("lora_mid.weight", "LORA", "lora_mid"),
    ("dora_scale", "LORA", "lora_magnitude_vector"),
    ("hada_w1_a", "LOHA", "hada_w1_a"),
    ("hada_w1_b", "LOHA", "hada_w1_b"),
    ("hada_w2_a", "LOHA", "hada_w2_a"),
    ("hada_w2_b", "LOHA", "hada_w2_b"),
    ("hada_t1", "LOHA", "hada_t1"),
    ("hada_t2", "LOHA", "hada_t2"),
    ("lokr_w1", "LOKR", "lokr_w1"),
    ("lokr_w1_a", "LOKR", "lokr_w1_a"),
    ("lokr_w1_b", "LOKR", "lokr_w1_b"),
    ("lokr_w2", "LOKR", "lokr_w2"),
    ("lokr_w2_a", "LOKR", "lokr_w2_a"),
    ("lokr_w2_b", "LOKR", "lokr_w2_b"),
    ("lokr_t2", "LOKR", "lokr_t2"),
];

/// What is added to a parameter as it is, in files of any method: to weights, biases and norms.
const ADDED: &[(&str, &str)] = &[("diff", "weight"), ("diff_b", "bias"), ("w_norm", "weight"), ("b_norm", "bias")];

/// What the tensors of a module say together.
#[derive(Default)]
struct ModuleTensors<'e> {
    alpha: Option<&'e Entry>,
    /// By marker.
    tensors: BTreeMap<&'static str, &'e Entry>,
}

impl Dialect for Kohya {
    fn writer(&self) -> &'static str {
        "kohya's sd-scripts or LyCORIS"
    }

    fn claims(&self, file: &Foreign<'_>) -> bool {
        file.mostly(|name| {
            name.split_once('.')
                .is_some_and(|(module, _)| PREFIXES.iter().any(|(prefix, _)| module.starts_with(prefix)))
        })
    }

    fn read(&self, file: &Foreign<'_>) -> Result<Translation> {
        let mut translation = Translation::default();
        let mut modules: BTreeMap<&str, ModuleTensors<'_>> = BTreeMap::new();
        let mut method: Option<(&str, &str)> = None;
        let mut has_added = false;
        for entry in &file.tensors.entries {
            let (module, end) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
            let found = modules.entry(module).or_default();
            if end == "alpha" {
                found.alpha = Some(entry);
                let reason = "it stands in the factor of its module's product";
                translation.keys.insert(entry.name.clone(), Key::of(module, Role::PassedOver(reason)));
                continue;
            }
            if let Some((_, parameter)) = ADDED.iter().find(|(name, _)| *name == end) {
                has_added = true;
                translation.keys.insert(entry.name.clone(), Key::of(module, Role::Added(parameter)));
                continue;
            }
            let Some((_, own, marker)) = TENSORS.iter().find(|(name, ..)| *name == end) else {
                return Err(unsupported(format!("`{end}` is nothing that this version merges of such an adapter (it reads LoRA, LoCon, DoRA, LoHa, LoKr and what is added whole)"))
                    .in_tensor(&entry.name)
                    .with_hint("merge it with the program that trained it"));
            };
            match method {
                Some((before, first)) if before != *own => {
                    return Err(unsupported(format!("a tensor of {own}, and `{first}` is one of {before}: a file of several methods is not read by this version"))
                        .in_tensor(&entry.name)
                        .with_hint("merge it with the program that trained it"));
                }
                _ => method = Some((own, &entry.name)),
            }
            found.tensors.insert(marker, entry);
            translation.keys.insert(entry.name.clone(), Key::of(module, Role::Own(marker, false)));
        }
        let method = match method {
            Some((method, _)) => method,
            None if has_added => super::ADDED,
            None => return Err(unsupported("alphas alone, and nothing that they are factors of")),
        };
        for (module, found) in &modules {
            if let Some(stated) = found.stated(file.tensors, module)? {
                translation.stated.insert((*module).to_owned(), stated);
            }
        }
        let scaled = modules.values().filter(|found| found.tensors.contains_key("lora_magnitude_vector")).count();
        let layers = modules.values().filter(|found| !found.tensors.is_empty()).count();
        translation.config.insert("peft_type".into(), method.into());
        // A magnitude acts wherever there is one; the flag says that all modules have theirs.
        if method == "LORA" {
            translation.config.insert("use_dora".into(), (scaled > 0 && scaled == layers).into());
        }
        let (rank, alpha) = if method == "LORA" { ("r", "lora_alpha") } else { ("r", "alpha") };
        translation.tell_scaling(rank, alpha);
        Ok(translation)
    }

    fn places(&self, names: &Names<'_>, modules: &[&str]) -> Result<Vec<Option<Whereabouts>>> {
        let parts = Components::of(names)?;
        let place = |module: &&str| {
            let found = PREFIXES.iter().find_map(|(prefix, part)| Some((module.strip_prefix(prefix)?, *part)));
            let Some((flat, part)) = found else { return Ok(None) };
            parts.flat(part, flat).map_err(|error| error.in_tensor(module))
        };
        modules.iter().map(place).collect()
    }

    fn names_need_base(&self) -> bool {
        true
    }
}

impl ModuleTensors<'_> {
    /// Rank and factor; none where there is nothing but an alpha, or a factor is missing, which the method tells.
    fn stated(&self, tensors: &Checkpoint, module: &str) -> Result<Option<Stated>> {
        let rank =
            |marker: &str, axis: usize| self.tensors.get(marker).and_then(|entry| entry.shape.get(axis)).copied();
        let is_whole = |marker: &str| self.tensors.contains_key(marker);
        if let Some(entry) = self.tensors.get("lora_magnitude_vector")
            && entry.shape.iter().skip(1).any(|len| *len != 1)
        {
            return Err(unsupported(format!("shape {:?}: magnitudes of inputs, as early versions of LyCORIS trained them, and a DoRA of outputs is what is merged", entry.shape))
                .in_tensor(&entry.name)
                .with_hint("merge it with the program that trained it"));
        }
        let (whole, found) = match () {
            () if is_whole("lokr_w1") && is_whole("lokr_w2") => (true, Some(1)),
            () => {
                let ranks = [("lora_A", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)];
                (false, ranks.iter().find_map(|(marker, axis)| rank(marker, *axis)))
            }
        };
        let Some(rank) = found else { return Ok(None) };
        let alpha = match self.alpha {
            // Two whole matrices have no rank that alpha could be divided by, and LyCORIS takes 1.
            _ if whole => None,
            None => None,
            Some(entry) => Some(read_number(tensors, entry)?),
        };
        if alpha == Some(0.0) {
            let name = self.alpha.map_or("", |entry| entry.name.as_str());
            return Err(unsupported(format!(
                "an alpha of 0: sd-scripts takes it for the rank, {rank}, and others for a factor of 0"
            ))
            .in_tensor(name)
            .with_hint(format!("write the alpha of `{module}` that is meant")));
        }
        Ok(Some(Stated { rank, scale: alpha.map_or(1.0, |alpha| alpha / rank as f64), heads: None }))
    }
}
