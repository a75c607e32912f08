//! Task vectors: what a model that was trained whole differs from its base by, as an adapter.
//!
//! A tuned model changes each of its weights by tuned − base, whatever either is stored as. No tensor says so: the change is made of the two models' rows
//! when they are read (`edited`). Here the weights of both are matched, by name and shape; one that has no counterpart is an error.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::Map;

use super::{Adapter, AdapterConfig, ChangePlan, Changes, Loader, Names, Placed, PlannedEdit, ReadOptions};
use crate::arch;
use crate::edit::{Change, Joining, Place};
use crate::error::{Error, Kind, Result, mismatch, unsupported, usage};
use crate::formats::{self, Claim, Inventory};
use crate::open::local::LocalFolder;
use crate::open::{self, Checkpoint, Store};

/// What stands in place of a method of training an adapter.
pub(super) const PEFT_TYPE: &str = "TASK_VECTOR";

/// The change of one weight: `weight · (tuned − base)`, or what is left of that beside other task vectors.
#[derive(Debug)]
pub struct TaskVector {
    /// The tuned weight.
    pub claim: Claim,
    /// True if its rows are the base's columns.
    pub is_turned: bool,
    /// Factor on the difference.
    pub weight: f64,
    /// How the task vectors of a weight are joined.
    pub joining: Joining,
}

impl ChangePlan for TaskVector {
    fn load(&self, _: &Loader<'_>) -> Result<Change> {
        Err(Error::new(Kind::Bug, "a task vector is made of rows as they are read"))
    }

    fn memory(&self) -> u64 {
        // What cannot be read by the base's rows stands in memory, and twice while it is turned over.
        if self.is_turned { 8 * self.claim.weight.geometry().elements() as u64 } else { 0 }
    }

    fn scale(&self) -> Option<f64> {
        Some(self.weight)
    }

    fn task_vector(&self) -> Option<&TaskVector> {
        Some(self)
    }
}

impl TaskVector {
    /// True if which of its values stay depends on all of them.
    pub fn needs_survey(&self) -> bool {
        self.drops() && !self.joining.operator.draws()
    }

    /// True if some of its values are left out.
    pub(crate) fn drops(&self) -> bool {
        let Joining { operator, density, .. } = self.joining;
        operator.drops() && density.is_some_and(|density| density < 1.0)
    }
}

impl Adapter {
    /// Opens a model that was trained whole (a folder, a file, or a hub id in the local cache) as what it differs from its base by. `weight` is a factor on
    /// that.
    pub fn tuned(location: &Path, weight: f64) -> Result<Self> {
        let path = open::resolve(location)?;
        if path.is_dir() {
            return Self::tuned_in(Arc::new(LocalFolder::new(path)), None, weight);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::tuned_in(Arc::new(LocalFolder::of_file(&path)), Some(&name), weight)
    }

    /// [`Adapter::tuned`] of the folder that a store is, or of one file in it.
    pub fn tuned_in(store: Arc<dyn Store>, file: Option<&str>, weight: f64) -> Result<Self> {
        let path = file.map_or_else(|| store.path().to_path_buf(), |file| store.path_of(file));
        if !weight.is_finite() {
            return Err(usage(format!("weight {weight} is not a number")).in_file(&path));
        }
        if Self::is_one(&store, file) {
            return Err(mismatch("an adapter, where a model was expected that was trained whole")
                .in_file(&path)
                .with_hint("pass it with --adapter"));
        }
        let tensors = match file {
            None => Checkpoint::open_in(store),
            Some(file) => Checkpoint::open_file_in(store, file),
        }?;
        let inventory = formats::inventory(&tensors)?;
        let names = Names::new(&tensors, &inventory.weights, &[])?;
        let ties = names.is_tied() || names.ties_stored();
        let config = AdapterConfig {
            path: tensors.store.path_of("config.json"),
            json: Map::new(),
            peft_type: PEFT_TYPE.into(),
            fan_in_fan_out: false,
            modules_to_save: Vec::new(),
            target_parameters: Vec::new(),
            target_modules: Vec::new(),
            ensure_weight_tying: ties,
            task_type: None,
            trained_class: None,
            base_model: None,
        };
        Ok(Self {
            path,
            weight,
            is_undone: false,
            config,
            writer: "a tuned model",
            tensors,
            left_out: Vec::new(),
            method: None,
            tuned: Some(inventory),
            keys: HashMap::new(),
            stated: HashMap::new(),
            dialect: None,
        })
    }
}

/// Matches the weights of a tuned model with a base's.
pub(super) fn read(adapter: &Adapter, tuned: &Inventory, names: &Names<'_>, options: &ReadOptions) -> Result<Changes> {
    let own = Names::new(&adapter.tensors, &tuned.weights, &[])?;
    let pair = Pair { adapter, own: &own, names, options };
    let mut changes = Changes::default();
    let mut found: HashMap<&str, &Claim> = HashMap::new();
    for claim in &tuned.weights {
        let name = claim.weight.name();
        if let Some(base) = names.find(name)? {
            if let Some(other) = found.insert(base.weight.name(), claim) {
                let (target, other) = (base.weight.name(), other.weight.name());
                return Err(mismatch(format!("it and `{other}` both mean `{target}` of the base"))
                    .in_tensor(name)
                    .with_hint("say with --map 'regex=>replacement' what each of them means"));
            }
            continue;
        }
        let tied = names.tied_to(name.strip_suffix(".weight").unwrap_or(name));
        match tied {
            Some((target, base)) if !adapter.config.ensure_weight_tying => {
                pair.edit(&target, base, claim, &mut changes)?;
            }
            Some(_) => {
                let all = claim.entries.iter().map(|entry| entry.name.clone());
                changes.ignored.extend(all.map(|name| (name, "a copy of the embedding that it is tied to")));
            }
            None => changes.unused.extend(claim.entries.iter().map(|entry| entry.name.clone())),
        }
    }
    for base in names.weights {
        let name = base.weight.name();
        let tied = || own.tied_to(name.strip_suffix(".weight").unwrap_or(name)).map(|(_, claim)| claim);
        let Some(claim) = found.get(name).copied().or_else(tied) else {
            return Err(mismatch(format!("it has no weight `{name}`, which the base has"))
                .with_hint("base and tuned model are of different families, or one of them is a part"));
        };
        pair.edit(name, base, claim, &mut changes)?;
    }
    let opaque = tuned.opaque.iter().filter_map(|&number| adapter.tensors.entries.get(number));
    changes.ignored.extend(opaque.map(|entry| (entry.name.clone(), "no weight, but numbers that are not trained")));
    changes.warnings.extend(pair.warnings(tuned));
    Ok(changes)
}

struct Pair<'p, 'o, 'n> {
    adapter: &'p Adapter,
    own: &'p Names<'o>,
    names: &'p Names<'n>,
    options: &'p ReadOptions,
}

impl Pair<'_, '_, '_> {
    /// Plans the edit of one weight of the base, which will be called `target`.
    fn edit(&self, target: &str, base: &Claim, tuned: &Claim, changes: &mut Changes) -> Result<()> {
        let module = target.strip_suffix(".weight");
        let (is_turned, geometry) = (self.orientation(base, tuned)?, base.weight.geometry());
        let is_linear = base.weight.shape().len() == 2
            && module.is_some_and(|module| {
                let is_embedding = self.names.embed().is_some_and(|embed| embed.weight.name() == base.weight.name());
                !is_embedding && !arch::leaf_in(module, self.names.arch.not_linear) && !self.names.is_head(module)
            });
        let rule = self.options.scales.find(target.rsplit_once('.').map_or(target, |(module, _)| module))?;
        changes.scales.extend(rule.map(|(number, _)| number));
        let change = TaskVector {
            claim: tuned.clone(),
            is_turned,
            weight: self.adapter.weight * rule.map_or(1.0, |(_, factor)| factor),
            joining: self.options.joining,
        };
        let plan = Placed {
            change: Arc::new(change),
            place: Place::of_matrix(geometry.rows, geometry.cols, false),
            matrices: 0..1,
            shape: None,
            part: None,
            matrix: None,
        };
        changes.edits.push(PlannedEdit {
            target: target.to_owned(),
            plan,
            tensors: tuned.entries.iter().map(|entry| entry.name.clone()).collect(),
            layer: module.filter(|_| is_linear).map(str::to_owned),
        });
        Ok(())
    }

    /// True if the tuned weight's rows are the base's columns. Errors if the two do not fit.
    fn orientation(&self, base: &Claim, tuned: &Claim) -> Result<bool> {
        let (base, tuned) = (&base.weight, &tuned.weight);
        let (from, to) = (base.shape(), tuned.shape());
        let (base_turned, tuned_turned) = (is_turned(self.names, base.as_ref()), is_turned(self.own, tuned.as_ref()));
        let (rows, cols) = (base.geometry().rows, base.geometry().cols);
        let own = (tuned.geometry().rows, tuned.geometry().cols);
        let fits = match base_turned == tuned_turned {
            true => from == to && ((rows, cols) == own || tuned.reshaped(rows, cols).is_some()),
            false => from.len() == 2 && to.len() == 2 && (cols, rows) == own,
        };
        if fits {
            return Ok(base_turned != tuned_turned);
        }
        let problem = match (from, to) {
            _ if from == to => {
                return Err(unsupported(format!(
                    "stored as {}, whose rows are not those of {} in the base",
                    tuned.format(),
                    base.format()
                ))
                .in_tensor(tuned.name())
                .with_hint("make one of the two plain first: `qmerge convert --to bf16`"));
            }
            ([before, width], [after, own]) if width == own && self.is_table(base.name()) => {
                format!("it has a row for each of {after} tokens, and the base has {before}: the vocabularies differ")
            }
            _ => format!("shape {to:?}, but `{}` of the base has {from:?}", base.name()),
        };
        Err(mismatch(problem).in_tensor(tuned.name()).with_hint("this model was trained from another base"))
    }

    fn is_table(&self, name: &str) -> bool {
        let is_embedding = self.names.embed().is_some_and(|embed| embed.weight.name() == name);
        is_embedding || self.names.is_head(name.strip_suffix(".weight").unwrap_or(name))
    }

    /// What the user should know of how the two are stored.
    fn warnings(&self, tuned: &Inventory) -> Vec<String> {
        let coded = |weights: &[Claim]| -> Vec<&'static str> {
            let formats = weights.iter().filter(|claim| !claim.weight.is_plain()).map(|claim| claim.weight.format());
            let mut formats: Vec<_> = formats.collect::<HashSet<_>>().into_iter().collect();
            formats.sort_unstable();
            formats
        };
        let (base, own) = (coded(self.names.weights), coded(&tuned.weights));
        let path = self.adapter.path.display();
        let mut warnings = Vec::new();
        for (formats, which) in [(&base, "base"), (&own, "tuned model")] {
            if !formats.is_empty() {
                warnings.push(format!(
                    "{path}: the {which} is stored as {}, so the difference of the two holds what its rounding did too",
                    formats.join(", ")
                ));
            }
        }
        if [&base, &own].iter().any(|formats| formats.iter().any(|format| formats::moves_factors(format))) {
            warnings.push(format!(
                "{path}: AWQ moves factors between layers, so the difference to a model that was quantized apart is more than what was trained: take the models \
                 before that"
            ));
        }
        warnings
    }
}

/// True if a weight's rows are its layer's inputs; of a stack, those of each matrix.
fn is_turned(names: &Names<'_>, weight: &dyn formats::Weight) -> bool {
    let module = weight.name().strip_suffix(".weight").unwrap_or(weight.name());
    match weight.shape().len() {
        2 => weight.is_transposed() || weight.has_family_order() && arch::leaf_in(module, names.arch.transposed),
        3 => {
            weight.has_family_order()
                && names.experts.is_some_and(|experts| experts.in_out && is_expert(&experts, module))
        }
        _ => false,
    }
}

fn is_expert(experts: &arch::Experts, module: &str) -> bool {
    let path = module.rsplit_once('.').map_or(module, |(path, _)| path);
    experts.modules.iter().any(|name| path.ends_with(name))
}
