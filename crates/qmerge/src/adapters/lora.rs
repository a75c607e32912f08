//! LoRA as PEFT writes it: factors per module, and whatever came along with them.
//!
//! Tensors are grouped by module; each group becomes one edit of the weight it targets. Scaling is `alpha / r`, or
//! `alpha / √r` with rsLoRA, after rank and alpha patterns. Source: PEFT 0.21, `tuners/lora/{model,layer,variants}.py`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dora::DoraPlan;
use super::keys::{self, Role};
use super::low_rank::{Diagonal, Layout, LowRankPlan, matrix_shape};
use super::{Adapter, Changes, EditPlan, Method, Names, PlannedEdit, ReadOptions, experts, read_floats};
use super::{refused, tokens, whole};
use crate::arch;
use crate::dtype::Dtype;
use crate::edit::{Edit, Vector};
use crate::error::{Result, mismatch, unsupported};
use crate::formats::Claim;
use crate::open::Checkpoint;

/// LoRA and its variants.
pub(super) struct Lora;

/// The tensors of one adapted layer.
#[derive(Default)]
struct Group {
    a: Option<String>,
    b: Option<String>,
    embedding_a: Option<String>,
    embedding_b: Option<String>,
    bias: Option<String>,
    magnitude: Option<String>,
}

impl Method for Lora {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn read(&self, adapter: &Adapter, names: &Names<'_>, options: &ReadOptions) -> Result<Changes> {
        refused::lora_variants(&adapter.config, options).map_err(|error| error.in_file(&adapter.config.path))?;
        let mut changes = Changes::default();
        let mut groups: BTreeMap<(String, usize), Group> = BTreeMap::new();
        for entry in &adapter.tensors.entries {
            let key = keys::parse(&entry.name);
            let name = entry.name.clone();
            let slot = |group: fn(&mut Group) -> &mut Option<String>, groups: &mut BTreeMap<_, Group>| {
                let before = group(groups.entry((key.module.clone(), key.depth)).or_default()).replace(name.clone());
                match before {
                    Some(before) => Err(mismatch(format!("stands for the same factor as `{before}`")).in_tensor(&name)),
                    None => Ok(()),
                }
            };
            match &key.role {
                Role::A => slot(|group| &mut group.a, &mut groups)?,
                Role::B => slot(|group| &mut group.b, &mut groups)?,
                Role::BiasB => slot(|group| &mut group.bias, &mut groups)?,
                Role::EmbeddingA => slot(|group| &mut group.embedding_a, &mut groups)?,
                Role::EmbeddingB => slot(|group| &mut group.embedding_b, &mut groups)?,
                Role::Magnitude => slot(|group| &mut group.magnitude, &mut groups)?,
                Role::Tokens => {
                    let indices = adapter.config.json.get("trainable_token_indices");
                    changes.edits.push(tokens::plan(adapter, names, &name, &key.module, indices)?);
                }
                Role::TrainingOnly => changes.ignored.push((name, "used in training only")),
                Role::Original => changes.ignored.push((name, "the untrained original of a module trained whole")),
                Role::Whole(parameter) => whole::read(adapter, names, &key, parameter, entry, &mut changes)?,
            }
        }
        for ((module, depth), group) in &groups {
            let wrappers = groups.range((module.clone(), 0)..).take_while(|((path, _), _)| path == module).count();
            self.layer(adapter, names, options, (module, *depth, wrappers), group, &mut changes)?;
        }
        Ok(changes)
    }
}

impl Lora {
    /// Plans one adapted layer. A group that matches no weight is left to the accounting.
    fn layer(
        &self,
        adapter: &Adapter,
        names: &Names<'_>,
        options: &ReadOptions,
        (module, depth, wrappers): (&str, usize, usize),
        group: &Group,
        changes: &mut Changes,
    ) -> Result<()> {
        let (a, b, embedding) = match (&group.a, &group.b, &group.embedding_a, &group.embedding_b) {
            (Some(a), Some(b), None, None) => (a, b, false),
            (None, None, Some(a), Some(b)) => (a, b, true),
            (None, None, None, None) => {
                let orphan = group.magnitude.as_ref().or(group.bias.as_ref()).map_or("", String::as_str);
                return Err(mismatch(format!("belongs to `{module}`, which has no A and B factors")).in_tensor(orphan));
            }
            (a, b, ea, eb) => {
                let present = a.iter().chain(b).chain(ea).chain(eb).next().map_or("", String::as_str);
                let other = if present.contains("_A") { "B" } else { "A" };
                return Err(mismatch(format!("its partner, the {other} factor of `{module}`, is missing"))
                    .in_tensor(present)
                    .with_hint("the adapter file is incomplete"));
            }
        };
        // Experts and bare parameters first: their wrappers carry the module's name, not the parameter's.
        if let Some(edits) = experts::plan(adapter, names, module, (depth, wrappers), (a, b))? {
            changes.edits.extend(edits);
            return Ok(());
        }
        let (target, mha) = match names.find(&format!("{module}.in_proj_weight"))? {
            Some(claim) => (Some(claim), true),
            None => (names.find(&format!("{module}.weight"))?, false),
        };
        // An embedding that is tied to another tensor is not stored; what edits it parts the two.
        let tied = if target.is_none() { names.tied_to(module) } else { None };
        let Some(claim) = target.or(tied.as_ref().map(|(_, claim)| *claim)) else { return Ok(()) };
        let out_proj =
            module.strip_suffix(".out_proj").is_some_and(|mha| names.exact(&format!("{mha}.in_proj_weight")).is_some());
        let shape = claim.weight.shape();
        let sixteen_bit =
            Some(claim.weight.value_dtype()).filter(|dtype| claim.weight.is_plain() && *dtype != Dtype::F32);
        let parameter = format!("{module}.weight");
        let is_parameter = adapter.config.targets_parameter(&parameter);
        let pattern_name = if is_parameter { parameter } else { module.to_owned() };
        let (rank, scale) = adapter.config.scaling(&pattern_name)?;
        let ((rank_a, inputs), (outputs, rank_b)) =
            (matrix_shape(&adapter.tensors, a)?, matrix_shape(&adapter.tensors, b)?);
        let diagonal = diagonal(adapter, module)?;
        let spread = |stored: usize, blocks: usize, rows: usize, tensor: &str| {
            let wide = stored.checked_mul(blocks).filter(|_| rows.is_multiple_of(blocks));
            wide.ok_or_else(|| {
                mismatch(format!("{rows} rows cannot be cut into the {blocks} equal blocks of `use_bdlora`"))
                    .in_tensor(tensor)
                    .with_hint("adapter_config.json and the weights are of different adapters")
            })
        };
        let (inputs, rank_b) = match diagonal {
            Some(Diagonal::A(blocks)) => (spread(inputs, blocks, rank_a, a)?, rank_b),
            Some(Diagonal::B(blocks)) => (inputs, spread(rank_b, blocks, outputs, b)?),
            None => (inputs, rank_b),
        };
        if rank_a != rank {
            return Err(mismatch(format!("rank {rank_a}, but the configuration says {rank} for `{module}`"))
                .in_tensor(a)
                .with_hint(
                    "adapter_config.json and the weights are of different adapters, or a rank_pattern is missing",
                ));
        }
        if rank_b != rank {
            let grouped = shape.len() > 2 && rank_b > 0 && rank % rank_b == 0 && rank_b < rank;
            return Err(if grouped {
                unsupported(format!(
                    "`{}` is a grouped convolution; its adapter sees all channels, so no grouped weight can hold it",
                    claim.weight.name()
                ))
            } else {
                mismatch(format!("rank {rank_b}, but A has rank {rank}"))
            }
            .in_tensor(b));
        }
        let layout = orientation(adapter, names, module, embedding, claim, (outputs, inputs))
            .ok_or_else(|| misfit(claim, module, (outputs, inputs), embedding).in_tensor(b))?;
        if embedding && shape.first() != Some(&inputs) && !ships_base(adapter, module) {
            return Err(misfit(claim, module, (outputs, inputs), embedding).in_tensor(a));
        }
        let mica = adapter.config.init.as_deref() == Some("mica");
        let rounds_first = embedding || is_parameter || mha || mica || diagonal.is_some();
        let low_rank = LowRankPlan {
            a: a.clone(),
            b: b.clone(),
            rank,
            inputs,
            outputs,
            layout,
            // PEFT adds the output projection's delta twice, in its merge and in its own forward pass.
            scale: if out_proj { 2.0 * scale } else { scale } * adapter.weight,
            round: sixteen_bit.filter(|_| rounds_first && !adapter.config.use_dora),
            diagonal,
        };
        let mut tensors = vec![a.clone(), b.clone()];
        let target = tied.map_or_else(|| claim.weight.name().to_owned(), |(name, _)| name);
        let plan: Arc<dyn EditPlan> = match &group.magnitude {
            Some(magnitude) => {
                tensors.push(magnitude.clone());
                let have: u64 = adapter.tensors.get(magnitude).map_or(0, |entry| entry.elements());
                if have != outputs as u64 {
                    return Err(mismatch(format!("{have} magnitudes, but `{module}` has {outputs} outputs"))
                        .in_tensor(magnitude));
                }
                let outputs_are_rows = low_rank.layout == Layout::OutIn;
                Arc::new(DoraPlan { low_rank, magnitude: magnitude.clone(), outputs_are_rows })
            }
            None if adapter.config.use_dora => {
                return Err(mismatch(format!("`use_dora` is set, but `{module}` has no magnitude")).in_tensor(a));
            }
            None => Arc::new(low_rank),
        };
        changes.edits.push(PlannedEdit { target, plan, tensors });
        if let Some(bias) = &group.bias {
            changes.edits.push(bias_edit(adapter, names, options, module, claim, (bias, outputs, scale))?);
        }
        Ok(())
    }
}

/// True if the adapter brings the base of this module along (a targeted or resized embedding).
fn ships_base(adapter: &Adapter, module: &str) -> bool {
    adapter.tensors.entries.iter().any(|entry| {
        let key = keys::parse(&entry.name);
        key.module == module && key.role == Role::Whole("weight".into())
    })
}

/// How `B·A` (out, in) lies in the stored weight; `None` if it does not fit.
fn orientation(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    embedding: bool,
    claim: &Claim,
    (outputs, inputs): (usize, usize),
) -> Option<Layout> {
    let shape = claim.weight.shape();
    if embedding {
        return matches!(shape, [_, width] if *width == outputs).then_some(Layout::InOut);
    }
    let (rows, cols) = match shape {
        [rows, rest @ ..] if !rest.is_empty() => (*rows, rest.iter().product::<usize>()),
        _ => return None,
    };
    let straight = (rows, cols) == (outputs, inputs);
    let turned = shape.len() == 2 && (rows, cols) == (inputs, outputs);
    // Quantized weights are always stored (out, in); plain ones may be Conv1D, which a family's row or the adapter says.
    let conv1d = claim.weight.is_plain()
        && (arch::leaf_in(module, names.arch.transposed) || adapter.config.fan_in_fan_out && !straight);
    // A format may store the layer's inputs as rows; its shape is the model's all the same.
    if claim.weight.is_transposed() {
        return straight.then_some(Layout::InOut);
    }
    match (straight, turned) {
        (_, true) if conv1d => Some(Layout::InOut),
        (true, _) => Some(Layout::OutIn),
        // A head that grows with the vocabulary is checked against the tensor that replaces it.
        _ if names.is_head(module) && cols == inputs && ships_base(adapter, module) => Some(Layout::OutIn),
        _ => None,
    }
}

fn misfit(claim: &Claim, module: &str, (outputs, inputs): (usize, usize), embedding: bool) -> crate::error::Error {
    let delta = if embedding { [inputs, outputs] } else { [outputs, inputs] };
    mismatch(format!(
        "the adapter's delta for `{module}` is {delta:?}, but `{}` is {:?}",
        claim.weight.name(),
        claim.weight.shape()
    ))
    .with_hint("this adapter was trained on another base")
}

/// Which factor of a BD-LoRA is block-diagonal: decided by substrings of the module path.
fn diagonal(adapter: &Adapter, module: &str) -> Result<Option<Diagonal>> {
    let Some(config) = adapter.config.json.get("use_bdlora").filter(|value| value.is_object()) else {
        return Ok(None);
    };
    let listed = |key: &str| {
        config
            .get(key)
            .and_then(|list| list.as_array())
            .is_some_and(|list| list.iter().filter_map(|item| item.as_str()).any(|item| module.contains(item)))
    };
    let blocks = config.get("nblocks").and_then(|n| n.as_u64()).unwrap_or(1).clamp(1, 1 << 20) as usize;
    match (listed("target_modules_bd_a"), listed("target_modules_bd_b")) {
        (true, true) => {
            Err(mismatch(format!("`use_bdlora` lists `{module}` for both factors")).in_file(&adapter.config.path))
        }
        (true, false) => Ok(Some(Diagonal::A(blocks))),
        (false, true) => Ok(Some(Diagonal::B(blocks))),
        (false, false) => Ok(None),
    }
}

fn bias_edit(
    adapter: &Adapter,
    names: &Names<'_>,
    options: &ReadOptions,
    module: &str,
    claim: &Claim,
    (bias, outputs, scale): (&str, usize, f64),
) -> Result<PlannedEdit> {
    let name = claim.weight.name().strip_suffix("weight").map(|stem| format!("{stem}bias")).unwrap_or_default();
    let target = names.exact(&name).ok_or_else(|| {
        unsupported(format!("`lora_bias` adds to the bias of `{module}`, and the base layer has none")).in_tensor(bias)
    })?;
    let have = adapter.tensors.get(bias).map_or(0, |entry| entry.elements());
    if have != outputs as u64 || target.weight.geometry().elements() != outputs {
        return Err(
            mismatch(format!("{have} biases, but `{name}` has shape {:?}", target.weight.shape())).in_tensor(bias)
        );
    }
    // PEFT forgets the scaling on bitsandbytes layers.
    let forgets = options.peft_bugs && !claim.weight.is_plain();
    let scale = if forgets { 1.0 } else { scale } * adapter.weight;
    Ok(PlannedEdit {
        target: name,
        plan: Arc::new(BiasPlan { tensor: bias.to_owned(), outputs, scale, widens: forgets }),
        tensors: vec![bias.to_owned()],
    })
}

#[derive(Clone, Debug)]
struct BiasPlan {
    tensor: String,
    outputs: usize,
    scale: f64,
    /// PEFT stores the sum as f32 on bitsandbytes layers.
    widens: bool,
}

impl EditPlan for BiasPlan {
    fn load(&self, tensors: &Checkpoint) -> Result<Edit> {
        Ok(Edit::Add(Box::new(Vector { values: read_floats(tensors, &self.tensor)?, scale: self.scale as f32 })))
    }

    fn memory(&self) -> u64 {
        4 * self.outputs as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn stores_as(&self) -> Option<Dtype> {
        self.widens.then_some(Dtype::F32)
    }
}
