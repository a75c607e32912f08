//! Choices for weights that a format stores afresh, by name. Each format says which it knows, and reads its own.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::dtype::Dtype;
use crate::error::{Result, mismatch, usage};

/// Sizes of groups that loaders have kernels for.
const GROUPS: &[usize] = &[128, 64, 32];

/// Errors if `inputs` are no whole groups; `chosen` is true where the user may take others.
pub(super) fn whole_groups(name: &str, inputs: usize, group: usize, chosen: bool) -> Result<()> {
    if inputs.is_multiple_of(group) {
        return Ok(());
    }
    let fitting = GROUPS.iter().find(|size| chosen && inputs.is_multiple_of(**size));
    Err(mismatch(format!("its {inputs} inputs are no whole groups of {group}"))
        .in_tensor(name)
        .with_hint(fitting.map_or("take another format".to_owned(), |size| format!("--block-size {size} fits it"))))
}

/// Rows, columns and the module of a matrix that a format is made of.
pub(super) fn made<'n>(id: &str, name: &'n str, shape: &[usize]) -> Result<(usize, usize, &'n str)> {
    match (shape, name.strip_suffix(".weight")) {
        (&[rows, cols], Some(module)) => Ok((rows, cols, module)),
        _ => Err(mismatch(format!("{id} stores matrices named `….weight`, not shape {shape:?}")).in_tensor(name)),
    }
}

/// The type of scales of 16 bits for values of a type, which loaders want.
pub(super) fn sixteen_bits(values: Dtype) -> Dtype {
    if values == Dtype::F16 { Dtype::F16 } else { Dtype::BF16 }
}

/// A choice that a format leaves to the user.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name ("block_size").
    pub name: &'static str,
    /// True if it matters too where a weight has the format already and only its scales are fresh.
    pub of_scales: bool,
}

/// What was chosen; what is not named has the format's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// The same with a choice more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// A choice, or the format's default. Errors if it is no such value.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        self.read(name, default, |value| value.parse().ok())
    }

    /// The same of a number that has to be one of these.
    pub(super) fn one_of(&self, name: &str, default: usize, of: &[usize]) -> Result<usize> {
        let chosen = self.get(name, default)?;
        if of.contains(&chosen) {
            return Ok(chosen);
        }
        Err(usage(format!("{} {chosen} is none of {of:?}", name.replace('_', " "))))
    }

    /// Inputs that share a scale, of formats that let the user choose.
    pub(super) fn group(&self, default: usize) -> Result<usize> {
        self.one_of("block_size", default, GROUPS)
    }

    /// The same of a choice whose values have words of their own.
    pub(super) fn read<T>(&self, name: &str, default: T, read: impl Fn(&str) -> Option<T>) -> Result<T> {
        match self.0.get(name) {
            None => Ok(default),
            Some(value) => read(value).ok_or_else(|| usage(format!("{name} cannot be `{value}`"))),
        }
    }
}
