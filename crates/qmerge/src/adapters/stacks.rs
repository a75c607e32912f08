//! Stacked parameters of routed experts, as PEFT targets them by name, and where the matrices of a stack lie on disk.
//!
//! In memory transformers 5 has gate and up of all experts in one parameter, and down in another. On disk they are that too, or each expert has its own.

use std::collections::BTreeSet;

use super::Names;
use super::place::part_of;
use super::site::{Kind, Site, one_expert, prefix};
use crate::arch::{Experts, SWITCH};
use crate::edit::{Spot, Stride};
use crate::error::Result;
use crate::formats::Claim;

/// What mlx_lm calls the projections of experts, in every family.
pub(super) const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// A stacked parameter.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// Path of the module that has it ("model.layers.3.mlp.experts"), as the model in memory calls it.
    pub(crate) module: String,
    /// Its name there.
    pub(crate) parameter: &'static str,
    /// Outputs and inputs of one matrix.
    pub(crate) shape: (usize, usize),
    /// The weights that hold the outputs of a matrix, by expert.
    pub(crate) experts: Vec<Vec<Piece<'a>>>,
    /// PEFT takes inputs for outputs: A has a column for each output, and B a row for each input.
    pub(crate) is_mistaken: bool,
}

/// Some outputs of a matrix, in one weight.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) claim: &'a Claim,
    pub(crate) spot: Spot,
    /// The weight is a stack itself.
    pub(crate) is_stacked: bool,
}

impl<'a> Stack<'a> {
    /// All of a model, in no order. Of a family that is not known, an expert that has matrices of its own on disk has them in memory too, unless an adapter says
    /// that they are stacked there.
    pub(crate) fn all(names: &Names<'a>, stacked: bool) -> Result<Vec<Self>> {
        let Some(family) = names.experts else { return Ok(Vec::new()) };
        let mut modules: BTreeSet<String> = BTreeSet::new();
        for claim in names.weights {
            let name = claim.weight.name();
            let of_stack = || {
                let is_stack = claim.weight.shape().len() == 3;
                let module = family.stacked.iter().find_map(|own| name.strip_suffix(own)?.strip_suffix('.'));
                module.filter(|_| is_stack)
            };
            let of_each = || {
                let (stack, _, leaf) = one_expert(name.strip_suffix(".weight")?)?;
                ((names.is_known() || stacked) && family.each.contains(&leaf)).then_some(stack)
            };
            if let Some(module) = of_stack().or_else(of_each)
                && let Some(before) = prefix(&family, module)
            {
                modules.insert(in_memory(names, &family, before, module));
            }
        }
        let mut found = Vec::new();
        for module in modules {
            for parameter in family.parameters() {
                found.extend(Self::find(names, &module, parameter)?);
            }
        }
        Ok(found)
    }

    /// The one of a name in memory; none if the model has no such experts.
    pub(crate) fn find(names: &Names<'a>, module: &str, parameter: &'static str) -> Result<Option<Self>> {
        let Some(family) = names.experts else { return Ok(None) };
        let Some(site) = Site::of_parameter(names, module, parameter)? else { return Ok(None) };
        // Any number of matrices without a value takes no byte of a file.
        if site.claim.weight.geometry().elements() == 0 {
            return Ok(None);
        }
        let experts: Vec<Vec<Piece<'a>>> = match &site.kind {
            Kind::Stack { experts } => {
                let is_turned = names.is_turned_stack(site.claim.weight.as_ref());
                (0..*experts).map(|number| vec![Piece::of_stack(&site, is_turned, number)]).collect()
            }
            Kind::Each { weights, interleaved } => {
                let piece = |own: &[&'a Claim], part| Piece::of_one(&site, own, part, *interleaved);
                weights.iter().map(|own| (0..own.len()).filter_map(|part| piece(own, part)).collect()).collect()
            }
            _ => return Ok(None),
        };
        Ok(Some(Self {
            module: module.to_owned(),
            parameter,
            shape: site.shape,
            experts,
            is_mistaken: family.is_mistaken,
        }))
    }

    /// The stacks that mlx_lm writes, one for each projection, in no order.
    pub(crate) fn of_mlx(names: &Names<'a>) -> Vec<Self> {
        let one = |claim: &'a Claim| {
            let (path, parameter) = claim.weight.name().strip_suffix(".weight")?.rsplit_once('.')?;
            let parameter = PROJECTIONS.iter().copied().find(|own| *own == parameter)?;
            let (&[experts, outputs, inputs], true) = (claim.weight.shape(), path.ends_with(SWITCH)) else {
                return None;
            };
            if outputs * inputs == 0 {
                return None;
            }
            let all = Stride::first(outputs);
            let rows = |number: usize| number * outputs..(number + 1) * outputs;
            let spot = |number| Spot { rows: rows(number), transposed: false, width: outputs, take: all, put: all };
            let piece = |number| vec![Piece { claim, spot: spot(number), is_stacked: true }];
            Some(Self {
                module: path.to_owned(),
                parameter,
                shape: (outputs, inputs),
                experts: (0..experts).map(piece).collect(),
                is_mistaken: false,
            })
        };
        names.weights.iter().filter_map(one).collect()
    }

    /// The same projection where each expert has its own matrix; none where they lie in another way.
    pub(crate) fn each(names: &Names<'a>, of_mlx: &Stack<'_>) -> Option<Self> {
        let site = Site::of_switch(names, &of_mlx.path()).ok().flatten()?;
        let Kind::Each { weights, interleaved } = &site.kind else { return None };
        let piece = |own: &Vec<&'a Claim>| Piece::of_one(&site, own, 0, *interleaved).into_iter().collect();
        let experts = weights.iter().map(piece).collect();
        let Stack { module, parameter, .. } = of_mlx;
        Some(Self { module: module.clone(), parameter, shape: site.shape, experts, is_mistaken: false })
    }

    /// Its path.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.module, self.parameter)
    }
}

impl<'a> Piece<'a> {
    /// A matrix of a stack, whose rows are its inputs where it is turned.
    fn of_stack(site: &Site<'a>, transposed: bool, number: usize) -> Self {
        let (outputs, inputs) = site.shape;
        let rows = if transposed { inputs } else { outputs };
        let all = Stride::first(outputs);
        let spot = Spot { rows: number * rows..(number + 1) * rows, transposed, width: outputs, take: all, put: all };
        Self { claim: site.claim, spot, is_stacked: true }
    }

    /// A part of an expert's matrix, which is a weight.
    fn of_one(site: &Site<'a>, parts: &[&'a Claim], part: usize, interleaved: bool) -> Option<Self> {
        let claim = *parts.get(part)?;
        let (outputs, inputs) = site.shape;
        let len = outputs / parts.len().max(1);
        let transposed = claim.weight.is_transposed();
        let rows = 0..if transposed { inputs } else { len };
        let take = part_of(interleaved, part, len, parts.len());
        Some(Self {
            claim,
            spot: Spot { rows, transposed, width: len, take, put: Stride::first(len) },
            is_stacked: false,
        })
    }
}

/// The path of the module in memory.
fn in_memory(names: &Names<'_>, family: &Experts, before: &str, module: &str) -> String {
    match family.modules.first().filter(|_| names.is_known()) {
        Some(current) => names.in_memory(&format!("{before}{current}")),
        None => module.to_owned(),
    }
}

/// The path in memory of the module that routes to the experts, by its path on disk; none of another module.
pub(crate) fn router(names: &Names<'_>, module: &str) -> Option<String> {
    let family = names.experts.filter(|_| names.is_known())?;
    let current = family.modules.first()?.strip_suffix(".experts")?;
    family.modules.iter().filter_map(|path| path.strip_suffix(".experts")).find_map(|block| {
        let before = ["gate", "router", "router.layer"].iter().find_map(|leaf| {
            let before = module.strip_suffix(leaf)?.strip_suffix('.')?.strip_suffix(block)?;
            (before.is_empty() || before.ends_with('.')).then_some(before)
        })?;
        Some(names.in_memory(&format!("{before}{current}.{}", family.router)))
    })
}
