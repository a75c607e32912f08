//! Whether a configuration belongs to the weights beside it: each tensor that a model consists of is there, with the dimensions that the configuration asks for.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::arch::spec::Wanted;
use crate::arch::{self, leaf_in};
use crate::error::{Error, Kind, Result, mismatch, unsupported};
use crate::formats::{Claim, arch_of};
use crate::open::{Checkpoint, ModelConfig};

/// Errors for figures that contradict each other, and for the first tensor that is missing or has other dimensions; `Ok` too for a model that is not known well enough.
pub(crate) fn check(checkpoint: &Checkpoint, weights: &[Claim]) -> Result<()> {
    let Ok(config) = arch::config(checkpoint) else { return Ok(()) };
    let spec = match arch::spec_of(config) {
        Ok(spec) => spec,
        // A number that cannot be meant, or fields that do not fit each other: no program runs such a model.
        Err(error) if error.kind() == Kind::Malformed => return Err(error),
        Err(_) => return Ok(()),
    };
    let text = arch::language_model(config)?;
    let arch = arch_of(text.model_type(), Some(&text), weights);
    let by_name: HashMap<&str, &Claim> = weights.iter().map(|claim| (claim.weight.name(), claim)).collect();
    let has = |name: &str| by_name.contains_key(name);
    let stored = |module: &str| has(&format!("{module}.weight"));
    let tie = arch::find_tie(config.model_type(), stored);
    let Some(tokens) = embedding(config, &stored) else {
        let problem = "no tensor has a name that an input embedding is known by";
        return Err(of_others(checkpoint, mismatch(problem)));
    };
    let beside = |name: &str| beside(tokens, name);
    let list = beside(arch.layers);
    let claim = |name: &str| by_name.get(name).copied();
    let mut each = |name: &str, wanted: Wanted| {
        let Some(claim) = claim(name) else { return Err(missing(checkpoint, &text, (&list, name), weights)) };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_turned = match wanted {
            Wanted::Stack { .. } => arch.stacks_inputs_as_rows() && claim.weight.has_family_order(),
            _ => claim.weight.is_transposed() || leaf_in(module, arch.transposed) && claim.weight.has_family_order(),
        };
        fits(claim, wanted, is_turned).map_err(|asked| misfit(checkpoint, &text, claim, &asked))
    };
    let dimensions = |claim: &Claim| {
        let geometry = claim.weight.geometry();
        if claim.weight.is_transposed() { (geometry.cols, geometry.rows) } else { (geometry.rows, geometry.cols) }
    };
    let table = |name: &str, least: usize, features: usize| match claim(name) {
        Some(claim) if dimensions(claim).1 != features || dimensions(claim).0 < least => {
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
    // A head has a row for each of the table's, which may be more than the configuration says tokens.
    let rows = claim(&format!("{tokens}.weight")).map_or(spec.vocab, |claim| dimensions(claim).0);
    for head in arch.heads(tie) {
        let name = format!("{head}.weight");
        table(&name, spec.vocab, spec.hidden)?;
        if let Some(claim) = claim(&name).filter(|claim| dimensions(claim).0 != rows) {
            let problem = format!("{} tokens, but `{tokens}.weight` has {rows}", dimensions(claim).0);
            return Err(of_others(checkpoint, mismatch(problem)).in_tensor(&name));
        }
    }
    let is_untied = arch::is_untied(config)?;
    if let Some(head) = tie.map(|tie| tie.head()).filter(|_| is_untied && !arch.heads(tie).any(stored)) {
        return Err(missing(checkpoint, &text, (&list, &format!("{head}.weight")), weights));
    }
    spec.parts(&list, &has, &mut each)?;
    spec.parts_beside(arch.norm, &beside, &has, &mut each)
}

/// Errors for the stacks of experts that mlx_lm writes, where nothing is known of them.
pub(crate) fn refuse_mlx(checkpoint: &Checkpoint, weights: &[Claim]) -> Result<()> {
    let is_stack = |claim: &&Claim| claim.weight.name().split('.').any(|part| part == arch::SWITCH);
    let Some(claim) = weights.iter().find(is_stack) else { return Ok(()) };
    let problem = "a stack of experts by MLX's own name, which this version merges into, and does not run; into GGUF it turns those of Mixtral, OLMoE, Qwen 2 and Qwen 3";
    Err(unsupported(problem)
        .in_file(&checkpoint.path)
        .in_tensor(claim.weight.name())
        .with_hint("mlx_lm runs it; take the checkpoint that it was converted from"))
}

/// The input embedding's path; the rest of the decoder lies beside it.
fn embedding(config: &ModelConfig, stored: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    arch::find_tie(config.model_type(), stored)?.inputs().iter().copied().find(|module| stored(module))
}

fn beside(tokens: &str, name: &str) -> String {
    tokens.rsplit_once('.').map_or(name.to_owned(), |(path, _)| format!("{path}.{name}"))
}

/// Errors for layers behind those that the configuration counts, unless they predict further tokens.
pub(crate) fn refuse_further_layers(checkpoint: &Checkpoint, weights: &[Claim]) -> Result<()> {
    const PREDICTING: &[&str] = &["eh_proj", "enorm", "hnorm", "shared_head", "nextn"];
    let Some(config) = &checkpoint.config else { return Ok(()) };
    let text = arch::language_model(config)?;
    let count = |key: &str| text.find(key).and_then(Value::as_u64);
    let keys = ["num_hidden_layers", "n_layer"];
    let Some((key, layers)) = keys.into_iter().find_map(|key| Some((key, count(key)?))) else { return Ok(()) };
    let stored: HashSet<&str> = weights.iter().map(|claim| claim.weight.name()).collect();
    let has = |module: &str| stored.contains(format!("{module}.weight").as_str());
    let Some(tokens) = embedding(config, &has) else { return Ok(()) };
    let list = beside(tokens, arch::find(text.model_type()).layers);
    // What has no name in the model keeps that of the file.
    let number = |name: &str| -> Option<u64> {
        let below = |list: &str| name.strip_prefix(list)?.strip_prefix('.')?.split('.').next()?.parse().ok();
        below(&list).or_else(|| below("blk"))
    };
    let counted = layers.saturating_add(count("num_nextn_predict_layers").unwrap_or(0));
    let names = || weights.iter().map(|claim| claim.weight.name());
    let predicts = |name: &&str| name.split('.').any(|part| PREDICTING.contains(&part));
    let predicting: HashSet<u64> = names().filter(predicts).filter_map(number).collect();
    let mut further = names().filter(|name| number(name).is_some_and(|number| number >= counted));
    match further.find(|name| !number(name).is_some_and(|number| predicting.contains(&number))) {
        None => Ok(()),
        Some(name) => {
            let problem = format!("a tensor of a layer that config.json does not count: `{key}` is {layers}");
            Err(of_others(checkpoint, mismatch(problem)).in_tensor(name))
        }
    }
}

/// The dimensions that are asked for, where a weight has others.
fn fits(claim: &Claim, wanted: Wanted, is_turned: bool) -> std::result::Result<(), Vec<usize>> {
    let geometry = claim.weight.geometry();
    let turned = |outputs, inputs| if is_turned { [inputs, outputs] } else { [outputs, inputs] };
    let (asked, fits) = match wanted {
        Wanted::Matrix { outputs, inputs } => {
            let [rows, cols] = turned(outputs, inputs);
            (vec![rows, cols], (geometry.rows, geometry.cols) == (rows, cols))
        }
        Wanted::Stack { matrices, outputs, inputs } => {
            let [rows, cols] = turned(outputs, inputs);
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
