//! What an adapter does to each weight, as something that a LoRA can do.

use std::collections::{HashMap, HashSet};

use super::convert::ConvertOptions;
use super::cut::{cut, cut_matrix};
use super::report::DroppedTensor;
use super::stacked::Stacked;
use super::svd::Best;
use super::target::Target;
use crate::adapters::{Adapter, Names, Stack};
use crate::error::Result;
use crate::plan::{Action, Inputs, Plan, Recode};

/// Something that becomes a pair of factors.
pub(super) enum Job<'a> {
    /// The matrix of a layer, or its kernel.
    Layer { recode: &'a Recode, target: Target },
    /// A table of embeddings, in the module of that path.
    Embedding { recode: &'a Recode, module: String },
    /// The matrices of a stack of experts.
    Stack { stack: Stack<'a>, recodes: HashMap<&'a str, &'a Recode> },
}

/// What a plan does to the base's weights, for a LoRA.
#[derive(Default)]
pub(super) struct Jobs<'a> {
    pub(super) factors: Vec<Job<'a>>,
    /// Biases that become others, by the layer that has them.
    pub(super) biases: Vec<(&'a Recode, Target)>,
    pub(super) dropped: Vec<DroppedTensor>,
}

/// What a job came to.
pub(super) struct Converted {
    pub(super) stacked: Stacked,
    pub(super) energy: f64,
    pub(super) kept: f64,
}

impl<'a> Jobs<'a> {
    pub(super) fn of(adapter: &Adapter, names: &Names<'a>, plan: &'a Plan) -> Result<Self> {
        let mut jobs = Self::default();
        let recodes: HashMap<&'a str, &'a Recode> = plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Recode(recode) if !recode.edits.is_empty() => Some((step.name.as_str(), &**recode)),
                _ => None,
            })
            .collect();
        let mut stacked = HashSet::new();
        for stack in Stack::all(names, !adapter.config.target_parameters.is_empty())? {
            let pieces = stack.experts.iter().flatten().map(|piece| piece.claim.weight.name());
            let own: HashMap<&str, &Recode> =
                pieces.filter_map(|name| recodes.get_key_value(name)).map(|(name, recode)| (*name, *recode)).collect();
            if !own.is_empty() {
                stacked.extend(own.keys().copied());
                jobs.factors.push(Job::Stack { stack, recodes: own });
            }
        }
        for step in &plan.steps {
            let name = step.name.as_str();
            let Some(recode) = recodes.get(name).filter(|_| !stacked.contains(name)) else { continue };
            jobs.sort(adapter, names, name, recode);
        }
        Ok(jobs)
    }

    /// What a LoRA can do in place of the edits of one weight.
    fn sort(&mut self, adapter: &Adapter, names: &Names<'a>, name: &str, recode: &'a Recode) {
        let layers: HashSet<Option<&str>> = recode.edits.iter().map(|(_, edit)| edit.layer.as_deref()).collect();
        let layer = layers.iter().next().copied().flatten().filter(|_| layers.len() == 1);
        let embeddings: HashSet<Option<String>> =
            recode.edits.iter().map(|(_, edit)| adapter.embedding(edit.tensors.first()?)).collect();
        let embedding = embeddings.into_iter().next().flatten().filter(|_| recode.edits.len() == 1);
        let shape = recode.from.weight.shape();
        // PEFT adds what it does to the output projection of torch's attention twice, and a LoRA's too.
        let is_attention = |module: &str| {
            let stem = module.strip_suffix(".out_proj").unwrap_or(module);
            names.exact(&format!("{stem}.in_proj_weight")).is_some()
        };
        let owner = name.strip_suffix(".bias").filter(|module| names.exact(&format!("{module}.weight")).is_some());
        let reason = match (layer, embedding, owner) {
            (_, Some(module), _) => return self.factors.push(Job::Embedding { recode, module }),
            (Some(layer), ..) if is_attention(layer) => {
                "it is a matrix of torch's attention, of which PEFT adds one twice: merge the adapter itself"
            }
            // One channel in each group, or one in all.
            (Some(_), ..) if shape.len() > 2 && shape.get(1) == Some(&1) => {
                "it may be a convolution in groups, whose factors have no common rank: merge the adapter itself"
            }
            (Some(layer), ..) if shape.len() >= 2 => {
                return self.factors.push(Job::Layer { recode, target: Target::layer(names, layer) });
            }
            (_, _, Some(module)) => return self.biases.push((recode, Target::layer(names, module))),
            _ if recode.edits.iter().all(|(_, edit)| edit.plan.is_tokens()) => return,
            _ if name.strip_suffix(".weight").is_some_and(|module| names.layers_within(module).is_some()) => {
                "it is several layers in memory, rows of one tensor here, and this version makes LoRAs of whole ones: merge the adapter itself"
            }
            _ => "it is no matrix of a layer, and this version makes LoRAs of those: merge the adapter itself",
        };
        self.dropped.push(DroppedTensor { name: name.to_owned(), energy: None, reason });
    }
}

impl Job<'_> {
    pub(super) fn path(&self) -> String {
        match self {
            Self::Layer { target, .. } => target.path(),
            Self::Embedding { module, .. } => module.clone(),
            Self::Stack { stack, .. } => stack.path(),
        }
    }

    /// The name that it has in errors.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => recode.from.weight.name().to_owned(),
            Self::Stack { stack, .. } => stack.path(),
        }
    }

    pub(super) fn cost(&self) -> u64 {
        let elements = |recode: &Recode| recode.from.weight.geometry().elements() as u64;
        60 * match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => elements(recode),
            Self::Stack { recodes, .. } => recodes.values().map(|recode| elements(recode)).sum(),
        }
    }

    pub(super) fn is_of_base(&self) -> bool {
        let is_of_base = |recode: &Recode| recode.edits.iter().any(|(_, edit)| edit.plan.change.is_of_base());
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => is_of_base(recode),
            Self::Stack { recodes, .. } => recodes.values().any(|recode| is_of_base(recode)),
        }
    }

    pub(super) fn find(&self, inputs: &Inputs, options: &ConvertOptions) -> Result<Converted> {
        match self {
            Self::Layer { recode, .. } | Self::Embedding { recode, .. } => {
                let Best { factors, energy, kept } = cut(inputs, recode, options)?;
                Ok(Converted { stacked: Stacked::one(factors), energy, kept })
            }
            Self::Stack { stack, recodes } => {
                let (mut own, mut energy, mut held) = (Vec::new(), 0.0, 0.0);
                let mut edited = HashMap::new();
                for expert in 0..stack.experts.len() {
                    let found = cut_matrix(inputs, stack, expert, (recodes, &mut edited), options)?;
                    if let Some(found) = &found {
                        energy += found.energy;
                        held += found.kept * found.energy;
                    }
                    own.push(found.map(|found| found.factors));
                }
                let kept = if energy > 0.0 { held / energy } else { 1.0 };
                Ok(Converted { stacked: Stacked::of(stack, own), energy, kept })
            }
        }
    }
}
