//! Choices for weights that a format stores afresh, by name. Each format says which it knows, and reads its own.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::error::{Result, usage};

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

    /// The same of a choice whose values have words of their own.
    pub(super) fn read<T>(&self, name: &str, default: T, read: impl Fn(&str) -> Option<T>) -> Result<T> {
        match self.0.get(name) {
            None => Ok(default),
            Some(value) => read(value).ok_or_else(|| usage(format!("{name} cannot be `{value}`"))),
        }
    }
}
