//! Where the base holds a module's matrix, and how it lies there.
//!
//! Mostly it is a weight of the module's own name. GPT-2 stores it turned, torch's attention several in one. PEFT targets a stacked parameter of routed experts
//! by name (`target_parameters`) and wraps its module, once per parameter: the first parameter of the module is the innermost wrapper, whose tensors carry
//! the most `base_layer`s; older adapters have a module per expert. The family's row says how both relate to what is on disk. Source: PEFT 0.21,
//! `tuners/lora/layer.py` (`ParamWrapper`), `utils/transformers_weight_conversion.py`.

use std::ops::Range;

use super::stacks::PROJECTIONS;
use super::wrapped::parameter;
use super::{Adapter, Names};
use crate::arch::{self, Experts};
use crate::error::{Result, mismatch, unsupported};
use crate::formats::Claim;

/// Where the base holds a module's matrix.
pub(super) struct Site<'a> {
    /// The weight; of several, the first.
    pub(super) claim: &'a Claim,
    /// The name that patterns are matched with.
    pub(super) name: String,
    /// Outputs and inputs of the matrix, as a linear layer.
    pub(super) shape: (usize, usize),
    /// The bias beside the weight.
    pub(super) bias: Option<&'a Claim>,
    /// True for the output projection of torch's MultiheadAttention.
    pub(super) attention_output: bool,
    pub(super) kind: Kind<'a>,
}

pub(super) enum Kind<'a> {
    /// A weight of its own.
    Layer {
        /// The weight's name: of a tied embedding, the one that it will have.
        target: String,
        /// The configuration targets it by name.
        parameter: bool,
        /// The input projection of torch's MultiheadAttention.
        attention_input: bool,
    },
    /// A stack (experts, …) of which the adapter has tensors for all matrices.
    Stack { experts: usize },
    /// The same, and on disk each matrix is a weight, or several that follow each other or alternate: by expert.
    Each { weights: Vec<Vec<&'a Claim>>, interleaved: bool },
    /// The same, and on disk the outputs of the matrices lie in a stack for each projection, as mlx_lm has them.
    Stacks { experts: usize, stacks: Vec<&'a Claim> },
    /// One matrix whose outputs lie in several weights, one after the other: by the path of each.
    Split(Vec<(String, &'a Claim)>),
    /// One matrix that is some rows of a weight, as a layer has outputs.
    Within { outputs: Range<usize> },
    /// One matrix of a stack, or the half of it that is its gate (0) or up projection (1).
    InStack { expert: usize, half: Option<usize>, family: Experts },
}

impl<'a> Site<'a> {
    /// Finds the matrix; none if the base has no such module. `wrapper` is its depth and how many there are around the module.
    pub(super) fn find(
        adapter: &Adapter,
        names: &Names<'a>,
        module: &str,
        wrapper: (usize, usize),
    ) -> Result<Option<Self>> {
        // Experts and bare parameters first: their wrappers carry the module's name, not the parameter's.
        if let Some((stack, expert, leaf)) = one_expert(module) {
            if names.find(&format!("{module}.weight"))?.is_none() {
                return Self::in_stack(names, module, (stack, expert, leaf));
            }
        } else if let Some(parameter) = parameter(adapter, names, module, wrapper)?
            && let Some(site) = Self::of_parameter(names, module, &parameter)?
        {
            return Ok(Some(site));
        } else if let Some(site) = Self::of_switch(names, module)? {
            return Ok(Some(site));
        }
        Ok(match Self::layer(adapter, names, module)? {
            Some(site) => Some(site),
            None => Self::within(names, module)?,
        })
    }

    /// A layer that is a part of a weight.
    fn within(names: &Names<'a>, module: &str) -> Result<Option<Self>> {
        let Some((claim, outputs)) = names.within(&format!("{module}.weight"))? else { return Ok(None) };
        let &[_, inputs] = claim.weight.shape() else { return Ok(None) };
        let (name, shape) = (module.to_owned(), (outputs.len(), inputs));
        let bias = claim.weight.name().strip_suffix("weight").and_then(|stem| names.exact(&format!("{stem}bias")));
        Ok(Some(Self { claim, name, shape, bias, attention_output: false, kind: Kind::Within { outputs } }))
    }

    /// A module that the base has in pieces, whose outputs follow each other.
    pub(super) fn split(names: &Names<'a>, module: &str, paths: &[String]) -> Result<Option<Self>> {
        let mut pieces = Vec::new();
        let (mut outputs, mut inputs) = (0, None);
        for path in paths {
            let Some(claim) = names.exact(&format!("{path}.weight")) else { return Ok(None) };
            let (rows, cols) = match *claim.weight.shape() {
                [rows, cols] if *inputs.get_or_insert(cols) == cols => (rows, cols),
                ref shape => {
                    let (name, have) = (claim.weight.name(), inputs.unwrap_or(0));
                    return Err(mismatch(format!(
                        "`{name}` is {shape:?}, but it is a piece of `{module}`, which has {have} inputs"
                    )));
                }
            };
            outputs += rows;
            inputs = Some(cols);
            pieces.push((path.clone(), claim));
        }
        let (Some((_, claim)), Some(inputs)) = (pieces.first(), inputs) else { return Ok(None) };
        let claim = *claim;
        let bias = pieces.iter().find_map(|(path, _)| names.exact(&format!("{path}.bias")));
        let kind = Kind::Split(pieces);
        Ok(Some(Self { claim, name: module.to_owned(), shape: (outputs, inputs), bias, attention_output: false, kind }))
    }

    fn layer(adapter: &Adapter, names: &Names<'a>, module: &str) -> Result<Option<Self>> {
        if names.is_part_of_its_own(module) {
            return Err(unsupported(format!(
                "`{module}` is some rows of the tensor of that name, which this version does not tell from the others"
            )));
        }
        let (found, attention_input) = match names.find(&format!("{module}.in_proj_weight"))? {
            Some(claim) => (Some(claim), true),
            None => (names.find(&format!("{module}.weight"))?, false),
        };
        // An embedding that is tied to another tensor is not stored; what edits it parts the two.
        let tied = if found.is_none() { names.tied_to(module) } else { None };
        let Some(claim) = found.or(tied.as_ref().map(|(_, claim)| *claim)) else { return Ok(None) };
        let attention_output =
            module.strip_suffix(".out_proj").is_some_and(|mha| names.exact(&format!("{mha}.in_proj_weight")).is_some());
        let path = format!("{module}.weight");
        let parameter = adapter.config.targets_parameter(&path);
        let (rows, cols) = flattened(claim).unwrap_or((claim.weight.geometry().elements(), 1));
        let turned = claim.weight.shape().len() == 2 && turned(adapter, names, module, claim) != Turned::No;
        let stem = claim.weight.name().strip_suffix("weight");
        Ok(Some(Self {
            claim,
            name: if parameter { path } else { module.to_owned() },
            shape: if turned { (cols, rows) } else { (rows, cols) },
            bias: stem.and_then(|stem| names.exact(&format!("{stem}bias"))),
            attention_output,
            kind: Kind::Layer {
                target: tied.map_or_else(|| claim.weight.name().to_owned(), |(name, _)| name),
                parameter,
                attention_input,
            },
        }))
    }

    /// A parameter that is targeted by name, if it is no layer's weight.
    pub(super) fn of_parameter(names: &Names<'a>, module: &str, parameter: &str) -> Result<Option<Self>> {
        let name = format!("{module}.{parameter}");
        let stack = |claim: &'a Claim| Self::stack(names, name.clone(), claim);
        if let Some(claim) = names.find(&name)? {
            return Ok(stack(claim).or_else(|| Self::bare(name, claim)));
        }
        let Some(family) = names.experts else { return Ok(None) };
        let Some(prefix) = prefix(&family, module) else { return Ok(None) };
        let which = usize::from(parameter == arch::DOWN);
        if let Some(claim) = stacked(names, &family, prefix, which)? {
            return Ok(stack(claim));
        }
        match Self::each(names, name.clone(), &family, prefix, which)? {
            Some(site) => Ok(Some(site)),
            None => Ok(Self::stacks_of_mlx(names, name, &family, prefix, which)),
        }
    }

    /// The parameter is one stack in the adapter's model, and one for each projection on disk.
    fn stacks_of_mlx(names: &Names<'a>, name: String, family: &Experts, prefix: &str, which: usize) -> Option<Self> {
        if family.in_out || family.interleaved || !family.has_gate() {
            return None;
        }
        let (into, out) = PROJECTIONS.split_at(2);
        let projections = if which == 0 { into } else { out };
        let of_block = |block: &str| -> Option<Vec<&'a Claim>> {
            let stack = |projection| names.exact(&format!("{prefix}{block}{}.{projection}.weight", arch::SWITCH));
            projections.iter().map(stack).collect()
        };
        let blocks = family.modules.iter().filter_map(|module| module.strip_suffix("experts"));
        let stacks = blocks.filter_map(of_block).next()?;
        let claim = *stacks.first()?;
        let &[experts, rows, cols] = claim.weight.shape() else { return None };
        // Any number of matrices without a value takes no byte of a file.
        if claim.weight.geometry().elements() == 0 {
            return None;
        }
        let shape = (rows.checked_mul(stacks.len())?, cols);
        Some(Self { claim, name, shape, bias: None, attention_output: false, kind: Kind::Stacks { experts, stacks } })
    }

    /// A matrix that is a parameter of its module beside others: biases of all experts.
    fn bare(name: String, claim: &'a Claim) -> Option<Self> {
        let &[rows, cols] = claim.weight.shape() else { return None };
        if name.ends_with(".weight") {
            return None;
        }
        let target = claim.weight.name().to_owned();
        let kind = Kind::Layer { target, parameter: true, attention_input: false };
        Some(Self { claim, name, shape: (rows, cols), bias: None, attention_output: false, kind })
    }

    fn stack(names: &Names<'a>, name: String, claim: &'a Claim) -> Option<Self> {
        let &[experts, rows, cols] = claim.weight.shape() else { return None };
        if claim.weight.geometry().elements() == 0 {
            return None;
        }
        // What is quantized lies as a linear layer does.
        let shape = if names.is_turned_stack(claim.weight.as_ref()) { (cols, rows) } else { (rows, cols) };
        Some(Self { claim, name, shape, bias: None, attention_output: false, kind: Kind::Stack { experts } })
    }

    /// The parameter is stacked in the adapter's model, but on disk each expert has its own matrices.
    fn each(names: &Names<'a>, name: String, family: &Experts, prefix: &str, which: usize) -> Result<Option<Self>> {
        let (first, last) = family.projections();
        match (which, first) {
            (0, [first, others @ ..]) => Self::by_expert(names, name, family, prefix, (first, others)),
            (0, []) => Ok(None),
            _ => Self::by_expert(names, name, family, prefix, (last, &[])),
        }
    }

    /// A projection of all experts, as MLX (`switch_mlp.gate_proj`) and Tinker (`experts.w1`) call it, where each expert has its own matrices on disk.
    pub(super) fn of_switch(names: &Names<'a>, module: &str) -> Result<Option<Self>> {
        let (Some((path, leaf)), Some(family)) = (module.rsplit_once('.'), names.experts) else { return Ok(None) };
        let (stack, leaves) = match path.strip_suffix(arch::SWITCH) {
            Some(before) => (format!("{before}experts"), PROJECTIONS),
            None => (path.to_owned(), ["w1", "w3", "w2"]),
        };
        let which = leaves.iter().position(|name| *name == leaf);
        let (Some(which), Some(prefix)) = (which, prefix(&family, &stack)) else { return Ok(None) };
        if let Some(claim) = stacked(names, &family, prefix, which / 2)? {
            return Err(unsupported(format!(
                "`{module}` of all experts lies in `{}`, in which this version changes single experts or all of them together only",
                claim.weight.name()
            ))
            .with_hint("merge it into a checkpoint that has a tensor per expert, or let the program that trained it write a PEFT adapter"));
        }
        // An expert without a gate has no first projection.
        let own = which.checked_sub(leaves.len() - family.each.len().min(leaves.len()));
        let Some(projection) = own.and_then(|own| family.each.get(own)) else { return Ok(None) };
        Self::by_expert(names, module.to_owned(), &family, prefix, (projection, &[]))
    }

    fn by_expert(
        names: &Names<'a>,
        name: String,
        family: &Experts,
        prefix: &str,
        (first, others): (&str, &[&str]),
    ) -> Result<Option<Self>> {
        let weight = |expert: usize, projection: &str| {
            let named = |module| names.find(&format!("{prefix}{module}.{expert}.{projection}.weight")).transpose();
            family.modules.iter().find_map(named).transpose()
        };
        let mut weights = Vec::new();
        while let Some(claim) = weight(weights.len(), first)? {
            let mut own = vec![claim];
            for projection in others {
                own.push(weight(weights.len(), projection)?.ok_or_else(|| {
                    mismatch(format!("expert {} of `{name}` has no `{projection}` in the base", weights.len()))
                })?);
            }
            weights.push(own);
        }
        let Some(claim) = weights.first().and_then(|own| own.first()).copied() else { return Ok(None) };
        let &[rows, cols] = claim.weight.shape() else { return Ok(None) };
        let shape = (rows * (1 + others.len()), cols);
        let kind = Kind::Each { weights, interleaved: family.interleaved };
        Ok(Some(Self { claim, name, shape, bias: None, attention_output: false, kind }))
    }

    /// One expert's module where the base stacks its experts.
    fn in_stack(names: &Names<'a>, module: &str, (stack, expert, leaf): (&str, usize, &str)) -> Result<Option<Self>> {
        let Some(family) = names.experts else { return Ok(None) };
        let Some(prefix) = prefix(&family, stack) else { return Ok(None) };
        let spellings = [family.each, &PROJECTIONS, &["w1", "w3", "w2"]];
        let from_last = |each: &&[&str]| Some(each.len() - 1 - each.iter().position(|name| *name == leaf)?);
        let Some(from_last) = spellings.iter().find_map(from_last).filter(|number| *number < family.each.len()) else {
            return Ok(None);
        };
        let Some(claim) = stacked(names, &family, prefix, usize::from(from_last == 0))? else { return Ok(None) };
        let family = Experts { in_out: family.in_out && claim.weight.has_family_order(), ..family };
        let &[_, rows, cols] = claim.weight.shape() else { return Ok(None) };
        let (width, inputs) = if family.in_out { (cols, rows) } else { (rows, cols) };
        let half = (from_last > 0 && family.has_gate()).then(|| 2 - from_last);
        let shape = (if half.is_some() { width / 2 } else { width }, inputs);
        let kind = Kind::InStack { expert, half, family };
        Ok(Some(Self { claim, name: module.to_owned(), shape, bias: None, attention_output: false, kind }))
    }

    pub(super) fn matrices(&self) -> usize {
        match &self.kind {
            Kind::Stack { experts } | Kind::Stacks { experts, .. } => *experts,
            Kind::Each { weights, .. } => weights.len(),
            Kind::Layer { .. } | Kind::Split(_) | Kind::Within { .. } | Kind::InStack { .. } => 1,
        }
    }

    pub(super) fn is_expert(&self) -> bool {
        !matches!(self.kind, Kind::Layer { .. } | Kind::Split(_) | Kind::Within { .. })
    }

    pub(super) fn is_stack(&self) -> bool {
        matches!(self.kind, Kind::Stack { .. } | Kind::Stacks { .. } | Kind::Each { .. })
    }

    pub(super) fn is_parameter(&self) -> bool {
        self.is_stack() || matches!(self.kind, Kind::Layer { parameter: true, .. })
    }

    pub(super) fn is_attention_input(&self) -> bool {
        matches!(self.kind, Kind::Layer { attention_input: true, .. })
    }
}

/// What says that a weight's rows are inputs, if anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// Its format, or of a plain weight the family's row.
    Known,
    /// The adapter's `fan_in_fan_out`, of a plain weight.
    Said,
    No,
}

pub(super) fn turned(adapter: &Adapter, names: &Names<'_>, module: &str, claim: &Claim) -> Turned {
    let plain = claim.weight.has_family_order();
    match () {
        () if claim.weight.is_transposed() || plain && arch::leaf_in(module, names.arch.transposed) => Turned::Known,
        () if plain && adapter.config.fan_in_fan_out => Turned::Said,
        () => Turned::No,
    }
}

/// The two dimensions of a matrix as it is stored, with everything behind the first taken together: a convolution's kernel.
pub(super) fn flattened(claim: &Claim) -> Option<(usize, usize)> {
    let geometry = claim.weight.geometry();
    match claim.weight.shape() {
        [_, _] => Some((geometry.rows, geometry.cols)),
        [rows, rest @ ..] if !rest.is_empty() => Some((*rows, rest.iter().product())),
        _ => None,
    }
}

/// Splits `….experts.7.gate_proj` into the stack's path, the number and the projection.
pub(super) fn one_expert(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, leaf) = module.rsplit_once('.')?;
    let (stack, number) = rest.rsplit_once('.')?;
    let number = number.parse().ok()?;
    stack.ends_with("experts").then_some((stack, number, leaf))
}

/// What stands before the experts module ("model.layers.3."), if the path ends in one of the family's names for it.
pub(super) fn prefix<'m>(experts: &Experts, module: &'m str) -> Option<&'m str> {
    experts
        .modules
        .iter()
        .find_map(|name| module.strip_suffix(name).filter(|head| head.is_empty() || head.ends_with('.')))
}

/// The stacked weight: gate and up (0) or down (1).
fn stacked<'a>(names: &Names<'a>, experts: &Experts, prefix: &str, which: usize) -> Result<Option<&'a Claim>> {
    let [gate_up, down] = experts.stacked;
    let parameter = if which == 0 { gate_up } else { down };
    for module in experts.modules {
        let found = names.find(&format!("{prefix}{module}.{parameter}"))?;
        if found.is_some_and(|claim| claim.weight.shape().len() == 3) {
            return Ok(found);
        }
    }
    Ok(None)
}
