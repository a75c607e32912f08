//! Moments from llama.cpp's importance matrix: the diagonal of H, and nothing of what is beside it.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use std::collections::HashSet;
use std::path::Path;

use super::moments::{Calibration, Demand, Detail, InputMoments, Known, LayerInputs, Take};
use crate::adapters::Names;
use crate::arch;
use crate::arch::gguf::importance;
use crate::error::{Result, mismatch};
use crate::open::{content, imatrix, local::LocalFile};

/// The inputs of some weights, each by itself.
#[derive(Debug)]
struct Diagonal {
    layer: Option<usize>,
    tokens: usize,
    weights: Vec<String>,
    means: Vec<f32>,
}

/// An importance matrix.
#[derive(Debug)]
pub struct Imatrix {
    inputs: Vec<Diagonal>,
    about: String,
    identity: String,
    unknown: Vec<String>,
}

impl Imatrix {
    /// Opens an importance matrix, in the old form or as GGUF, and finds its tensors in a base. Errors if it has none of the base's, or one has other inputs.
    pub fn open(path: &Path, names: &Names<'_>) -> Result<Self> {
        Self::read(path, names).map_err(|error| error.in_file(path))
    }

    fn read(path: &Path, names: &Names<'_>) -> Result<Self> {
        let found = imatrix::read(path)?;
        let identity = content(&[Box::new(LocalFile::open(path)?)])?;
        let (mut inputs, mut unknown, mut placed) = (Vec::<Diagonal>::new(), Vec::new(), HashSet::new());
        // By layers, as a model runs; the old form has no order.
        let mut all = found.all;
        all.sort_by_key(|importance| {
            (importance::layer(&importance.name).is_none(), importance::layer(&importance.name))
        });
        for importance in all {
            let layer = importance::layer(&importance.name);
            let mut is_known = false;
            for (expert, (means, tokens)) in importance.means.into_iter().zip(importance.counts).enumerate() {
                let Some(claim) = find(&importance.name, expert, names)? else { continue };
                let (name, shape) = (claim.weight.name(), claim.weight.shape());
                is_known = true;
                if means.is_empty() || shape.len() != 2 || !placed.insert(name) {
                    continue;
                }
                // Of GPT-2's layers rows are inputs, where they are stored as they are.
                let module = name.strip_suffix(".weight").unwrap_or(name);
                let inputs_of = if arch::leaf_in(module, names.arch.transposed) {
                    shape
                } else {
                    shape.get(1..).unwrap_or_default()
                };
                if !inputs_of.contains(&means.len()) {
                    return Err(mismatch(format!(
                        "has shape {shape:?}, but the importance matrix {} inputs",
                        means.len()
                    ))
                    .in_tensor(name)
                    .with_hint("the importance matrix belongs to another model"));
                }
                let name = name.to_owned();
                // What queries, keys and values are given is one thing.
                match inputs
                    .iter_mut()
                    .rev()
                    .take_while(|other| other.layer == layer)
                    .find(|other| other.means == means)
                {
                    Some(same) => same.weights.push(name),
                    None => inputs.push(Diagonal { layer, tokens, weights: vec![name], means }),
                }
            }
            if !is_known {
                unknown.push(importance.name);
            }
        }
        if inputs.is_empty() {
            let first = unknown.first().map_or("", String::as_str);
            return Err(mismatch(format!("it has none of the base's weights; its first tensor is `{first}`"))
                .with_hint(
                    "the importance matrix belongs to another model, or to a family whose GGUF names are not known",
                ));
        }
        let tokens = match inputs.iter().map(|input| input.tokens).max().unwrap_or(0) {
            0 => String::new(),
            tokens => format!(" of {tokens} tokens"),
        };
        let text = found.text.as_deref().map(|text| text.rsplit(['/', '\\']).next().unwrap_or(text));
        let text = text.map_or(String::new(), |text| format!(", taken from {text}"));
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let about = format!("the importance matrix{tokens} in {file}{text}");
        Ok(Self { inputs, about, identity, unknown })
    }

    /// The weights whose inputs it knows.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flat_map(|input| input.weights.iter().map(String::as_str))
    }

    /// Its tensors that are none of the base's.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }
}

/// The weight that a GGUF tensor, or one expert of it, is in the base.
fn find<'a>(name: &str, expert: usize, names: &Names<'a>) -> Result<Option<&'a crate::formats::Claim>> {
    for candidate in importance::candidates(name, expert) {
        if let Some(claim) = names.find(&candidate)? {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

impl Calibration for Imatrix {
    fn about(&self) -> String {
        self.about.clone()
    }

    fn identity(&self) -> Result<String> {
        Ok(self.identity.clone())
    }

    fn demand(&self) -> Demand {
        let inputs = |input: &Diagonal| LayerInputs { features: input.means.len(), weights: input.weights.clone() };
        let layers = self.inputs.chunk_by(|a, b| a.layer == b.layer);
        let layers = layers.map(|layer| layer.iter().map(inputs).collect()).collect();
        Demand { detail: Detail::Sizes, ..Demand::of_read(layers) }
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in self.inputs.chunk_by(|a, b| a.layer == b.layer) {
            let mut is_wanted = false;
            for input in layer {
                let weights: Vec<String> = input.weights.iter().filter(|name| wanted(name)).cloned().collect();
                if !weights.is_empty() {
                    is_wanted = true;
                    take.known(Known { weights, moments: dense(input), detail: Detail::Sizes })?;
                }
            }
            if is_wanted {
                take.layer()?;
            }
        }
        Ok(())
    }
}

/// As methods take it: with zeros beside the diagonal.
fn dense(input: &Diagonal) -> InputMoments {
    let features = input.means.len();
    let mut values = vec![0.0; features * features];
    values.iter_mut().step_by(features + 1).zip(&input.means).for_each(|(to, from)| *to = *from);
    InputMoments { features, tokens: input.tokens, values }
}
