//! What a base was quantized from, weight by weight, as the base has it.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::sync::Arc;

use super::quantized::is_transposed;
use super::{Inputs, Original};
use crate::adapters::Names;
use crate::arch::gguf::View;
use crate::error::{Result, mismatch, unsupported, usage};
use crate::formats::{self, Claim, Woven};

/// What an original is that fits.
pub(crate) const ORIGINAL: &str = "--original names the 16-bit checkpoint that this base was quantized from";

/// The weight of that name in what the base was quantized from.
pub(super) fn find(inputs: &Inputs, names: &Names<'_>, name: &str, from: &Claim) -> Result<Claim> {
    let Some(original) = &inputs.original else {
        return Err(usage("`--rounding original` needs the checkpoint that the base was quantized from")
            .with_hint("name it with --original"));
    };
    let unfit =
        |problem: String| mismatch(problem).in_file(&original.checkpoint.path).in_tensor(name).with_hint(ORIGINAL);
    let claim = original.weight(name).ok_or_else(|| unfit("is missing in the original".into()))?;
    let claim = &in_order_of(original, names, claim, from).unwrap_or_else(|| claim.clone());
    if claim.weight.shape() != from.weight.shape() {
        let (have, want) = (claim.weight.shape(), from.weight.shape());
        return Err(unfit(format!("shape {have:?} in the original, {want:?} in the base")));
    }
    let [own, other] = [&from.weight, &claim.weight].map(|weight| is_transposed(names, name, weight.as_ref()));
    if own != other {
        return Err(unsupported(format!(
            "its rows are columns of the base, which is stored as {}",
            from.weight.format()
        ))
        .in_file(&original.checkpoint.path)
        .in_tensor(name)
        .with_hint("take another method: --rounding names it"));
    }
    let geometry = from.weight.geometry();
    let mut claim = claim.clone();
    if (claim.weight.geometry().rows, claim.weight.geometry().cols) != (geometry.rows, geometry.cols) {
        claim.weight = claim
            .weight
            .reshaped(geometry.rows, geometry.cols)
            .ok_or_else(|| unfit("its rows cannot be cut as the base's are".into()))?;
    }
    Ok(claim)
}

/// A stack of the original as the base has it, where inputs are rows in one of them alone: plain stacks of gpt-oss have them so, its codes have outputs.
fn in_order_of(original: &Original, names: &Names<'_>, claim: &Claim, from: &Claim) -> Option<Claim> {
    let (&[_, inputs, outputs], &[_, rows, cols]) = (claim.weight.shape(), from.weight.shape()) else { return None };
    let config = original.checkpoint.config.as_ref();
    let weights = &original.inventory.weights;
    let experts = formats::experts_of(formats::arch_of(names.model_type(), config, weights), config, weights);
    let own = claim.weight.has_family_order() && experts.is_some_and(|experts| experts.in_out);
    let of_base = names.is_turned_stack(from.weight.as_ref());
    if own == of_base || (rows, cols) != (outputs, inputs) {
        return None;
    }
    let view = View::of_turned_stack(claim.weight.name(), from.weight.shape())?;
    let weave = view.weave.clone()?;
    let weight = Woven::new(vec![Arc::clone(&claim.weight)], view, weave);
    Some(Claim { weight: Arc::new(weight), ..claim.clone() })
}
