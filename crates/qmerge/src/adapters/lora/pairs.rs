//! The pairs of factors of a LoRA, apart from any base: what is cut to another rank, or combined.

use std::collections::{HashMap, HashSet};

use super::config::LoraConfig;
use super::{A, B, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, PEFT_TYPE};
use crate::adapters::keys::Role;
use crate::adapters::module::matrix_shape;
use crate::adapters::wrapped::refuse_unknown_order;
use crate::adapters::{Adapter, ReadOptions, declared};
use crate::error::{Result, mismatch, unsupported};

/// A and B of one module.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// Module path in the base model.
    pub(crate) module: String,
    /// Tensor (rank · experts, inputs), with the expert slowest.
    pub(crate) a: String,
    /// Tensor (outputs, rank · experts), with the expert fastest.
    pub(crate) b: String,
    /// Bias of B.
    pub(crate) bias: Option<String>,
    /// Rank of one product.
    pub(crate) rank: usize,
    /// Products that are stacked; 1 for a layer.
    pub(crate) experts: usize,
    /// Inputs and outputs of one product.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Factor on the products.
    pub(crate) scale: f64,
    /// Of an embedding: its inputs are tokens.
    pub(crate) embedding: bool,
    /// Of a parameter that is targeted by name.
    pub(crate) is_parameter: bool,
}

/// All tensors of a LoRA.
#[derive(Debug, Default)]
pub(crate) struct LoraTensors {
    /// In the order of the file.
    pub(crate) pairs: Vec<Pair>,
    /// Tensors that are no factors: biases, modules trained whole, tokens.
    pub(crate) others: Vec<String>,
    /// Tensors that only training uses.
    pub(crate) training_only: Vec<String>,
}

impl LoraTensors {
    /// Sorts an adapter's tensors. Errors if it is no LoRA, or one whose factors no others can stand for.
    pub(crate) fn of(adapter: &Adapter, options: &ReadOptions) -> Result<Self> {
        let in_config = |error: crate::error::Error| error.in_file(&adapter.config.path);
        let config = config_of(adapter).map_err(in_config)?;
        config.refuse_other_factors(options).map_err(in_config)?;
        Self::sort(adapter, &config).map_err(|error| error.in_file(adapter.file()))
    }

    fn sort(adapter: &Adapter, config: &LoraConfig) -> Result<Self> {
        if adapter.writer != "PEFT" && !adapter.config.target_parameters.is_empty() {
            return Err(unsupported(format!(
                "written as {} does, whose experts' factors are of projections that PEFT does not adapt one by one: it cannot be written as PEFT's",
                adapter.writer
            ))
            .with_hint("merge it, or cut it with the program that wrote it"));
        }
        if adapter.names_need_base() {
            return Err(unsupported(format!(
                "written as {} does, whose names of modules PEFT does not have: it cannot be written as PEFT's",
                adapter.writer
            ))
            .with_hint("merge it, or cut it with the program that wrote it"));
        }
        let mut parts = Self::default();
        let mut factors: HashMap<(String, usize, Role), &str> = HashMap::new();
        let mut firsts = Vec::new();
        for entry in &adapter.tensors.entries {
            let key = adapter.key(&entry.name);
            match &key.role {
                Role::Own(MAGNITUDE, _) => {
                    return Err(mismatch("a DoRA's magnitude, but `use_dora` is not set").in_tensor(&entry.name));
                }
                Role::TrainingOnly | Role::PassedOver(_) => parts.training_only.push(entry.name.clone()),
                Role::Tokens | Role::TokensOf | Role::Parameter(_) | Role::Original => {
                    parts.others.push(entry.name.clone())
                }
                Role::Own(A | EMBEDDING_A, _) => firsts.push(key.clone()),
                // Only programs add whose adapters were refused above.
                Role::Own(..) | Role::Shared(_) | Role::Added(_) => {}
            }
            if let Some(before) = factors.insert((key.module, key.depth, key.role.clone()), &entry.name)
                && matches!(key.role, Role::Own(..))
            {
                return Err(mismatch(format!("stands for the same factor as `{before}`")).in_tensor(&entry.name));
            }
        }
        let mut taken: HashSet<&str> = HashSet::new();
        let mut wrappers: HashMap<String, usize> = HashMap::new();
        for key in &firsts {
            *wrappers.entry(key.module.clone()).or_default() += 1;
        }
        for key in firsts {
            let get = |role: Role| factors.get(&(key.module.clone(), key.depth, role)).copied();
            let embedding = key.role == Role::Own(EMBEDDING_A, false);
            let a = get(key.role.clone()).unwrap_or_default();
            let b = get(Role::Own(if embedding { EMBEDDING_B } else { B }, false)).ok_or_else(|| {
                mismatch(format!("its partner, the B factor of `{}`, is missing", key.module))
                    .in_tensor(a)
                    .with_hint("the adapter file is incomplete")
            })?;
            let bias = get(Role::Own(B, true));
            taken.extend([a, b].into_iter().chain(bias));
            let wrappers = wrappers.get(&key.module).copied().unwrap_or(1);
            let parameter = parameter(adapter, config, &key.module, (key.depth, wrappers))?;
            let own = (key.module.as_str(), parameter.as_deref());
            parts.pairs.push(pair(adapter, config, own, (a, b, bias), embedding)?);
        }
        let alone = factors
            .iter()
            .filter(|((_, _, role), name)| matches!(role, Role::Own(B | EMBEDDING_B, _)) && !taken.contains(*name));
        match alone.map(|(_, name)| *name).min() {
            Some(name) => Err(mismatch("its partner, the A factor, is missing").in_tensor(name)),
            None => Ok(parts),
        }
    }
}

/// The path of the parameter that a wrapper of a module is around, if the configuration names as many of its parameters as it has wrappers.
fn parameter(
    adapter: &Adapter,
    config: &LoraConfig,
    module: &str,
    (depth, wrappers): (usize, usize),
) -> Result<Option<String>> {
    // What is named without its module may be any module's.
    let targets =
        adapter.config.target_parameters.iter().filter_map(|target| Some((target, target.rsplit_once('.')?.1)));
    let own = targets.filter(|(target, _)| {
        let stem = target.rsplit_once('.').map_or("", |(stem, _)| stem);
        module.strip_suffix(stem).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    });
    let mut names: Vec<&str> = own.map(|(_, name)| name).collect();
    names.sort_by_key(|name| declared(name));
    names.dedup();
    // Which of them is whose matters where rank or factor depend on it.
    let scalings: Vec<_> =
        names.iter().map(|name| config.scaling(&format!("{module}.{name}"))).collect::<Result<_>>()?;
    if names.len() == wrappers && scalings.iter().any(|scaling| Some(scaling) != scalings.first()) {
        refuse_unknown_order(adapter, module, &names)?;
    }
    let name = names.get(wrappers.saturating_sub(1 + depth)).filter(|_| names.len() == wrappers);
    Ok(name.map(|name| format!("{module}.{name}")))
}

fn pair(
    adapter: &Adapter,
    config: &LoraConfig,
    (module, parameter): (&str, Option<&str>),
    (a, b, bias): (&str, &str, Option<&str>),
    embedding: bool,
) -> Result<Pair> {
    let ((rank_a, inputs), (outputs, rank_b)) =
        (matrix_shape(&adapter.tensors, a)?, matrix_shape(&adapter.tensors, b)?);
    let stated = adapter.stated(module);
    if stated.is_some_and(|stated| stated.heads.is_some()) {
        return Err(unsupported("its rows are in llama.cpp's order, and how many heads they belong to is the base's to say, so that it cannot be written as PEFT's")
            .in_tensor(b)
            .with_hint("cut the PEFT adapter that it was made from"));
    }
    let (rank, scale) = match stated {
        Some(stated) => (stated.rank, stated.scale),
        None => config.scaling(parameter.unwrap_or(module))?,
    };
    if inputs == 0 || outputs == 0 {
        return Err(mismatch("an empty factor").in_tensor(if inputs == 0 { a } else { b }));
    }
    let stacked = !adapter.config.target_parameters.is_empty() && rank_a > 0 && rank_a % rank == 0;
    let experts = if stacked { rank_a / rank } else { 1 };
    if rank_a != rank * experts || rank_b != rank_a {
        return Err(mismatch(format!("ranks {rank_a} (A) and {rank_b} (B), but the configuration says {rank} for `{module}`"))
            .in_tensor(a)
            .with_hint("adapter_config.json and the weights are of different adapters, or it adapts a grouped convolution, whose factors have no common rank"));
    }
    if let Some(bias) = bias
        && adapter.tensors.get(bias).is_none_or(|entry| entry.elements() != outputs as u64)
    {
        return Err(mismatch(format!("`{module}` has {outputs} outputs")).in_tensor(bias));
    }
    Ok(Pair {
        module: module.to_owned(),
        a: a.to_owned(),
        b: b.to_owned(),
        bias: bias.map(str::to_owned),
        rank,
        experts,
        inputs,
        outputs,
        scale,
        embedding,
        is_parameter: parameter.is_some() || experts > 1,
    })
}

/// The configuration, if the adapter is a LoRA.
fn config_of(adapter: &Adapter) -> Result<LoraConfig> {
    if adapter.config.peft_type != PEFT_TYPE {
        return Err(unsupported(format!("a {} adapter has no factors A and B", adapter.config.peft_type))
            .with_hint("`qmerge convert-adapter` turns it into an ordinary LoRA"));
    }
    LoraConfig::read(&adapter.config)
}
