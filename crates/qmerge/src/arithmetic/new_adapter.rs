//! A LoRA that is made from nothing but factors and tensors taken whole.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::stacked::Stacked;
use super::target::Target;
use crate::adapters::{Names, Task, declared};
use crate::arch;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::linalg::{Factors, transposed};
use crate::open::{Checkpoint, HubId};
use crate::write::{Data, NewTensor, overflow};

/// What PEFT finds a base by: its hub id, else the path that the user named.
fn name_of(base: &Checkpoint) -> String {
    HubId::of_snapshot(&base.path).map_or_else(|| base.path.display().to_string(), |id| id.to_string())
}

/// An adapter under construction.
#[derive(Default)]
pub(super) struct NewAdapter<'a> {
    pub(super) rank: usize,
    pub(super) tensors: Vec<NewTensor<'a>>,
    pub(super) targets: BTreeSet<Target>,
    /// Ranks of targets that are not `rank`.
    ranks: BTreeMap<String, usize>,
    pub(super) whole: BTreeSet<String>,
    pub(super) has_bias: bool,
    /// What the model was trained to do, where a head for it is taken whole.
    pub(super) task: Option<Task>,
    pub(super) is_turned: bool,
    /// PEFT is to tie the head to the copy of the embedding.
    pub(super) is_tied: bool,
    /// Factors of parameters, by module: how PEFT calls them depends on all that a module has.
    parameters: BTreeMap<String, Vec<(String, [NewTensor<'a>; 2])>>,
}

impl<'a> NewAdapter<'a> {
    /// One of a rank, with nothing in it.
    pub(super) fn of_rank(rank: usize) -> Self {
        Self { rank, ..Self::default() }
    }

    /// Takes the factors of a linear layer.
    pub(super) fn take(&mut self, target: Target, factors: Factors, dtype: Dtype) -> Result<()> {
        self.take_all(target, Stacked::one(factors), dtype)
    }

    /// Takes the factors of all matrices of a target.
    pub(super) fn take_all(&mut self, target: Target, stacked: Stacked, dtype: Dtype) -> Result<()> {
        let Stacked { factors: Factors { rank, left, right }, experts } = stacked;
        let all = rank * experts;
        let tensor = |factor: &str, shape, values| {
            let name = format!("base_model.model.{}.lora_{factor}.weight", target.module);
            let tensor = NewTensor::of_values(name.clone(), dtype, shape, values);
            tensor.ok_or_else(|| overflow(&name, dtype))
        };
        let pair = [tensor("A", vec![all, right.len() / all], right)?, tensor("B", vec![left.len() / all, all], left)?];
        match &target.parameter {
            Some(parameter) => {
                self.parameters.entry(target.module.clone()).or_default().push((parameter.clone(), pair))
            }
            None => self.tensors.extend(pair),
        }
        if rank != self.rank {
            self.ranks.insert(target.path(), rank);
        }
        self.targets.insert(target);
        Ok(())
    }

    /// Takes the factors of a convolution, whose kernel lies behind the inputs.
    pub(super) fn take_convolution(
        &mut self,
        module: &str,
        factors: Factors,
        kernel: &[usize],
        dtype: Dtype,
    ) -> Result<()> {
        let first = self.tensors.len();
        self.take(Target::module(module), factors, dtype)?;
        let elements = kernel.iter().product::<usize>().max(1);
        if let [a, b] = &mut self.tensors[first..] {
            a.shape = [&[a.shape[0], a.shape[1] / elements], kernel].concat();
            b.shape.extend(kernel.iter().map(|_| 1));
        }
        Ok(())
    }

    /// Takes the factors of an embedding's table (tokens, features).
    pub(super) fn take_embedding(&mut self, module: &str, factors: Factors, dtype: Dtype) -> Result<()> {
        let Factors { rank, left, right } = factors;
        let (tokens, features) = (left.len() / rank, right.len() / rank);
        for (factor, shape, values) in [
            ("A", vec![rank, tokens], transposed(&left, rank)),
            ("B", vec![features, rank], transposed(&right, features)),
        ] {
            let name = format!("base_model.model.{module}.lora_embedding_{factor}");
            let tensor = NewTensor::of_values(name.clone(), dtype, shape, values);
            self.tensors.push(tensor.ok_or_else(|| overflow(&name, dtype))?);
        }
        if rank != self.rank {
            self.ranks.insert(module.to_owned(), rank);
        }
        self.targets.insert(Target::module(module));
        Ok(())
    }

    /// Takes another bias for a layer. PEFT wants the factors of every layer whose bias it wraps.
    pub(super) fn take_bias(
        &mut self,
        names: &Names<'_>,
        target: Target,
        dtype: Dtype,
        shape: Vec<usize>,
        values: impl FnOnce() -> Result<Vec<f32>> + 'a,
    ) -> Result<()> {
        let name = format!("base_model.model.{}.base_layer.bias", target.module);
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(NewTensor { name, dtype: Dtype::F32, shape, data: Data::Later(Box::new(values)) });
        self.has_bias = true;
        let weight = names.find(&format!("{}.weight", target.module))?;
        if !self.targets.contains(&target)
            && let Some(&[outputs, inputs]) = weight.map(|claim| claim.weight.shape())
        {
            let (left, right) = (vec![0.0; outputs], vec![0.0; inputs]);
            let is_turned = arch::leaf_in(&target.module, names.arch.transposed);
            let (left, right) = if is_turned { (right, left) } else { (left, right) };
            self.take(target, Factors { rank: 1, left, right }, dtype)?;
        }
        Ok(())
    }

    /// All tensors. PEFT wraps a module once for each of its parameters, the first that the module declares innermost.
    pub(super) fn finish(&mut self) -> Vec<NewTensor<'a>> {
        for (module, mut pairs) in std::mem::take(&mut self.parameters) {
            pairs.sort_by(|(a, _), (b, _)| declared(a).cmp(&declared(b)));
            let wrappers = pairs.len();
            for (number, (_, pair)) in pairs.into_iter().enumerate() {
                let path = format!("{module}{}", ".base_layer".repeat(wrappers - 1 - number));
                for (factor, tensor) in ["A", "B"].into_iter().zip(pair) {
                    let name = format!("base_model.model.{path}.lora_{factor}.weight");
                    self.tensors.push(NewTensor { name, ..tensor });
                }
            }
        }
        std::mem::take(&mut self.tensors)
    }

    pub(super) fn config(&self, base: &Checkpoint) -> Value {
        // Anchored at both ends: PEFT matches the end of a path.
        let patterns: BTreeMap<String, usize> =
            self.ranks.iter().map(|(path, rank)| (format!("^{}", path.replace('.', r"\.")), *rank)).collect();
        let class = base.config.as_ref().and_then(|config| config.class());
        let is_causal = class.is_some_and(|class| class.ends_with("ForCausalLM"));
        // PEFT's task of answers has a head of its own name.
        let is_of_peft = |task_type: &&str| *task_type != "QUESTION_ANS" || self.whole.contains("qa_outputs");
        let task_type = match &self.task {
            Some(task) => task.task_type().filter(is_of_peft),
            None => is_causal.then_some("CAUSAL_LM"),
        };
        let trained_class = self.task.as_ref().filter(|_| task_type.is_none()).map(Task::class);
        let paths = |parameters: bool| -> Vec<String> {
            self.targets.iter().filter(|target| target.parameter.is_some() == parameters).map(Target::path).collect()
        };
        let parameters = paths(true);
        json!({
            "peft_type": "LORA",
            "task_type": task_type,
            "auto_mapping": trained_class.map(|class| json!({ "base_model_class": class, "parent_library": "transformers" })),
            "base_model_name_or_path": name_of(base),
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "lora_dropout": 0.0,
            "bias": if self.has_bias { "lora_only" } else { "none" },
            "fan_in_fan_out": self.is_turned,
            "inference_mode": true,
            "init_lora_weights": true,
            "ensure_weight_tying": self.is_tied,
            "use_dora": false,
            "use_rslora": false,
            "modules_to_save": if self.whole.is_empty() { None } else { Some(&self.whole) },
            "target_modules": paths(false),
            "target_parameters": if parameters.is_empty() { None } else { Some(parameters) },
        })
    }
}

/// Errors if a value is not finite.
pub(super) fn finite(values: &[f32]) -> Result<()> {
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFinite, "it holds NaN or infinity, or differs by more than f32 can hold")),
    }
}
