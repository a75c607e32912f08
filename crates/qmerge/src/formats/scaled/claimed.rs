//! The tensors of a stored weight, checked one by one.

use std::sync::Arc;

use super::{Role, Scaled};
use crate::dtype::Dtype;
use crate::error::{Error, Result, malformed, mismatch};
use crate::formats::{Claim, Module, Part};
use crate::open::Entry;

/// The parts of a weight as they are found.
pub(in crate::formats) struct Companions<'m, 'c> {
    module: &'m Module<'c>,
    entries: Vec<Entry>,
    roles: Vec<Role>,
}

impl<'m, 'c> Companions<'m, 'c> {
    /// The codes come first.
    pub(in crate::formats) fn new(module: &'m Module<'c>, lead: &Entry) -> Self {
        Self { module, entries: vec![lead.clone()], roles: vec![Role::Codes] }
    }

    /// A tensor that must be there.
    pub(in crate::formats) fn need(&mut self, role: Role, leaf: &str) -> Result<&'c Entry> {
        let entry = self.module.get(leaf).ok_or_else(|| missing(self.module, leaf))?;
        self.add(role, entry);
        Ok(entry)
    }

    /// A tensor that was found already.
    pub(in crate::formats) fn add(&mut self, role: Role, entry: &Entry) {
        self.entries.push(entry.clone());
        self.roles.push(role);
    }

    /// Whichever of these are there, and stay what they are.
    pub(in crate::formats) fn keep(&mut self, leaves: &[&str]) {
        for entry in leaves.iter().filter_map(|leaf| self.module.get(leaf)) {
            self.add(Role::Kept, entry);
        }
    }

    /// The weight that they make, once its fields are known.
    pub(in crate::formats) fn claim(self, weight: Scaled) -> Claim {
        let part = |entry: &Entry| Part {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: Some(entry.shape.clone()),
            bytes: entry.bytes,
        };
        let parts = self.entries.iter().map(part).collect();
        Claim { weight: Arc::new(Scaled { parts, roles: self.roles, ..weight }), entries: self.entries }
    }
}

fn missing(module: &Module<'_>, leaf: &str) -> Error {
    mismatch(format!("its companion `{}.{leaf}` is missing", module.path))
        .with_hint("the checkpoint is incomplete: download it again")
}

/// A tensor that is not what the weight needs it to be; `wanted` says what that is.
pub(in crate::formats) fn misfit(entry: &Entry, wanted: &str) -> Error {
    malformed(format!("{} of shape {:?}, expected {wanted}", entry.dtype, entry.shape))
        .in_tensor(&entry.name)
        .with_hint("the file does not fit its configuration: download both again, or save the model again with the tool that quantized it")
}

/// The dimensions in a small tensor of whole numbers.
pub(in crate::formats) fn dimensions(module: &Module<'_>, entry: &Entry) -> Result<Vec<usize>> {
    let wrong = || misfit(entry, "two or three dimensions as I64 or I32");
    let bytes = module.checkpoint.read_small(entry, 64).map_err(|error| error.in_tensor(&entry.name))?;
    let numbers: Vec<i64> = match entry.dtype {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        _ => return Err(wrong()),
    };
    let dims: Option<Vec<usize>> = numbers.iter().map(|&n| usize::try_from(n).ok()).collect();
    // What no file can hold would overflow.
    let dims = dims.filter(|dims| {
        dims.iter().try_fold(1_usize, |all, &dim| all.checked_mul(dim)).is_some_and(|all| all < 1 << 48)
    });
    dims.ok_or_else(wrong)
}

/// The group of each column from a stored index; `None` where none was ever set (−1 throughout). Errors if one is no group.
pub(in crate::formats) fn groups(entry: &Entry, bytes: &[u8], groups: usize) -> Result<Option<Arc<[u32]>>> {
    let index: Vec<i32> = bytes.as_chunks().0.iter().map(|four| i32::from_le_bytes(*four)).collect();
    if index.iter().all(|&group| group == -1) {
        return Ok(None);
    }
    match index.iter().position(|&group| group < 0 || group as usize >= groups) {
        Some(at) => Err(malformed(format!(
            "input {at} is of group {}, but there are scales for {groups}",
            index.get(at).copied().unwrap_or(0)
        ))
        .in_tensor(&entry.name)
        .with_hint("the checkpoint is damaged: download it again")),
        None => Ok(Some(index.iter().map(|&group| group as u32).collect())),
    }
}
