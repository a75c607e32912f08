//! The way over an adapter's tensors, the same for all methods.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::dialects::{Stated, Whereabouts};
use super::keys::{Key, Role};
use super::site::Site;
use super::{
    Adapter, Changes, Layers, Module, Names, PeftMethod, ReadOptions, Shared, Tensors, added, moved, parameters, tokens,
};
use crate::error::{Result, counted};
use crate::open::{Entry, same_bytes};

/// An adapter's tensors by the modules that they are of.
#[derive(Default)]
struct Sorted<'p> {
    /// By path and by depth of the wrappers around it.
    modules: BTreeMap<(String, usize), Tensors>,
    /// Ranks and factors that the file states, by the same.
    stated: HashMap<(String, usize), Stated>,
    /// Modules inside of one that is wrapped itself.
    inside: HashSet<String>,
    /// Modules that the base has in pieces, by the adapter's name.
    split: HashMap<&'p str, &'p [String]>,
    /// What all modules share, by marker.
    shared: BTreeMap<String, Arc<Shared>>,
}

/// A module of the adapter that the base has.
struct Sited<'s, 'b> {
    path: &'s str,
    depth: usize,
    tensors: &'s Tensors,
    site: Site<'b>,
}

/// Plans an adapter's changes of a base. What matches no weight is left to the accounting.
pub(super) fn read(
    adapter: &Adapter,
    method: &dyn PeftMethod,
    layers: &dyn Layers,
    names: &Names<'_>,
    options: &ReadOptions,
) -> Result<Changes> {
    let mut changes = Changes::default();
    let places = adapter.places(names)?;
    let mut sorted = sort(adapter, method, (names, &places), options, &mut changes)?;
    let doubts = layers.doubts().into_iter();
    changes.warnings.extend(doubts.map(|doubt| format!("{}: {doubt}", adapter.path.display())));
    for path in layers.targets(names).map_err(|error| error.in_file(&adapter.config.path))? {
        sorted.modules.entry((path, 0)).or_default();
    }
    let sites = find(adapter, layers, names, &sorted)?;
    let shapes = sites.iter().map(|found| found.site.shape);
    let all: Vec<(&str, (usize, usize))> = sites.iter().map(|found| (found.path, found.site.shape)).collect();
    let largest = shapes.fold((0, 0), |largest, shape| (shape.0.max(largest.0), shape.1.max(largest.1)));
    for Sited { path, depth, tensors, site } in &sites {
        let stated = sorted.stated.get(&((*path).to_owned(), *depth)).copied();
        let heads = stated.and_then(|stated| stated.heads);
        let config = names.checkpoint.config.as_ref();
        let order = heads.map(|heads| heads.order(config, site.shape.0)).transpose();
        let order = order.map_err(|error| error.in_tensor(tensors.first()))?;
        let rule = options.scales.find(path)?;
        let scale = rule.map_or(1.0, |(_, factor)| factor);
        layers.refuse(options, adapter.weight * scale).map_err(|error| error.in_file(&adapter.config.path))?;
        changes.scales.extend(rule.map(|(number, _)| number));
        let module = Module {
            path,
            scale,
            depth: *depth,
            order,
            stated,
            adapter,
            tensors,
            shared: &sorted.shared,
            site,
            largest,
            all: &all,
            count: sorted.modules.len(),
            model_type: names.model_type(),
            options,
        };
        for planned in layers.layer(&module)? {
            changes.edits.extend(site.place(&module, names, planned)?);
        }
    }
    moved::to_outputs(&mut changes, names, options.input_factors);
    Ok(changes)
}

/// Puts every tensor into its place: with those of its module, or among the changes that are no method's own.
fn sort<'p>(
    adapter: &Adapter,
    method: &dyn PeftMethod,
    (names, places): (&Names<'_>, &'p HashMap<String, Whereabouts>),
    options: &ReadOptions,
    changes: &mut Changes,
) -> Result<Sorted<'p>> {
    let mut sorted = Sorted::default();
    let mut elsewhere = 0;
    for entry in &adapter.tensors.entries {
        let mut key = adapter.key(&entry.name);
        let name = entry.name.clone();
        let scaling = adapter.stated(&key.module);
        match places.get(&key.module) {
            Some(Whereabouts::At(path)) => key.module.clone_from(path),
            Some(Whereabouts::Split(paths)) => {
                if let Some((module, _)) = places.get_key_value(&key.module) {
                    sorted.split.insert(module, paths);
                }
            }
            Some(Whereabouts::Elsewhere) => {
                elsewhere += 1;
                changes.ignored.push((name, "for another part of the pipeline than the base is"));
                continue;
            }
            None => {}
        }
        let indices = adapter.config.json.get(method.token_indices());
        match &key.role {
            // What another method calls so is nothing that this one knows.
            Role::Own(marker, _) if !method.markers().own.contains(marker) => {}
            Role::Own(marker, bias) => {
                if key.wrapped && key.depth == 0 {
                    sorted.inside.insert(key.module.clone());
                }
                let own = (key.module, key.depth);
                sorted.stated.extend(scaling.map(|scaling| (own.clone(), scaling)));
                sorted.modules.entry(own).or_default().insert((*marker, *bias), &name)?;
            }
            // PEFT writes some once for the model, and again for each layer.
            Role::Shared(marker) if sorted.shared.contains_key(marker) => {
                changes.ignored.push((name, "a copy of a tensor that all modules share"));
            }
            Role::Shared(marker) => {
                sorted.shared.insert(marker.clone(), Arc::new(Shared::new(&name, entry.elements())));
            }
            Role::Tokens | Role::TokensOf if is_copy(adapter, names, &key, entry, indices)? => {
                changes.ignored.push((name, "a copy of the embedding's, which this module's weight is"));
            }
            Role::Tokens => {
                changes.edits.push(tokens::plan(adapter, names, &name, &key.module, indices)?);
            }
            Role::TrainingOnly => changes.ignored.push((name, "used in training only")),
            Role::Original => changes.ignored.push((name, "the untrained original of a module trained whole")),
            Role::PassedOver(reason) => changes.ignored.push((name, reason)),
            Role::Added(parameter) => {
                let pieces = sorted.split.get(key.module.as_str()).copied();
                added::plan(adapter, names, options, (&key.module, parameter, pieces), entry, changes)?;
            }
            Role::TokensOf => parameters::read(adapter, names, &key, "weight", entry, changes)?,
            Role::Parameter(parameter) => parameters::read(adapter, names, &key, parameter, entry, changes)?,
        }
    }
    if elsewhere > 0 {
        changes.warnings.push(format!(
            "{}: {} for other parts of the pipeline, which this base is none of: merge {} into those too",
            adapter.path.display(),
            counted(elsewhere, "tensor is", "tensors are"),
            if elsewhere == 1 { "it" } else { "them" }
        ));
    }
    Ok(sorted)
}

/// Finds where the base has each module; those that it has not are left out.
fn find<'s, 'b>(
    adapter: &Adapter,
    layers: &dyn Layers,
    names: &Names<'b>,
    sorted: &'s Sorted<'_>,
) -> Result<Vec<Sited<'s, 'b>>> {
    let mut sites = Vec::new();
    for ((path, depth), tensors) in &sorted.modules {
        layers.check(path, tensors)?;
        let wrappers = sorted.modules.range((path.clone(), 0)..).take_while(|((other, _), _)| other == path).count();
        let found = match sorted.split.get(path.as_str()) {
            Some(paths) => Site::split(names, path, paths)?,
            None => Site::find(adapter, names, path, (*depth, wrappers))?,
        };
        let Some(mut site) = found else { continue };
        // PEFT adds it twice only where it wraps the attention as well.
        site.attention_output &= sorted.inside.contains(path);
        sites.push(Sited { path, depth: *depth, tensors, site });
    }
    Ok(sites)
}

/// True for what an adapter says once more of an embedding, under the name of another module that is the same tensor in the model, stored or not: rows of tokens are
/// trained for all of them together where they are equal.
fn is_copy(adapter: &Adapter, names: &Names<'_>, key: &Key, entry: &Entry, indices: Option<&Value>) -> Result<bool> {
    let Some(number) = names.same_as_first(&key.module)? else { return Ok(false) };
    // A list of the embedding's tokens is that of what is tied to it.
    let has_same_tokens = |module: &str| match (tokens::list(indices, module), tokens::list(indices, &key.module)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    for other in &adapter.tensors.entries {
        let own = adapter.key(&other.name);
        if own.role == key.role
            && names.member(&own.module).is_some_and(|other| other < number)
            && has_same_tokens(&own.module)
            && same_bytes((&adapter.tensors, other), (&adapter.tensors, entry))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}
