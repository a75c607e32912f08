//! Which weights of two models are one and the same, and what an adapter can do with each.

use std::collections::{HashMap, HashSet};

use super::compared::{Both, Carrier, Matched, Pair, Stacks};
use super::report::DroppedTensor;
use super::target::Target;
use crate::adapters::{Names, Stack};
use crate::arch;
use crate::error::{Error, Result, mismatch};
use crate::formats::Claim;
use crate::open::model_order;

/// What has been matched so far.
struct Matching<'p, 'a> {
    pair: &'p Pair<'a>,
    names: &'p Names<'a>,
    tuned_names: &'p Names<'a>,
    /// The tuned model has a head for a task, and the base is of another class.
    brings_head: bool,
    matched: Matched<'a>,
    /// Weights of the base that hold matrices of stacks.
    stacked: HashSet<&'a str>,
    /// Those of the tuned model that the base has too.
    taken: HashSet<&'a str>,
    /// Paths of modules of experts, on disk and in memory.
    modules: HashMap<String, String>,
}

impl<'a> Pair<'a> {
    /// Matches weights by name, and stacks of experts by what they are called in memory.
    pub(super) fn matched(&self, names: &Names<'a>, tuned_names: &Names<'a>) -> Result<Matched<'a>> {
        let mut matching = Matching {
            pair: self,
            names,
            tuned_names,
            brings_head: self.task().is_some(),
            matched: Matched { weights: Vec::new(), stacks: Vec::new(), heads: Vec::new(), dropped: Vec::new() },
            stacked: HashSet::new(),
            taken: HashSet::new(),
            modules: HashMap::new(),
        };
        matching.match_stacks()?;
        matching.match_weights()?;
        matching.sort_others();
        let mut matched = matching.matched;
        if matched.weights.is_empty() && matched.stacks.is_empty() {
            return Err(mismatch("no weight of it has the shape of the base's")
                .in_file(&self.tuned.path)
                .with_hint("it was not trained from this base"));
        }
        matched.stacks.sort_by(|a, b| model_order(&a.base.path(), &b.base.path()));
        matched.weights.sort_by(|a, b| model_order(a.name(), b.name()));
        Ok(matched)
    }

    fn missing(&self, name: &str) -> Error {
        mismatch(format!("it has no weight `{name}`, which the base has"))
            .in_file(&self.tuned.path)
            .with_hint("base and tuned model are of different families, or one of them is a part")
    }
}

impl<'a> Matching<'_, 'a> {
    fn leave_out(&mut self, name: &str, reason: &'static str) {
        self.matched.dropped.push(DroppedTensor { name: name.to_owned(), energy: None, reason });
    }

    fn match_stacks(&mut self) -> Result<()> {
        let pieces = |stack: &Stack<'a>| {
            stack.experts.iter().flatten().map(|piece| piece.claim.weight.name()).collect::<Vec<_>>()
        };
        for base in Stack::all(self.names, false)? {
            self.stacked.extend(pieces(&base));
            let Some(tuned) = Stack::find(self.tuned_names, &base.module, base.parameter)? else {
                return Err(self.pair.missing(&base.path()));
            };
            self.taken.extend(pieces(&tuned));
            // A weight of the module may be called as on disk.
            for name in pieces(&base).into_iter().take(1) {
                self.modules.extend(name.rsplit_once('.').map(|(module, _)| (module.to_owned(), base.module.clone())));
            }
            self.modules.insert(base.module.clone(), base.module.clone());
            if base.shape != tuned.shape || base.experts.len() != tuned.experts.len() {
                self.leave_out(&base.path(), "its shape differs between the models");
                continue;
            }
            self.matched.stacks.push(Stacks { base, tuned });
        }
        Ok(())
    }

    fn match_weights(&mut self) -> Result<()> {
        let (names, tuned_names) = (self.names, self.tuned_names);
        // A head that the base lacks is put on the tuned model's class, which may have a path of its own before the base's.
        let of = if self.brings_head { tuned_names } else { names };
        let parents = parents(of);
        for base in names.weights {
            let name = base.weight.name();
            if self.stacked.contains(name) {
                continue;
            }
            let Some(tuned) = tuned_names.find(name)? else {
                if names.head().is_some_and(|head| head.weight.name() == name) && tuned_names.is_tied() {
                    self.leave_out(name, "the tuned model has tied it to the embedding");
                    continue;
                }
                // Beside the layers: the head of what the base was trained for.
                if self.brings_head && !has_number(name) {
                    self.leave_out(name, "the tuned model is of another class, which has no such weight");
                    continue;
                }
                return Err(self.pair.missing(name));
            };
            self.taken.insert(tuned.weight.name());
            if !is_alike(names, base, tuned) {
                self.leave_out(name, "its shape differs between the models");
                continue;
            }
            let named = if self.brings_head { tuned } else { base }.weight.name();
            self.matched.weights.push(Both {
                base,
                tuned,
                path: of.in_memory(named),
                carrier: carrier(of, &self.modules, &parents, named, [base, tuned]),
            });
        }
        Ok(())
    }

    /// What the tuned model has alone: the parameters of a head, if one is asked for, and others.
    fn sort_others(&mut self) {
        let (names, tuned_names) = (self.names, self.tuned_names);
        // A head that the base has tied to its embedding, or none.
        let untied = tuned_names.head().filter(|_| names.is_tied()).map(|head| head.weight.name());
        let root = |name: &'a str| name.split('.').next();
        let roots: HashSet<Option<&str>> = names.weights.iter().map(|claim| root(claim.weight.name())).collect();
        // A layer more than the base has is none.
        let is_beside = |name: &'a str| !has_number(name) || !roots.contains(&root(name));
        for claim in tuned_names.weights {
            let name = claim.weight.name();
            if self.taken.contains(name) {
                continue;
            }
            let is_new = self.brings_head && is_beside(name);
            if self.pair.options.full && name.contains('.') && (is_new || untied == Some(name)) {
                self.matched.heads.push(claim);
            } else {
                self.leave_out(name, "the base has no such weight");
            }
        }
    }
}

/// True for the name of a parameter in a list of modules, as layers are.
fn has_number(name: &str) -> bool {
    name.split('.').any(|part| part.parse::<usize>().is_ok())
}

/// Modules that have others inside, by the names of weights.
fn parents(names: &Names<'_>) -> HashSet<String> {
    let mut parents = HashSet::new();
    for claim in names.weights {
        let mut path = claim.weight.name().rsplit_once('.').map_or("", |(module, _)| module);
        while let Some((parent, _)) = path.rsplit_once('.') {
            if !parents.insert(parent.to_owned()) {
                break;
            }
            path = parent;
        }
    }
    parents
}

/// True if the rows of a weight are inputs, as its format or its family has it.
fn is_turned(names: &Names<'_>, claim: &Claim) -> bool {
    let module = claim.weight.name().strip_suffix(".weight").unwrap_or_default();
    claim.weight.is_transposed() || claim.weight.has_family_order() && arch::leaf_in(module, names.arch.transposed)
}

/// True if two weights have the same dimensions, but for those of 1 and for how each is turned.
fn is_alike(names: &Names<'_>, base: &Claim, tuned: &Claim) -> bool {
    let dims = |claim: &Claim| claim.weight.shape().iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
    let (mut own, other) = (dims(base), dims(tuned));
    if own.len() == 2 && is_turned(names, base) != is_turned(names, tuned) {
        own.reverse();
    }
    own == other
}

/// What an adapter can do with a weight, by its name and shape. `experts` are the paths of modules of experts, on disk and in memory,
/// `parents` those of modules that have others inside.
fn carrier(
    names: &Names<'_>,
    experts: &HashMap<String, String>,
    parents: &HashSet<String>,
    name: &str,
    [base, tuned]: [&Claim; 2],
) -> Carrier {
    let Some((module, parameter)) = name.rsplit_once('.') else {
        return Carrier::Nowhere("it belongs to no module");
    };
    let is_linear = |module: &str| {
        let weight = names.exact(&format!("{module}.weight"));
        let is_matrix = weight.is_some_and(|claim| claim.weight.shape().len() == 2);
        let is_embedding =
            weight.zip(names.embed()).is_some_and(|(own, embed)| own.weight.name() == embed.weight.name());
        is_matrix && !is_embedding && !arch::leaf_in(module, names.arch.not_linear) && !names.is_head(module)
    };
    match parameter {
        "weight" | "bias" if names.layers_within(module).is_some() => Carrier::Nowhere(
            "it is several layers in memory, rows of one tensor here, and this version makes factors of whole ones",
        ),
        "weight" if is_linear(module) => {
            let turned = |claim: &Claim| is_turned(names, claim);
            let target = Target::layer(names, module);
            Carrier::Linear { target, base_turned: turned(base), tuned_turned: turned(tuned) }
        }
        "bias" if is_linear(module) => Carrier::Bias(Target::layer(names, module)),
        _ => match experts.get(module) {
            // What torch computes a weight from is no module that PEFT copies either.
            None if parents.contains(module) || module.contains(".parametrizations.") => Carrier::Bare,
            None => Carrier::Whole,
            Some(module) if base.weight.shape().len() == 2 => {
                Carrier::Beside(Target { module: module.clone(), parameter: Some(parameter.to_owned()) })
            }
            Some(_) => {
                Carrier::Nowhere("it lies beside the experts' matrices, and of their module nothing is taken whole")
            }
        },
    }
}
