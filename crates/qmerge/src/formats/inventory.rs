//! The weights of a checkpoint, each claimed by one format.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Claim, FORMATS, Unsupported, Viewed, Weight, Woven, module, recognised};
use crate::arch::gguf::{File, Joined};
use crate::arch::{self, Arch, Experts};
use crate::error::{Result, malformed};
use crate::open::{Checkpoint, ModelConfig};

/// All weights of a checkpoint, and the entries that belong to none.
#[derive(Debug)]
pub struct Inventory {
    /// Weights in the order of their lead entries.
    pub weights: Vec<Claim>,
    /// Indices of entries that no format claims (integers, unknown types): copied, never edited.
    pub opaque: Vec<usize>,
}

/// The row of the family of a model of that type that these weights lie by, where the family has more than one; `config` says how wide the model is.
pub fn arch_of(model_type: &str, config: Option<&ModelConfig>, weights: &[Claim]) -> &'static Arch {
    let hidden = config.and_then(|config| config.find("hidden_size")?.as_u64());
    let ends = |claim: &&Claim, end: &str| claim.weight.name().ends_with(end);
    arch::find_stored(model_type, hidden, |end| {
        weights.iter().find(|claim| ends(claim, end)).map(|claim| claim.weight.shape())
    })
}

/// How a model has its experts: as the family does, or, around a language model of another, as that one's does.
pub(crate) fn experts_of(arch: &Arch, config: Option<&ModelConfig>, weights: &[Claim]) -> Option<Experts> {
    let text = || config?.json.get("text_config")?.get("model_type")?.as_str();
    match text().filter(|_| arch.is_composed || arch.model_types.is_empty()) {
        Some(text) => arch_of(text, config, weights).experts,
        None => arch.experts,
    }
}

/// Claims every entry of a checkpoint. Errors where something is stored in a way that is not understood.
pub fn inventory(checkpoint: &Checkpoint) -> Result<Inventory> {
    survey(checkpoint)?.map_err(|unsupported| unsupported.error())
}

/// Claims every entry of a checkpoint, or says what is stored in a way that is not understood.
pub(crate) fn survey(checkpoint: &Checkpoint) -> Result<std::result::Result<Inventory, Unsupported>> {
    let file = match File::of(checkpoint) {
        Ok(None) => None,
        Ok(file) => file,
        Err(unknown) => return Ok(Err(Unsupported::of_gguf(checkpoint, unknown))),
    };
    if file.is_none()
        && let Some(unsupported) = recognised::by_its_marks(checkpoint)
    {
        return Ok(Err(unsupported));
    }
    let mut inventory = claim_all(checkpoint)?;
    if let Some(file) = file {
        view(&mut inventory, &file).map_err(|error| error.in_file(&checkpoint.path))?;
    }
    Ok(match recognised::unclaimed(checkpoint, &inventory) {
        Some(unsupported) => Err(unsupported),
        None => Ok(inventory),
    })
}

/// Sees the weights of a GGUF file as the model has them. Others keep the names that they have there, which no model and no adapter uses.
fn view(inventory: &mut Inventory, file: &File<'_>) -> Result<()> {
    let claims = std::mem::take(&mut inventory.weights);
    let by_name: HashMap<&str, &Claim> = claims.iter().map(|claim| (claim.weight.name(), claim)).collect();
    let shape_of = |name: &str| by_name.get(name).map(|claim| claim.weight.shape());
    let mut seen = Vec::with_capacity(claims.len());
    for claim in &claims {
        match file.joined(claim.weight.name(), &shape_of)? {
            Joined::Other => {}
            Joined::First(view) => {
                let tensors = view.tensors(claim.weight.shape());
                let pieces: Vec<&Claim> =
                    tensors.iter().filter_map(|(name, _)| by_name.get(name.as_str()).copied()).collect();
                let Some(weave) = view.weave.clone() else { continue };
                let entries = pieces.iter().flat_map(|piece| piece.entries.clone()).collect();
                // A row may lie there as a list.
                let as_row = |(piece, (_, wanted)): (&Claim, &(String, Vec<usize>))| {
                    let row = match (wanted.as_slice(), piece.weight.shape()) {
                        (&[1, cols], [_]) => piece.weight.reshaped(1, cols),
                        _ => None,
                    };
                    row.unwrap_or_else(|| Arc::clone(&piece.weight))
                };
                let pieces = pieces.into_iter().zip(&tensors).map(as_row).collect();
                seen.push(Claim { weight: Arc::new(Woven::new(pieces, view, weave)), entries });
            }
            Joined::No => {
                let rows = claim.weight.geometry().rows;
                let weight: Arc<dyn Weight> = match file.view(claim.weight.name(), rows)? {
                    Some(view) => Arc::new(Viewed::new(Arc::clone(&claim.weight), view)),
                    None => Arc::clone(&claim.weight),
                };
                seen.push(Claim { weight, ..claim.clone() });
            }
        }
    }
    drop(by_name);
    let mut names = HashSet::new();
    if let Some(twice) = seen.iter().find(|claim| !names.insert(claim.weight.name())) {
        let problem = format!("the file has two of the model's `{}`", twice.weight.name());
        return Err(malformed(problem).with_hint("the file is broken: which of them llama.cpp runs is not known"));
    }
    drop(names);
    inventory.weights = seen;
    Ok(())
}

fn claim_all(checkpoint: &Checkpoint) -> Result<Inventory> {
    checkpoint.read_ahead(|entry| FORMATS.iter().any(|format| format.reads(&entry.name)), MAX_READ_AHEAD);
    let mut claims: Vec<(usize, Claim)> = Vec::new();
    let mut opaque = Vec::new();
    for mut module in module::modules(checkpoint) {
        for format in FORMATS {
            for claim in format.claim(&module)? {
                claims.push((module.take(&claim.entries), claim));
            }
        }
        opaque.extend(module.left());
    }
    claims.sort_by_key(|(at, _)| *at);
    opaque.sort_unstable();
    Ok(Inventory { weights: claims.into_iter().map(|(_, claim)| claim).collect(), opaque })
}

/// States and markers are a few hundred bytes; what is larger is read alone.
const MAX_READ_AHEAD: u64 = 4096;
