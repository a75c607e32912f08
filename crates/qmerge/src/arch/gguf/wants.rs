//! What llama.cpp wants of a file of an architecture, beyond what its keys say: tensors that it does not do without though folders of the family may lack them, biases that it has no place for, and
//! figures that its code has for all models.

use std::collections::HashSet;

use super::bounds;
use super::layout::Layout;
use crate::open::gguf::{Metadata, Value};

/// A figure that llama.cpp's code has for all models of an architecture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wired {
    of: Of,
    is: Is,
    /// True if llama.cpp runs a model that has another, with its own; else it does not load the file.
    runs: bool,
}

/// What a figure is of.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// A key behind the architecture's name.
    Key(&'static str),
    /// The rows of a part of a layer, in the first that has it.
    Rows(&'static str),
}

/// A figure.
#[derive(Clone, Copy, Debug)]
enum Is {
    Number(f64),
    /// That of another key.
    Same(&'static str),
    /// The number of layers behind so many.
    LayersBehind(u64),
}

impl Wired {
    /// A key that may say nothing else.
    pub(super) const fn key(key: &'static str, number: f64) -> Self {
        Self { of: Of::Key(key), is: Is::Number(number), runs: false }
    }

    /// A key that may say nothing else than another.
    pub(super) const fn same(key: &'static str, other: &'static str) -> Self {
        Self { of: Of::Key(key), is: Is::Same(other), runs: false }
    }

    /// Rows of a part of a layer.
    pub(super) const fn rows(part: &'static str, number: f64) -> Self {
        Self { of: Of::Rows(part), is: Is::Number(number), runs: false }
    }

    /// A key that llama.cpp does not read.
    pub(super) const fn unread(key: &'static str, number: f64) -> Self {
        Self { of: Of::Key(key), is: Is::Number(number), runs: true }
    }

    /// The same, which counts the layers behind so many.
    pub(super) const fn unread_behind(key: &'static str, layers: u64) -> Self {
        Self { of: Of::Key(key), is: Is::LayersBehind(layers), runs: true }
    }
}

/// Heads that share the residual stream, as llama.cpp has it in architectures with no width of a head.
pub(super) const HEADS_FILL: Wired = Wired { of: Of::Rows("attn_q"), is: Is::Same("embedding_length"), runs: false };

/// Biases of layer norms.
pub(super) const NORM_BIASES: &[&str] = &["output_norm.bias", "blk.*.attn_norm.bias", "blk.*.ffn_norm.bias"];
/// The same of families with one norm a layer.
pub(super) const ONE_NORM_BIASES: &[&str] = &["output_norm.bias", "blk.*.attn_norm.bias"];
/// Biases of what comes behind queries, keys and values.
pub(super) const OUTPUT_BIASES: &[&str] = &["blk.*.attn_output.bias", "blk.*.ffn_up.bias", "blk.*.ffn_down.bias"];
/// A head that is not the embedding.
pub(super) const OWN_HEAD: &[&str] = &["output.weight"];

/// Layers, in the name of a tensor: all, and those behind the leading ones without experts.
const ALL: &str = "blk.*.";
const BEHIND: &str = "blk.+.";

/// An architecture of which llama.cpp goes by windows in models of so many layers only.
const EXAONE4: (&str, u64) = ("exaone4", 64);

impl Layout {
    /// What a file with these keys and tensors does not have as llama.cpp wants it, each a warning.
    pub(crate) fn unmet(&self, metadata: &Metadata, stored: &[(String, Vec<usize>)]) -> Vec<String> {
        let names: HashSet<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        let fails = |what: String| {
            format!("llama.cpp does not load the file: its models of the architecture `{}` {what}", self.architecture)
        };
        let lacks = stored.iter().find(|(name, _)| self.lacks(name)).map(|(name, _)| format!("have no `{name}`"));
        let needed = || self.needed(metadata, |name| names.contains(name)).map(|name| format!("have a `{name}`"));
        let mut unmet: Vec<String> = lacks.or_else(needed).map(fails).into_iter().collect();
        for wired in self.wired {
            let Some((what, wanted, own)) = self.differs(wired, metadata, stored) else { continue };
            let own = own.map_or("none".to_owned(), |own| own.to_string());
            unmet.push(match wired.runs {
                true => format!("llama.cpp runs the model otherwise: {what} is {wanted} for it, whatever the file says, which is {own}"),
                false => fails(format!("have {wanted} for {what}, and this one has {own}")),
            });
        }
        if self.never_slides(metadata) {
            unmet.push(fails("have a window in a layer at least, and this one has none".to_owned()));
        }
        unmet.extend(bounds::beyond(self.architecture, metadata, stored));
        unmet
    }

    /// True if llama.cpp has no place for the tensor of that name: a bias that its graph of the architecture lacks.
    fn lacks(&self, stored: &str) -> bool {
        let part = stored.strip_suffix(".bias").and_then(|path| path.strip_prefix("blk.")?.split_once('.'));
        part.is_some_and(|(_, part)| !part.contains("norm") && !self.biased.contains(&part))
    }

    /// A tensor that llama.cpp looks for in vain.
    fn needed(&self, metadata: &Metadata, stored: impl Fn(&str) -> bool) -> Option<String> {
        let count = |key: &str| metadata.integer(&format!("{}.{key}", self.architecture)).unwrap_or(0);
        let (layers, leading) = (count("block_count"), count("leading_dense_block_count"));
        let names = self.needs.iter().copied().flatten().flat_map(|name| {
            let (part, layers) = match (name.strip_prefix(ALL), name.strip_prefix(BEHIND)) {
                (Some(part), _) => (Some(part), 0..layers),
                (_, Some(part)) => (Some(part), leading..layers),
                _ => (None, 0..1),
            };
            layers.map(move |layer| part.map_or((*name).to_owned(), |part| format!("blk.{layer}.{part}")))
        });
        names.into_iter().find(|name| !stored(name))
    }

    /// What a figure is of, what it is for llama.cpp, and what this file has in its place; `None` where it has the same, or nothing that it is of.
    fn differs(
        &self,
        wired: &Wired,
        metadata: &Metadata,
        stored: &[(String, Vec<usize>)],
    ) -> Option<(String, f64, Option<f64>)> {
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let count = |name: &str| metadata.first_integer(&key(name)).map(|count| count as f64);
        let wanted = match wired.is {
            Is::Number(number) => number,
            Is::Same(other) => count(other)?,
            Is::LayersBehind(layers) => (count("block_count")? - layers as f64).max(0.0),
        };
        let (what, own) = match wired.of {
            Of::Key(name) => (format!("`{}`", key(name)), metadata.number(&key(name))),
            Of::Rows(part) => {
                let is_part = |name: &str| {
                    let own = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
                    own.is_some_and(|(_, own)| own.strip_suffix(".weight") == Some(part))
                };
                let (name, shape) = stored.iter().find(|(name, _)| is_part(name))?;
                (format!("the rows of `{name}`"), shape.first().map(|rows| *rows as f64))
            }
        };
        (own != Some(wanted)).then_some((what, wanted, own))
    }

    /// True if the file says of each layer that it has no window, where llama.cpp's cache of keys is made for layers that have one.
    fn never_slides(&self, metadata: &Metadata) -> bool {
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let is_read = self.architecture != EXAONE4.0 || metadata.integer(&key("block_count")) == Some(EXAONE4.1);
        let slides = metadata.list(&key("attention.sliding_window_pattern")).filter(|_| is_read);
        slides.is_some_and(|slides| !slides.is_empty() && slides.iter().all(|own| own == Value::Bool(false)))
    }
}
