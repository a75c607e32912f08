//! Which parameter of its module a set of factors is for: PEFT wraps a module once for each that `target_parameters` names, in the order in which its code declares them.

use super::site::prefix;
use super::{Adapter, Names};
use crate::arch;
use crate::error::{Result, mismatch, unsupported};

/// Which parameter of `module` the wrapper at `depth` holds; `None` if the adapter targets none by name.
pub(super) fn parameter(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    (depth, wrappers): (usize, usize),
) -> Result<Option<String>> {
    let stacked = names.experts.map_or(["", ""], |experts| experts.stacked);
    let place = |name| match name {
        _ if name == stacked[0] => declared(arch::GATE_UP),
        _ if name == stacked[1] => declared(arch::DOWN),
        _ => declared(name),
    };
    // A target is the end of a parameter's path, if only its name, and may match nothing: only what the module has is wrapped. Experts
    // have their stacked parameters even where each is stored by itself.
    let experts = names.experts.is_some_and(|experts| prefix(&experts, module).is_some());
    let mut parameters: Vec<&str> = Vec::new();
    for target in &adapter.config.target_parameters {
        let name = target.rsplit('.').next().unwrap_or(target);
        let path = format!("{module}.{name}");
        if adapter.config.targets_parameter(&path)
            && (experts && matches!(place(name), (0 | 1, false, _)) || names.find(&path)?.is_some())
        {
            parameters.push(name);
        }
    }
    parameters.sort_by_key(|name| place(name));
    parameters.dedup();
    if parameters.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = parameters.iter().map(|name| place(name).2).collect();
    refuse_unknown_order(adapter, module, &names)?;
    if parameters.len() != wrappers {
        return Err(mismatch(format!(
            "`{module}` has {wrappers} sets of factors, and of its parameters this version knows {} among `target_parameters` ({}): {}",
            parameters.len(),
            adapter.config.target_parameters.join(", "),
            parameters.join(", ")
        ))
        .in_file(&adapter.config.path));
    }
    Ok(parameters.get(wrappers.saturating_sub(1 + depth)).map(|name| (*name).to_owned()))
}

/// Errors if an adapter targets several parameters of a module and their order is not known.
pub(super) fn refuse_unknown_order(adapter: &Adapter, module: &str, parameters: &[&str]) -> Result<()> {
    if parameters.len() < 2 || parameters.iter().all(|name| declared(name).0 != UNKNOWN && *name != arch::UP) {
        return Ok(());
    }
    Err(unsupported(format!(
        "it targets several parameters of `{module}` ({}): in which order the module declares them decides whose factors are whose, and the files do not say it",
        parameters.join(", ")
    ))
    .in_file(&adapter.config.path)
    .with_hint("merge it with PEFT, or train an adapter for each of the parameters"))
}

/// Of a parameter whose place among the others of its module is not known.
const UNKNOWN: usize = 2;

/// Where a module of experts declares a parameter among its others: gate and up before down, a bias behind its own matrices; names whose place is not known behind them.
pub(crate) fn declared(parameter: &str) -> (usize, bool, &str) {
    let own = parameter.strip_suffix("_bias");
    let place = match own.unwrap_or(parameter) {
        arch::GATE_UP | arch::UP => 0,
        arch::DOWN => 1,
        _ => UNKNOWN,
    };
    (place, own.is_some(), parameter)
}
