//! Adapter files that other programs than PEFT wrote, as what PEFT's would say.
//!
//! One file per program and one line in [`DIALECTS`]. A dialect says of each tensor which module it belongs to and what it is there, in the order in which PEFT
//! has the elements, and with what rank and factor; the methods, and whoever takes an adapter, know nothing of it. The file's own names stay, so that messages
//! name what is there.

mod diffusers;
mod diffusion;
mod flux;
mod gguf;
mod kohya;
mod mlx;
mod tinker;

pub(super) use diffusion::Whereabouts;

use std::collections::HashMap;
use std::fmt::Debug;

use serde_json::{Map, Value};

use super::keys::Key;
use super::{Adapter, AdapterConfig, Layers, Markers, Module, Names, PeftMethod, Planned, ReadOptions};
use crate::arch::gguf::Heads;
use crate::error::{Error, Result, mismatch, usage};
use crate::open::arranged::Arrangement;
use crate::open::{Checkpoint, Item, ItemKind, Store};

/// Every program whose files are told from PEFT's.
pub(super) static DIALECTS: &[&dyn Dialect] =
    &[&gguf::Gguf, &mlx::Mlx, &kohya::Kohya, &diffusers::Diffusers, &tinker::Tinker];

/// A program that writes adapters in a way of its own.
pub(super) trait Dialect: Debug + Sync {
    /// Its name.
    fn writer(&self) -> &'static str;

    /// The names of its weight files, where it gives them one; the first that is there is taken.
    fn files(&self) -> &'static [&'static str] {
        &[]
    }

    /// True if it writes a folder, as PEFT does; false if all stands in one file.
    fn is_folder(&self) -> bool {
        false
    }

    /// True for its files: told by the names of tensors, by keys, or by the configuration.
    fn claims(&self, file: &Foreign<'_>) -> bool;

    /// Says what it means. Errors where that cannot be known, or PEFT has no word for it.
    fn read(&self, file: &Foreign<'_>) -> Result<Translation>;

    /// True if what its names of modules mean is only known beside a base, which [`Dialect::places`] says then.
    fn names_need_base(&self) -> bool {
        false
    }

    /// Where the base has modules that it names; none for one that stays as it is called. Errors if that cannot be told.
    fn places(&self, _names: &Names<'_>, modules: &[&str]) -> Result<Vec<Option<Whereabouts>>> {
        Ok(vec![None; modules.len()])
    }

    /// Errors if it cannot be an adapter of that base.
    fn check_base(&self, _adapter: &Adapter, _names: &Names<'_>) -> Result<()> {
        Ok(())
    }
}

/// A weight file, and the `adapter_config.json` beside it if there is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreign<'a> {
    pub(super) tensors: &'a Checkpoint,
    pub(super) config: Option<&'a Map<String, Value>>,
}

impl Foreign<'_> {
    /// True if more than half of the tensors have such names.
    fn mostly(&self, named: impl Fn(&str) -> bool) -> bool {
        let all = self.tensors.entries.len();
        let of_kind = self.tensors.entries.iter().filter(|entry| named(&entry.name)).count();
        of_kind > all.saturating_sub(of_kind)
    }

    /// The dialect that it is of.
    pub(super) fn dialect(&self) -> Option<&'static dyn Dialect> {
        DIALECTS.iter().copied().find(|dialect| dialect.claims(self))
    }
}

/// What a file means, in PEFT's words.
#[derive(Debug, Default)]
pub(super) struct Translation {
    /// Its configuration, as PEFT would write it.
    pub(super) config: Map<String, Value>,
    /// What each tensor is, by its name.
    pub(super) keys: HashMap<String, Key>,
    /// What is to be put into another order.
    pub(super) arrangements: Vec<(String, Arrangement)>,
    /// Ranks and factors by module, which go before those of the configuration.
    pub(super) stated: HashMap<String, Stated>,
}

/// What an adapter's file says of one module's product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stated {
    pub(super) rank: usize,
    pub(super) scale: f64,
    /// Its outputs are heads whose rows have another order than the model's.
    pub(super) heads: Option<Heads>,
}

/// What an adapter may be whose factors do not fit each other.
const DAMAGED: &str = "the file is damaged, or holds what no version of the program is known to write";

impl Translation {
    /// Takes down rank and factor of a module, by one of its tensors. Errors if another said otherwise.
    fn state(&mut self, module: &str, stated: Stated, tensor: &str) -> Result<()> {
        match self.stated.insert(module.to_owned(), stated).filter(|before| *before != stated) {
            Some(before) => Err(mismatch(format!(
                "rank {}, but the other factor of `{module}` has rank {}",
                stated.rank, before.rank
            ))
            .in_tensor(tensor)
            .with_hint(DAMAGED)),
            None => Ok(()),
        }
    }

    /// Ranks and alphas in the configuration, where all modules have the same.
    fn tell_scaling(&mut self, rank: &str, alpha: &str) {
        let mut all = self.stated.values();
        let Some(first) = all.next().copied() else { return };
        if all.all(|other| (other.rank, other.scale) == (first.rank, first.scale)) {
            self.config.insert(rank.into(), first.rank.into());
            self.config.insert(alpha.into(), (first.scale * first.rank as f64).into());
        }
    }
}

/// The weight file of another program in a folder; none if there is none. Errors if there are several.
pub(super) fn find(store: &dyn Store, is_one: impl Fn(&str) -> bool) -> Result<Option<String>> {
    let named = DIALECTS.iter().flat_map(|dialect| dialect.files().iter().copied()).find(|name| store.has(name));
    if let Some(name) = named {
        return Ok(Some(name.to_owned()));
    }
    let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let items = store.list("")?.into_iter().filter(|item: &Item| item.kind == ItemKind::File && weights(&item.name));
    // A model's shards are not looked into one by one.
    let names: Vec<String> = items.map(|item| item.name).collect();
    let found: Vec<String> =
        if names.len() > MOST { Vec::new() } else { names.into_iter().filter(|name| is_one(name)).collect() };
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => Err(usage(format!("this folder holds several adapters: {}", several.join(", ")))
            .in_file(store.path())
            .with_hint("give the path of one of these files")),
    }
}

/// The error for a factor of that shape.
fn no_matrix(tensor: &str, shape: &[usize]) -> Error {
    mismatch(format!("shape {shape:?}, expected a matrix, or a stack of them for experts"))
        .in_tensor(tensor)
        .with_hint(DAMAGED)
}

/// More weight files than these in a folder are not looked into.
const MOST: usize = 64;

/// All that was trained are parameters under the base's own names.
#[derive(Debug)]
pub(super) struct Whole;

impl PeftMethod for Whole {
    fn peft_type(&self) -> &'static str {
        "FULL"
    }

    fn markers(&self) -> Markers {
        Markers::default()
    }

    fn configure(&self, _: &AdapterConfig) -> Result<Box<dyn Layers>> {
        Ok(Box::new(NoLayers))
    }
}

/// `peft_type` of what consists of nothing but additions.
const ADDED: &str = "ADDED";

/// All that was trained is added to parameters of the base.
#[derive(Debug)]
pub(super) struct Added;

impl PeftMethod for Added {
    fn peft_type(&self) -> &'static str {
        ADDED
    }

    fn markers(&self) -> Markers {
        Markers::default()
    }

    fn configure(&self, _: &AdapterConfig) -> Result<Box<dyn Layers>> {
        Ok(Box::new(OnlyAdded))
    }
}

#[derive(Debug)]
struct OnlyAdded;

impl Layers for OnlyAdded {
    fn layer(&self, _: &Module<'_>) -> Result<Vec<Planned>> {
        Ok(Vec::new())
    }
}

#[derive(Debug)]
struct NoLayers;

impl Layers for NoLayers {
    fn refuse(&self, _: &ReadOptions, weight: f64) -> Result<()> {
        if weight == 1.0 {
            return Ok(());
        }
        Err(usage(format!(
            "parameters trained whole take the base's place or do not: the weight {weight} has no meaning"
        )))
    }

    fn layer(&self, _: &Module<'_>) -> Result<Vec<Planned>> {
        Ok(Vec::new())
    }
}
