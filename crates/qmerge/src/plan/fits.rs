//! Whether a configuration belongs to the weights beside it: each tensor that a model consists of is there, with the dimensions that the configuration asks for.

use std::collections::HashMap;

use serde_json::Value;

use crate::arch::gguf::towers;
use crate::arch::spec::Wanted;
use crate::arch::{self, leaf_in};
use crate::error::{Error, Result, mismatch};
use crate::formats::{Claim, arch_of};
use crate::open::{Checkpoint, ModelConfig};

/// Errors for the first tensor that is missing or has other dimensions; `Ok` too for a model that is not known well enough.
pub(crate) fn check(checkpoint: &Checkpoint, weights: &[Claim]) -> Result<()> {
    let Ok(config) = arch::config(checkpoint) else { return Ok(()) };
    let Ok(spec) = arch::spec_of(config) else { return Ok(()) };
    let text = arch::language_model(config)?;
    let arch = arch_of(text.model_type(), Some(&text), weights);
    let by_name: HashMap<&str, &Claim> = weights.iter().map(|claim| (claim.weight.name(), claim)).collect();
    // MLX has stacks of experts by a name of its own, by which nothing here looks for them.
    if by_name.keys().any(|name| name.contains(".switch_mlp.")) {
        return Ok(());
    }
    let has = |name: &str| by_name.contains_key(name);
    let stored = |module: &str| has(&format!("{module}.weight"));
    let tie = arch::find_tie(config.model_type(), stored);
    let Some(tokens) = tie.and_then(|tie| tie.inputs().iter().copied().find(|module| stored(module))) else {
        let problem = "no tensor has a name that an input embedding is known by";
        return Err(of_others(checkpoint, mismatch(problem)));
    };
    let beside = |name: &str| tokens.rsplit_once('.').map_or(name.to_owned(), |(path, _)| format!("{path}.{name}"));
    let list = beside(arch.layers);
    let claim = |name: &str| by_name.get(name).copied();
    let mut each = |name: &str, wanted: Wanted| {
        let Some(claim) = claim(name) else { return Err(missing(checkpoint, &text, (&list, name), weights)) };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_turned =
            claim.weight.is_transposed() || leaf_in(module, arch.transposed) && claim.weight.has_family_order();
        let wanted = match (wanted, arch.experts) {
            (Wanted::Stack { matrices, outputs, inputs, .. }, Some(stored)) => {
                Wanted::Stack { matrices, outputs, inputs, in_out: stored.in_out }
            }
            _ => wanted,
        };
        fits(claim, wanted, is_turned).map_err(|asked| misfit(checkpoint, &text, claim, &asked))
    };
    let table = |name: &str, least: usize, features: usize| match claim(name) {
        Some(claim) if claim.weight.geometry().cols != features || claim.weight.geometry().rows < least => {
            Err(misfit(checkpoint, &text, claim, &[least, features]))
        }
        _ => Ok(()),
    };
    table(&format!("{tokens}.weight"), spec.vocab, spec.hidden)?;
    if let Some(own) = &spec.per_layer {
        table(&format!("{}.weight", beside(own.names[0])), own.vocab, spec.layers.len() * own.width)?;
    }
    if let Some(name) = arch.positions {
        table(&format!("{}.weight", beside(name)), spec.max_positions, spec.hidden)?;
    }
    for head in arch.heads(tie) {
        table(&format!("{head}.weight"), spec.vocab, spec.hidden)?;
    }
    let is_untied = arch::is_untied(config)?;
    if let Some(head) = tie.map(|tie| tie.head()).filter(|_| is_untied && !arch.heads(tie).any(stored)) {
        return Err(missing(checkpoint, &text, (&list, &format!("{head}.weight")), weights));
    }
    spec.parts(&list, &has, &mut each)?;
    spec.parts_beside(arch.norm, &beside, &has, &mut each)
}

/// Errors for layers behind those that the configuration counts, unless they predict further tokens.
pub(crate) fn refuse_further_layers(checkpoint: &Checkpoint, weights: &[Claim]) -> Result<()> {
    const PREDICTING: &[&str] = &["eh_proj", "enorm", "hnorm", "shared_head", "nextn"];
    let Some(config) = &checkpoint.config else { return Ok(()) };
    let text = arch::language_model(config)?;
    let count = |key: &str| text.find(key).and_then(Value::as_u64);
    let keys = ["num_hidden_layers", "n_layer"];
    let Some((key, layers)) = keys.into_iter().find_map(|key| Some((key, count(key)?))) else { return Ok(()) };
    // `h` of `transformer.h` lies below a prefix, or by itself.
    let list = arch::find(text.model_type()).layers;
    let counted = layers.saturating_add(count("num_nextn_predict_layers").unwrap_or(0));
    let number = |name: &str| -> Option<u64> {
        let name = towers::alone(name);
        let below = |prefix: &&str| name.strip_prefix(*prefix)?.strip_prefix(list)?.strip_prefix('.');
        let layer = ["model.", "transformer.", "gpt_neox.", ""].iter().find_map(below);
        layer.or_else(|| name.strip_prefix("blk."))?.split('.').next()?.parse().ok()
    };
    let names = || weights.iter().map(|claim| claim.weight.name());
    let predicts = |layer: u64| {
        let own = |name: &&str| number(name) == Some(layer);
        names().filter(own).any(|name| name.split('.').any(|part| PREDICTING.contains(&part)))
    };
    let mut further = names().filter(|name| number(name).is_some_and(|number| number >= counted));
    match further.find(|name| !number(name).is_some_and(predicts)) {
        None => Ok(()),
        Some(name) => {
            let problem = format!("a tensor of a layer that config.json does not count: `{key}` is {layers}");
            Err(of_others(checkpoint, mismatch(problem)).in_tensor(name))
        }
    }
}

/// The dimensions that are asked for, where a weight has others.
fn fits(claim: &Claim, wanted: Wanted, is_turned: bool) -> std::result::Result<(), Vec<usize>> {
    let (geometry, has_family_order) = (claim.weight.geometry(), claim.weight.has_family_order());
    let turned = |outputs, inputs, is_turned: bool| if is_turned { [inputs, outputs] } else { [outputs, inputs] };
    let (asked, fits) = match wanted {
        Wanted::Matrix { outputs, inputs } => {
            let [rows, cols] = turned(outputs, inputs, is_turned);
            (vec![rows, cols], (geometry.rows, geometry.cols) == (rows, cols))
        }
        Wanted::Stack { matrices, outputs, inputs, in_out } => {
            let [rows, cols] = turned(outputs, inputs, in_out && has_family_order);
            (vec![matrices, rows, cols], (geometry.rows, geometry.cols) == (matrices * rows, cols))
        }
        Wanted::Values(len) => (vec![len], geometry.elements() == len),
    };
    if fits { Ok(()) } else { Err(asked) }
}

/// That a weight has other dimensions than those, and which fields say so.
fn misfit(checkpoint: &Checkpoint, config: &ModelConfig, claim: &Claim, asked: &[usize]) -> Error {
    let shape = claim.weight.shape();
    let differing = asked.iter().filter(|asked| !shape.contains(asked));
    let fields: Vec<String> = differing.flat_map(|asked| fields_of(config, *asked)).collect();
    let by = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
    let problem = format!("shape {shape:?}, but the configuration wants {}{by}", in_words(asked));
    of_others(checkpoint, mismatch(problem)).in_tensor(claim.weight.name())
}

/// That a tensor is not there.
fn missing(checkpoint: &Checkpoint, config: &ModelConfig, (list, name): (&str, &str), weights: &[Claim]) -> Error {
    let layer = |name: &str| name.strip_prefix(list)?.strip_prefix('.')?.split('.').next()?.parse::<u64>().ok();
    let is_there = |own: u64| weights.iter().any(|claim| layer(claim.weight.name()) == Some(own));
    let problem = match layer(name).filter(|own| !is_there(*own)) {
        Some(own) => {
            let count = config.find("num_hidden_layers").or_else(|| config.find("n_layer")).and_then(Value::as_u64);
            let count = count.map_or(String::new(), |count| format!(", where the configuration counts {count}"));
            format!("missing, as everything of layer {own} is{count}")
        }
        None => "missing, and a model of this type needs it".to_owned(),
    };
    of_others(checkpoint, mismatch(problem)).in_tensor(name)
}

fn of_others(checkpoint: &Checkpoint, error: Error) -> Error {
    error.in_file(&checkpoint.path).with_hint(if checkpoint.is_self_contained() {
        "the file's keys and its tensors do not fit each other: take another GGUF file of the model"
    } else {
        "config.json and the weights belong to different models, or some of them are missing: copy both again from where the model was published"
    })
}

/// Fields that say such a number.
fn fields_of(config: &ModelConfig, number: usize) -> Vec<String> {
    let fields = config.json.iter();
    let own = fields.filter(|(_, value)| value.as_u64() == Some(number as u64) && number > 1);
    own.map(|(key, _)| format!("`{key}` is {number}")).collect()
}

fn in_words(dimensions: &[usize]) -> String {
    match dimensions {
        [len] => format!("{len} values"),
        _ => dimensions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × "),
    }
}
