//! LoRA on routed experts: factors for a stack of matrices, or one pair per expert, on weights stored either way.
//!
//! PEFT targets a stacked parameter by name (`target_parameters`) and wraps its module, once per parameter: the first
//! parameter of the module is the innermost wrapper, whose tensors carry the most `base_layer`s. Older adapters hold one LoRA
//! per expert. The family's row says how both relate to what is on disk. Source: PEFT 0.21, `tuners/lora/layer.py`
//! (`ParamWrapper`), `utils/transformers_weight_conversion.py`.

use std::sync::Arc;

use super::low_rank::{Layout, LowRankPlan, Stride, matrix_shape};
use super::{Adapter, Names, PlannedEdit};
use crate::arch::{self, Experts};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::formats::Claim;

/// Edits of experts, or `None` if `module` is an ordinary layer (or nothing the base has). `wrapper` is its depth and how many there are around the module.
pub(super) fn plan(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    wrapper: (usize, usize),
    factors: (&str, &str),
) -> Result<Option<Vec<PlannedEdit>>> {
    if let Some((stack, expert, leaf)) = one_expert(module) {
        return match names.find(&format!("{module}.weight"))? {
            Some(_) => Ok(None),
            None => into_stack(adapter, names, module, (stack, expert, leaf), factors),
        };
    }
    let Some(parameter) = parameter(adapter, names, module, wrapper)? else { return Ok(None) };
    let wrapped = Wrapped { adapter, module, parameter: &parameter, factors };
    if let Some(claim) = names.find(&format!("{module}.{parameter}"))? {
        return if claim.weight.shape().len() == 3 { wrapped.onto_stack(names, claim).map(Some) } else { Ok(None) };
    }
    let Some(experts) = names.arch.experts else { return Ok(None) };
    let Some(prefix) = prefix(&experts, module) else { return Ok(None) };
    let which = usize::from(parameter == arch::DOWN);
    if let Some(claim) = stacked(names, &experts, prefix, which)? {
        return wrapped.onto_stack(names, claim).map(Some);
    }
    wrapped.onto_each(names, &experts, prefix, which)
}

/// Which parameter of `module` the wrapper at `depth` holds; `None` if the adapter targets none by name.
fn parameter(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    (depth, wrappers): (usize, usize),
) -> Result<Option<String>> {
    // The order in which the module declares them: gate and up before down; unknown names alphabetically.
    let stacked = names.arch.experts.map_or(["", ""], |experts| experts.stacked);
    let place = |name: &str| match name {
        _ if name == stacked[0] || name == arch::GATE_UP => 0,
        _ if name == stacked[1] || name == arch::DOWN => 1,
        _ => 2,
    };
    // A target is the end of a parameter's path, if only its name, and may match nothing: only what the module has is wrapped. Experts
    // have their stacked parameters even where each is stored by itself.
    let experts = names.arch.experts.is_some_and(|experts| prefix(&experts, module).is_some());
    let mut parameters: Vec<&str> = Vec::new();
    for target in &adapter.config.target_parameters {
        let name = target.rsplit('.').next().unwrap_or(target);
        let path = format!("{module}.{name}");
        if adapter.config.targets_parameter(&path) && (experts && place(name) < 2 || names.find(&path)?.is_some()) {
            parameters.push(name);
        }
    }
    parameters.sort_by_key(|name| (place(name), *name));
    parameters.dedup();
    if parameters.is_empty() {
        return Ok(None);
    }
    if parameters.len() != wrappers {
        return Err(mismatch(format!(
            "{wrappers} wrappers around `{module}`, but the configuration targets {} of its parameters ({})",
            parameters.len(),
            parameters.join(", ")
        ))
        .in_file(&adapter.config.path));
    }
    Ok(parameters.get(wrappers.saturating_sub(1 + depth)).map(|name| (*name).to_owned()))
}

/// Splits `….experts.7.gate_proj` into the stack's path, the number and the projection.
fn one_expert(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, leaf) = module.rsplit_once('.')?;
    let (stack, number) = rest.rsplit_once('.')?;
    let number = number.parse().ok()?;
    stack.ends_with("experts").then_some((stack, number, leaf))
}

/// What stands before the experts module ("model.layers.3."), if the path ends in one of the family's names for it.
fn prefix<'m>(experts: &Experts, module: &'m str) -> Option<&'m str> {
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

/// A 16-bit parameter takes a delta that was rounded to its type first: PEFT's way for bare parameters.
fn rounding(claim: &Claim) -> Option<Dtype> {
    Some(claim.weight.value_dtype()).filter(|dtype| claim.weight.is_plain() && *dtype != Dtype::F32)
}

/// A wrapper around one stacked parameter.
struct Wrapped<'a> {
    adapter: &'a Adapter,
    module: &'a str,
    parameter: &'a str,
    factors: (&'a str, &'a str),
}

impl Wrapped<'_> {
    /// Rank, scale, inputs and outputs of one expert's factors.
    fn factors(&self, experts: usize) -> Result<(usize, f64, usize, usize)> {
        let (a, b) = self.factors;
        let ((rank_a, inputs), (outputs, rank_b)) =
            (matrix_shape(&self.adapter.tensors, a)?, matrix_shape(&self.adapter.tensors, b)?);
        let (rank, scale) = self.adapter.config.scaling(&format!("{}.{}", self.module, self.parameter))?;
        let want = rank.checked_mul(experts);
        if Some(rank_a) != want || Some(rank_b) != want {
            return Err(mismatch(format!(
                "stacked rank {rank_a} (A) and {rank_b} (B), but {experts} experts of rank {rank} need {}",
                want.unwrap_or(usize::MAX)
            ))
            .in_tensor(a));
        }
        Ok((rank, scale, inputs, outputs))
    }

    fn edit(
        &self,
        claim: &Claim,
        (rank, scale, inputs, outputs): (usize, f64, usize, usize),
        layout: Layout,
    ) -> PlannedEdit {
        let (a, b) = self.factors;
        PlannedEdit {
            target: claim.weight.name().to_owned(),
            plan: Arc::new(LowRankPlan {
                a: a.to_owned(),
                b: b.to_owned(),
                rank,
                inputs,
                outputs,
                layout,
                scale: scale * self.adapter.weight,
                round: rounding(claim),
                diagonal: None,
            }),
            tensors: vec![a.to_owned(), b.to_owned()],
        }
    }

    fn onto_stack(&self, names: &Names<'_>, claim: &Claim) -> Result<Vec<PlannedEdit>> {
        let &[experts, rows, cols] = claim.weight.shape() else { return Ok(Vec::new()) };
        let factors = self.factors(experts)?;
        let (_, _, inputs, outputs) = factors;
        // PEFT reads the module's `is_transposed`; where the matrices are square only the family's row can say.
        let flagged = names.arch.experts.is_some_and(|experts| experts.is_transposed);
        let in_out = match ((rows, cols) == (outputs, inputs), (rows, cols) == (inputs, outputs)) {
            (true, true) => flagged,
            (true, false) => false,
            (false, true) => true,
            (false, false) => {
                return Err(mismatch(format!(
                    "the adapter's delta for one expert is [{outputs}, {inputs}], but `{}` is {:?}",
                    claim.weight.name(),
                    claim.weight.shape()
                ))
                .in_tensor(self.factors.1));
            }
        };
        Ok(vec![self.edit(claim, factors, Layout::Stack { experts, in_out })])
    }

    /// The parameter is stacked in the adapter's model, but on disk each expert has its own matrices.
    fn onto_each(
        &self,
        names: &Names<'_>,
        family: &Experts,
        prefix: &str,
        which: usize,
    ) -> Result<Option<Vec<PlannedEdit>>> {
        let weight = |expert: usize, projection: &str| {
            let named = |module| names.exact(&format!("{prefix}{module}.{expert}.{projection}.weight"));
            family.modules.iter().find_map(named)
        };
        let [gate, up, down] = family.each;
        let projections: &[&str] = if which == 0 { &[gate, up] } else { &[down] };
        let first = if which == 0 { gate } else { down };
        let experts = (0..).take_while(|&expert| weight(expert, first).is_some()).count();
        if experts == 0 {
            return Ok(None);
        }
        let factors = self.factors(experts)?;
        let (_, _, inputs, outputs) = factors;
        let mut edits = Vec::new();
        for expert in 0..experts {
            for (half, &projection) in projections.iter().enumerate() {
                let claim = weight(expert, projection).ok_or_else(|| {
                    mismatch(format!("expert {expert} has no `{projection}`")).in_tensor(self.factors.0)
                })?;
                let len = outputs / projections.len();
                if claim.weight.shape() != [len, inputs] || len * projections.len() != outputs {
                    return Err(mismatch(format!(
                        "the adapter's delta for one expert is [{outputs}, {inputs}], but `{}` is {:?}",
                        claim.weight.name(),
                        claim.weight.shape()
                    ))
                    .in_tensor(self.factors.1));
                }
                let outputs = half_of(family, half, len, projections.len());
                edits.push(self.edit(claim, factors, Layout::OneOfStack { expert, experts, outputs }));
            }
        }
        Ok(Some(edits))
    }
}

/// Where the gate (0) or the up projection (1) lies among the outputs of both.
fn half_of(family: &Experts, half: usize, len: usize, halves: usize) -> Stride {
    if family.interleaved && halves == 2 {
        Stride { start: half, step: 2, len }
    } else {
        Stride { start: half * len, step: 1, len }
    }
}

/// One expert's LoRA where the base stacks its experts.
fn into_stack(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    (stack, expert, leaf): (&str, usize, &str),
    (a, b): (&str, &str),
) -> Result<Option<Vec<PlannedEdit>>> {
    let Some(family) = names.arch.experts else { return Ok(None) };
    let Some(prefix) = prefix(&family, stack) else { return Ok(None) };
    let spellings = [family.each, ["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]];
    let Some(projection) = spellings.iter().find_map(|each| each.iter().position(|name| *name == leaf)) else {
        return Ok(None);
    };
    let Some(claim) = stacked(names, &family, prefix, projection / 2)? else { return Ok(None) };
    let &[experts, rows, cols] = claim.weight.shape() else { return Ok(None) };
    let ((rank_a, inputs), (outputs, rank_b)) =
        (matrix_shape(&adapter.tensors, a)?, matrix_shape(&adapter.tensors, b)?);
    let (rank, scale) = adapter.config.scaling(module)?;
    let (width, have) = if family.in_out { (cols, rows) } else { (rows, cols) };
    let halves = if projection < 2 { 2 } else { 1 };
    if expert >= experts || rank_a != rank || rank_b != rank || inputs != have || outputs * halves != width {
        return Err(mismatch(format!(
            "factors [{rank_a}, {inputs}] and [{outputs}, {rank_b}] of rank {rank} do not fit expert {expert} of `{}`, {:?}",
            claim.weight.name(),
            claim.weight.shape()
        ))
        .in_tensor(a));
    }
    let outputs_at = half_of(&family, projection % 2, outputs, halves);
    let layout = Layout::IntoStack { expert, width, outputs: outputs_at, in_out: family.in_out };
    let plan = LowRankPlan {
        a: a.to_owned(),
        b: b.to_owned(),
        rank,
        inputs,
        outputs,
        layout,
        scale: scale * adapter.weight,
        round: rounding(claim),
        diagonal: None,
    };
    let target = claim.weight.name().to_owned();
    Ok(Some(vec![PlannedEdit { target, plan: Arc::new(plan), tensors: vec![a.to_owned(), b.to_owned()] }]))
}
