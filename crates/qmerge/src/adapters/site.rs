//! Where the base holds a module's matrix, and how it lies there.
//!
//! Mostly it is a weight of the module's own name. GPT-2 stores it turned, torch's attention several in one. PEFT targets a stacked parameter of routed experts
//! by name (`target_parameters`) and wraps its module, once per parameter: the first parameter of the module is the innermost wrapper, whose tensors carry
//! the most `base_layer`s; older adapters have a module per expert. The family's row says how both relate to what is on disk. Source: PEFT 0.21,
//! `tuners/lora/layer.py` (`ParamWrapper`), `utils/transformers_weight_conversion.py`.

use std::ops::Range;
use std::sync::Arc;

use super::keys::{self, Role};
use super::plan::ChangePlan;
use super::{Adapter, Module, Names, On, Placed, Planned, PlannedEdit};
use crate::arch::{self, Experts};
use crate::edit::{Place, Spot, Stride};
use crate::error::{Error, Result, mismatch, unsupported};
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
    kind: Kind<'a>,
}

enum Kind<'a> {
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
        }
        Self::layer(adapter, names, module)
    }

    fn layer(adapter: &Adapter, names: &Names<'a>, module: &str) -> Result<Option<Self>> {
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
        let turned = claim.weight.shape().len() == 2 && is_conv1d(adapter, names, module, claim);
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
    fn of_parameter(names: &Names<'a>, module: &str, parameter: &str) -> Result<Option<Self>> {
        let name = format!("{module}.{parameter}");
        let stack = |claim: &'a Claim| Self::stack(names, name.clone(), claim);
        if let Some(claim) = names.find(&name)? {
            return Ok(stack(claim));
        }
        let Some(family) = names.arch.experts else { return Ok(None) };
        let Some(prefix) = prefix(&family, module) else { return Ok(None) };
        let which = usize::from(parameter == arch::DOWN);
        if let Some(claim) = stacked(names, &family, prefix, which)? {
            return Ok(stack(claim));
        }
        Self::each(names, name, &family, prefix, which)
    }

    fn stack(names: &Names<'a>, name: String, claim: &'a Claim) -> Option<Self> {
        let &[experts, rows, cols] = claim.weight.shape() else { return None };
        let turned = names.arch.experts.is_some_and(|experts| experts.in_out);
        let shape = if turned { (cols, rows) } else { (rows, cols) };
        Some(Self { claim, name, shape, bias: None, attention_output: false, kind: Kind::Stack { experts } })
    }

    /// The parameter is stacked in the adapter's model, but on disk each expert has its own matrices.
    fn each(names: &Names<'a>, name: String, family: &Experts, prefix: &str, which: usize) -> Result<Option<Self>> {
        let weight = |expert: usize, projection: &str| {
            let named = |module| names.exact(&format!("{prefix}{module}.{expert}.{projection}.weight"));
            family.modules.iter().find_map(named)
        };
        let [gate, up, down] = family.each;
        let (first, others): (&str, &[&str]) = if which == 0 { (gate, &[up]) } else { (down, &[]) };
        let mut weights = Vec::new();
        while let Some(claim) = weight(weights.len(), first) {
            let mut own = vec![claim];
            for projection in others {
                own.push(weight(weights.len(), projection).ok_or_else(|| {
                    mismatch(format!("expert {} of `{name}` has no `{projection}` in the base", weights.len()))
                })?);
            }
            weights.push(own);
        }
        let Some(claim) = weights.first().and_then(|own| own.first()).copied() else { return Ok(None) };
        let geometry = claim.weight.geometry();
        let shape = (geometry.rows * (1 + others.len()), geometry.cols);
        let kind = Kind::Each { weights, interleaved: family.interleaved };
        Ok(Some(Self { claim, name, shape, bias: None, attention_output: false, kind }))
    }

    /// One expert's module where the base stacks its experts.
    fn in_stack(names: &Names<'a>, module: &str, (stack, expert, leaf): (&str, usize, &str)) -> Result<Option<Self>> {
        let Some(family) = names.arch.experts else { return Ok(None) };
        let Some(prefix) = prefix(&family, stack) else { return Ok(None) };
        let spellings = [family.each, ["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]];
        let Some(projection) = spellings.iter().find_map(|each| each.iter().position(|name| *name == leaf)) else {
            return Ok(None);
        };
        let Some(claim) = stacked(names, &family, prefix, projection / 2)? else { return Ok(None) };
        let &[_, rows, cols] = claim.weight.shape() else { return Ok(None) };
        let (width, inputs) = if family.in_out { (cols, rows) } else { (rows, cols) };
        let half = (projection < 2).then_some(projection);
        let shape = (if half.is_some() { width / 2 } else { width }, inputs);
        let kind = Kind::InStack { expert, half, family };
        Ok(Some(Self { claim, name: module.to_owned(), shape, bias: None, attention_output: false, kind }))
    }

    pub(super) fn matrices(&self) -> usize {
        match &self.kind {
            Kind::Stack { experts } => *experts,
            Kind::Each { weights, .. } => weights.len(),
            Kind::Layer { .. } | Kind::InStack { .. } => 1,
        }
    }

    pub(super) fn is_expert(&self) -> bool {
        !matches!(self.kind, Kind::Layer { .. })
    }

    pub(super) fn is_stack(&self) -> bool {
        matches!(self.kind, Kind::Stack { .. } | Kind::Each { .. })
    }

    pub(super) fn is_parameter(&self) -> bool {
        matches!(self.kind, Kind::Layer { parameter: true, .. } | Kind::Stack { .. } | Kind::Each { .. })
    }

    pub(super) fn is_attention_input(&self) -> bool {
        matches!(self.kind, Kind::Layer { attention_input: true, .. })
    }

    /// Puts a change where the matrix is: an edit of each weight that holds a part of it.
    pub(super) fn place(&self, module: &Module<'_>, names: &Names<'_>, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let tensor = planned.tensors.first().cloned().unwrap_or_default();
        let (outputs, reach) = (planned.outputs, planned.change.reach());
        let edits = match &self.kind {
            _ if planned.on == On::Bias => self.on_bias(module, planned),
            Kind::Layer { target, .. } => self.on_layer(module, names, target, planned),
            Kind::Stack { experts } => self.on_stack(names, *experts, planned),
            Kind::Each { weights, interleaved } => self.on_each(weights, *interleaved, &planned),
            Kind::InStack { expert, half, family } => self.into_stack(family, *expert, *half, planned),
        };
        let edits = edits.map_err(|error| error.in_tensor(&tensor))?;
        if edits.iter().any(|edit| edit.plan.place.parts(reach, outputs)) {
            return Err(unsupported(format!("it mixes outputs of `{}`, which lie in several weights", module.path()))
                .in_tensor(&tensor));
        }
        Ok(edits)
    }

    fn on_bias(&self, module: &Module<'_>, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let path = module.path();
        let claim = self
            .bias
            .ok_or_else(|| unsupported(format!("it changes the bias of `{path}`, which the base has none of")))?;
        let Planned { outputs, change, tensors, .. } = planned;
        if claim.weight.geometry().elements() != outputs {
            return Err(mismatch(format!(
                "{outputs} biases, but `{}` has shape {:?}",
                claim.weight.name(),
                claim.weight.shape()
            )));
        }
        let plan = Placed { shape: None, ..Placed::whole(change, outputs, 1, false) };
        Ok(vec![PlannedEdit { target: claim.weight.name().to_owned(), plan, tensors, layer: None }])
    }

    fn on_layer(
        &self,
        module: &Module<'_>,
        names: &Names<'_>,
        target: &str,
        planned: Planned,
    ) -> Result<Vec<PlannedEdit>> {
        let Planned { on, outputs, inputs, change, tensors } = planned;
        let (adapter, path, shape) = (module.adapter(), module.path(), self.claim.weight.shape());
        let embedding = on == On::Embedding;
        let misfit = || self.misfit(path, if embedding { [inputs, outputs] } else { [outputs, inputs] });
        let transposed = if embedding {
            // Tokens may have been added; then the adapter brings all rows along.
            let fits = matches!(shape, [tokens, width] if *width == outputs && (*tokens == inputs || ships_base(adapter, path)));
            fits.then_some(true)
        } else {
            orientation(adapter, names, path, self.claim, (outputs, inputs))
        };
        let plan = Placed::whole(change, outputs, inputs, transposed.ok_or_else(misfit)?);
        let layer = (!embedding && module.depth == 0).then(|| path.to_owned());
        Ok(vec![PlannedEdit { target: target.to_owned(), plan, tensors, layer }])
    }

    fn on_stack(&self, names: &Names<'_>, experts: usize, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let &[_, rows, cols] = self.claim.weight.shape() else { return Ok(Vec::new()) };
        // PEFT reads the module's `is_transposed`; where the matrices are square only the family's row can say.
        let flagged = names.arch.experts.is_some_and(|experts| experts.is_transposed);
        let transposed = match ((rows, cols) == (outputs, inputs), (rows, cols) == (inputs, outputs)) {
            (true, true) => flagged,
            (true, false) => false,
            (false, true) => true,
            (false, false) => return Err(self.misfit_of_one([outputs, inputs], self.claim)),
        };
        let all = Stride::first(outputs);
        let spot = |e: usize| Spot { rows: e * rows..(e + 1) * rows, transposed, width: outputs, take: all, put: all };
        let plan = Placed {
            change,
            place: Place { spots: (0..experts).map(spot).collect() },
            matrices: 0..experts,
            shape: Some((experts * rows, cols)),
            part: None,
        };
        Ok(vec![self.edit(self.claim, plan, tensors)])
    }

    fn on_each(&self, weights: &[Vec<&Claim>], interleaved: bool, planned: &Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let mut edits = Vec::new();
        for (expert, parts) in weights.iter().enumerate() {
            for (part, claim) in parts.iter().enumerate() {
                let len = outputs / parts.len();
                if claim.weight.shape() != [len, *inputs] || len * parts.len() != *outputs {
                    return Err(self.misfit_of_one([*outputs, *inputs], claim));
                }
                let take = part_of(interleaved, part, len, parts.len());
                let spot = Spot { rows: 0..len, transposed: false, width: len, take, put: Stride::first(len) };
                let plan = placed(change, spot, expert..expert + 1, Some((len, *inputs)), None);
                edits.push(self.edit(claim, plan, tensors.clone()));
            }
        }
        Ok(edits)
    }

    fn into_stack(
        &self,
        family: &Experts,
        expert: usize,
        half: Option<usize>,
        planned: Planned,
    ) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let &[experts, rows, cols] = self.claim.weight.shape() else { return Ok(Vec::new()) };
        let (width, have) = if family.in_out { (cols, rows) } else { (rows, cols) };
        let halves = if half.is_some() { 2 } else { 1 };
        if expert >= experts || inputs != have || outputs * halves != width {
            return Err(mismatch(format!(
                "a delta of [{outputs}, {inputs}] does not fit expert {expert} of `{}`, {:?}",
                self.claim.weight.name(),
                self.claim.weight.shape()
            )));
        }
        let put = part_of(family.interleaved, half.unwrap_or(0), outputs, halves);
        let rows = expert * rows..(expert + 1) * rows;
        let spot = Spot { rows, transposed: family.in_out, width, take: Stride::first(outputs), put };
        // The stack's own shape was checked here.
        let plan = placed(&change, spot, 0..1, None, Some((expert, put.start)));
        Ok(vec![self.edit(self.claim, plan, tensors)])
    }

    fn edit(&self, claim: &Claim, plan: Placed, tensors: Vec<String>) -> PlannedEdit {
        PlannedEdit { target: claim.weight.name().to_owned(), plan, tensors, layer: None }
    }

    fn misfit(&self, path: &str, delta: [usize; 2]) -> Error {
        let (name, shape) = (self.claim.weight.name(), self.claim.weight.shape());
        mismatch(format!("the adapter's delta for `{path}` is {delta:?}, but `{name}` is {shape:?}"))
            .with_hint("this adapter was trained on another base")
    }

    fn misfit_of_one(&self, delta: [usize; 2], claim: &Claim) -> Error {
        let (name, shape) = (claim.weight.name(), claim.weight.shape());
        mismatch(format!("the adapter's delta for one expert is {delta:?}, but `{name}` is {shape:?}"))
    }
}

fn placed(
    change: &Arc<dyn ChangePlan>,
    spot: Spot,
    matrices: Range<usize>,
    shape: Option<(usize, usize)>,
    part: Option<(usize, usize)>,
) -> Placed {
    Placed { change: Arc::clone(change), place: Place { spots: vec![spot] }, matrices, shape, part }
}

/// True if the adapter brings the base of this module along (a targeted or resized embedding).
fn ships_base(adapter: &Adapter, module: &str) -> bool {
    adapter.tensors.entries.iter().any(|entry| {
        let key = keys::parse(&entry.name);
        key.module == module && key.role == Role::Whole("weight".into())
    })
}

/// True where a plain weight is stored (in, out), as a family's row or the adapter says. Quantized weights are always stored (out, in).
fn is_conv1d(adapter: &Adapter, names: &Names<'_>, module: &str, claim: &Claim) -> bool {
    claim.weight.is_plain() && (arch::leaf_in(module, names.arch.transposed) || adapter.config.fan_in_fan_out)
}

/// The two dimensions of a stored matrix, with everything behind the first taken together: a convolution's kernel.
fn flattened(claim: &Claim) -> Option<(usize, usize)> {
    match claim.weight.shape() {
        [rows, rest @ ..] if !rest.is_empty() => Some((*rows, rest.iter().product())),
        _ => None,
    }
}

/// True if a matrix (out, in) is stored as its transpose; `None` if it does not fit.
fn orientation(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    claim: &Claim,
    (outputs, inputs): (usize, usize),
) -> Option<bool> {
    let shape = claim.weight.shape();
    let (rows, cols) = flattened(claim)?;
    let straight = (rows, cols) == (outputs, inputs);
    let turned = shape.len() == 2 && (rows, cols) == (inputs, outputs);
    // Of a square matrix the shape does not tell, and the adapter's word alone is not enough.
    let conv1d =
        is_conv1d(adapter, names, module, claim) && !(straight && !arch::leaf_in(module, names.arch.transposed));
    match (straight, turned) {
        (_, true) if conv1d => Some(true),
        (true, _) => Some(false),
        // A head that grows with the vocabulary is checked against the tensor that replaces it.
        _ if names.is_head(module) && cols == inputs && ships_base(adapter, module) => Some(false),
        _ => None,
    }
}

/// Where the gate (0) or the up projection (1) lies among the outputs of both.
fn part_of(interleaved: bool, half: usize, len: usize, halves: usize) -> Stride {
    if interleaved && halves == 2 {
        Stride { start: half, step: 2, len }
    } else {
        Stride { start: half * len, step: 1, len }
    }
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
