//! Where the products of an adapter lie in a GGUF file: each at a tensor, those of experts one behind the other at their stack.

use std::collections::BTreeMap;
use std::ops::Range;

use super::gguf_lora::Pair;
use crate::arch::gguf::{File, Piece, View, towers};
use crate::error::{Result, mismatch};
use crate::linalg::Factors;
use crate::open::gguf::expert;
use crate::plan::Inputs;

/// Where a product lies: a weight's own, or those of all experts of a stack, whose factors lie one behind the other.
pub(super) struct InFile {
    pub(super) view: View,
    pub(super) experts: Option<usize>,
}

/// Sizes of the experts of a stack in the base: rows, inputs, and their numbers.
struct Sizes {
    view: View,
    rows: usize,
    cols: usize,
    numbers: Vec<usize>,
}

/// Adds an expert that lies in the base as that view says.
fn count(sizes: &mut BTreeMap<String, Sizes>, view: &View, (rows, cols): (usize, usize), name: &str) -> Result<()> {
    let Some((stack, number)) = expert(&view.stored) else { return Ok(()) };
    let own = sizes.entry(stack.clone()).or_insert_with(|| {
        let view = View { stored: stack, weave: None, ..view.clone() };
        Sizes { view, rows, cols, numbers: Vec::new() }
    });
    if (own.rows, own.cols) != (rows, cols) {
        return Err(mismatch(format!("shape [{rows}, {cols}], but other experts are [{}, {}]", own.rows, own.cols))
            .in_tensor(name));
    }
    own.numbers.push(number);
    Ok(())
}

/// Products of experts become those of their stacks: of one rank, with zeros for an expert that the adapter does not change. `changed` are the weights that have products.
pub(super) fn stacked(
    inputs: &Inputs,
    changed: Vec<View>,
    pairs: Vec<(View, Pair)>,
    file: &File<'_>,
) -> Result<Vec<(InFile, Pair)>> {
    let mut all: Vec<(InFile, Pair)> = Vec::new();
    let mut stacks: BTreeMap<String, BTreeMap<usize, Pair>> = BTreeMap::new();
    for (view, pair) in pairs {
        match expert(&view.stored) {
            Some((stack, number)) => drop(stacks.entry(stack).or_default().insert(number, pair)),
            None => all.push((InFile { view, experts: None }, pair)),
        }
    }
    if stacks.is_empty() {
        return Ok(all);
    }
    let mut sizes = BTreeMap::new();
    for claim in &inputs.inventory.weights {
        let &[rows, cols] = claim.weight.shape() else { continue };
        let Some(view) = file.stored(&towers::alone(claim.weight.name()), rows)? else { continue };
        count(&mut sizes, &view, (rows, cols), claim.weight.name())?;
    }
    for (view, weave) in changed.iter().filter_map(|view| Some((view, view.weave.as_ref()?))) {
        for piece in weave.pieces() {
            let &[rows, cols] = piece.shape.as_slice() else { continue };
            count(&mut sizes, &View { stored: piece.stored.clone(), ..view.clone() }, (rows, cols), &view.name)?;
        }
    }
    for (stack, mut experts) in stacks {
        let Some(Sizes { view, rows, cols, mut numbers }) = sizes.remove(&stack) else { continue };
        numbers.sort_unstable();
        let count = numbers.len();
        if let Some((missing, _)) = numbers.iter().enumerate().find(|(at, number)| at != *number) {
            return Err(mismatch(format!(
                "the {count} experts of `{stack}` in the base are not numbered from 0 on: no {missing}, or one twice"
            )));
        }
        let rank = experts.values().map(|pair| pair.factors.rank).max().unwrap_or(1);
        // A factor is alpha / rank, whose rank is that of all.
        let alpha_of = |pair: &Pair| pair.alpha / pair.factors.rank.max(1) as f64 * rank as f64;
        let alpha = experts.values().map(alpha_of).find(|alpha| *alpha != 0.0).unwrap_or(rank as f64);
        let mut factors = Factors { rank, left: Vec::new(), right: Vec::new() };
        for number in 0..count {
            let mut left = vec![0.0; rows * rank];
            let mut right = vec![0.0; rank * cols];
            if let Some(pair) = experts.remove(&number) {
                let (more, own) = (alpha_of(&pair) / alpha, pair.factors.rank);
                for (to, from) in left.chunks_exact_mut(rank).zip(pair.factors.left.chunks_exact(own.max(1))) {
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = times(*x, more));
                }
                right.iter_mut().zip(pair.factors.right).for_each(|(to, x)| *to = x);
            }
            factors.left.extend(left);
            factors.right.extend(right);
        }
        all.push((InFile { view, experts: Some(count) }, Pair { factors, alpha, energy: 0.0, kept: 1.0 }));
    }
    Ok(all)
}

/// A product of a matrix with these rows of a weight that lies in several tensors is one for each: they share the inputs' factor, and have their rows of the other.
pub(super) fn dealt_out(view: &View, rows: &Range<usize>, pair: Pair) -> Vec<(View, Pair)> {
    let Some(weave) = view.weave.clone() else { return vec![(view.clone(), pair)] };
    let rank = pair.factors.rank;
    let own = |(number, piece): (usize, &Piece)| {
        let own = weave.rows_of(number, rows);
        if own.is_empty() {
            return None;
        }
        let mut left = vec![0.0; own.len() * rank];
        let at = |row: usize| row * rank..(row + 1) * rank;
        weave.each_row(number, &own, rows, |to, from| {
            if let (Some(to), Some(from)) = (left.get_mut(at(to)), pair.factors.left.get(at(from))) {
                to.copy_from_slice(from);
            }
        });
        let factors = Factors { rank, left, right: pair.factors.right.clone() };
        Some((View { stored: piece.stored.clone(), weave: None, ..view.clone() }, Pair { factors, ..pair }))
    };
    weave.pieces().iter().enumerate().filter_map(own).collect()
}

/// As a file's alpha is rounded to f32, what is left of a ratio of 1 is that.
pub(super) fn times(x: f32, more: f64) -> f32 {
    if more as f32 == 1.0 { x } else { (f64::from(x) * more) as f32 }
}
