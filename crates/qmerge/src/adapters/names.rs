//! From a module path in an adapter to a weight of the base.
//!
//! The rule is that names are equal. Where they are not, in this order: the user's `--map`, the family's renames, and last a
//! match by suffix that must be unique. Every name that needed help is remembered, so that the report can say so.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use fancy_regex::Regex;

use super::patterns;
use crate::arch::{self, Arch};
use crate::error::{Result, mismatch, usage};
use crate::formats::Claim;
use crate::open::Checkpoint;

/// The names of a base model.
#[derive(Debug)]
pub struct Names<'a> {
    /// The base.
    pub checkpoint: &'a Checkpoint,
    /// Its weights.
    pub weights: &'a [Claim],
    /// Its family.
    pub arch: &'static Arch,
    by_name: HashMap<&'a str, usize>,
    maps: Vec<(Regex, String)>,
    renamed: RefCell<Vec<Rename>>,
    suffixes: OnceCell<HashMap<&'a str, Vec<usize>>>,
}

/// A name of the adapter that stands for another in the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// As the adapter says.
    pub from: String,
    /// As the base says.
    pub to: String,
}

/// A match by suffix must keep at least this many components, or `weight` would match anything.
const MIN_SUFFIX: usize = 3;

impl<'a> Names<'a> {
    /// Indexes a base's weights. `maps` are the user's `regex=>replacement` rules, tried in order on whole names.
    pub fn new(checkpoint: &'a Checkpoint, weights: &'a [Claim], maps: &[String]) -> Result<Self> {
        let model_type = checkpoint.config.as_ref().map_or("", |config| config.model_type());
        let maps = maps
            .iter()
            .map(|map| {
                let (pattern, replacement) = map.split_once("=>").ok_or_else(|| {
                    usage(format!("`--map {map}` has no `=>`")).with_hint("write --map 'regex=>replacement'")
                })?;
                let regex = patterns::compile(pattern)
                    .map_err(|cause| usage(format!("`--map {map}` is not a regular expression: {cause}")))?;
                Ok((regex, replacement.to_owned()))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            checkpoint,
            weights,
            arch: arch::find(model_type),
            by_name: weights.iter().enumerate().map(|(i, claim)| (claim.weight.name(), i)).collect(),
            maps,
            renamed: RefCell::default(),
            suffixes: OnceCell::new(),
        })
    }

    /// The weight of exactly that name.
    pub fn exact(&self, name: &str) -> Option<&'a Claim> {
        self.by_name.get(name).map(|&i| &self.weights[i])
    }

    /// The weight that an adapter means by `name` (module path and parameter).
    ///
    /// Errors if a match by suffix is not unique.
    pub fn find(&self, name: &str) -> Result<Option<&'a Claim>> {
        let found = self.candidates(name)?;
        if let Some(claim) = found
            && claim.weight.name() != name
        {
            self.renamed.borrow_mut().push(Rename { from: name.to_owned(), to: claim.weight.name().to_owned() });
        }
        Ok(found)
    }

    /// What [`Names::find`] had to rename so far.
    pub fn renamed(&self) -> Vec<Rename> {
        self.renamed.borrow().clone()
    }

    fn candidates(&self, name: &str) -> Result<Option<&'a Claim>> {
        for (regex, replacement) in &self.maps {
            if let Ok(true) = regex.is_match(name) {
                let mapped = regex.replace(name, replacement.as_str());
                return Ok(self.exact(&mapped));
            }
        }
        if let Some(claim) = self.exact(name) {
            return Ok(Some(claim));
        }
        for name in renames(self.arch, name) {
            if let Some(claim) = self.exact(&name) {
                return Ok(Some(claim));
            }
        }
        self.by_suffix(name)
    }

    fn by_suffix(&self, name: &str) -> Result<Option<&'a Claim>> {
        let suffixes = self.suffixes.get_or_init(|| {
            let mut suffixes: HashMap<&str, Vec<usize>> = HashMap::new();
            for (i, claim) in self.weights.iter().enumerate() {
                for suffix in suffixes_of(claim.weight.name()) {
                    suffixes.entry(suffix).or_default().push(i);
                }
            }
            suffixes
        });
        for suffix in suffixes_of(name) {
            match suffixes.get(suffix).map_or(&[][..], Vec::as_slice) {
                [] => {}
                [one] => return Ok(Some(&self.weights[*one])),
                [one, two, ..] => {
                    return Err(mismatch(format!(
                        "`{name}` could be `{}` or `{}`",
                        self.weights[*one].weight.name(),
                        self.weights[*two].weight.name(),
                    ))
                    .with_hint("say which with --map 'regex=>replacement'"));
                }
            }
        }
        Ok(None)
    }

    /// The input embedding's weight.
    pub fn embed(&self) -> Option<&'a Claim> {
        self.first(self.arch.embed)
    }

    /// The output embedding's weight, where it is stored.
    pub fn head(&self) -> Option<&'a Claim> {
        self.first(self.arch.head)
    }

    fn first(&self, modules: &[&str]) -> Option<&'a Claim> {
        modules.iter().find_map(|module| self.exact(&format!("{module}.weight")))
    }

    /// True if the path names the output embedding of this family.
    pub fn is_head(&self, module: &str) -> bool {
        self.arch.head.contains(&module)
    }

    /// True if the output embedding is not stored because it is the input embedding.
    pub fn is_tied(&self) -> bool {
        let says = self.checkpoint.config.as_ref().and_then(|config| config.tied());
        self.head().is_none() && self.embed().is_some() && says != Some(false)
    }
}

/// The name and what remains as leading components are dropped, longest first.
fn suffixes_of(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |rest| rest.split_once('.').map(|(_, rest)| rest))
        .take_while(|rest| rest.split('.').count() >= MIN_SUFFIX)
}

/// Other spellings of a name, one rule at a time.
fn renames<'n>(arch: &'static Arch, name: &'n str) -> impl Iterator<Item = String> + 'n {
    arch.renames.iter().filter_map(move |(from, to)| {
        if from.starts_with('.') {
            name.contains(from).then(|| name.replacen(from, to, 1))
        } else {
            name.strip_prefix(from).map(|rest| format!("{to}{rest}"))
        }
    })
}
