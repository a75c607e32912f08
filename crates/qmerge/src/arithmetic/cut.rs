//! The best factors for what an adapter adds to a weight: from its own factors where it is a product of few, else from the matrix.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::convert::ConvertOptions;
use super::new_adapter::finite;
use super::stacked::put_rows;
use super::svd::{Best, Spectrum, best};
use crate::adapters::Stack;
use crate::edit;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result};
use crate::formats::Order;
use crate::linalg::{Factors, transposed};
use crate::plan::{Inputs, Recode};
use crate::round::{matrix_name, seed_of};

/// The best product of the wanted rank for what an adapter adds to a weight.
pub(super) fn cut(inputs: &Inputs, recode: &Recode, options: &ConvertOptions) -> Result<Best> {
    let geometry = recode.from.weight.geometry();
    let (rows, cols) = (geometry.rows, geometry.cols);
    let edited = Edited::new(inputs, recode)?;
    let seed = seed_of(recode.from.weight.name(), options.seed);
    let edits = edited.edits().unwrap_or_default();
    let is_low = edit::rank(edits, &(0..rows)).is_some_and(|rank| rank > 0 && rank < rows.min(cols));
    let product = is_low.then(|| edit::factors(edits, &(0..rows), cols)).flatten();
    let found = if let Some(Factors { rank, left, right }) = product {
        finite(&left)?;
        finite(&right)?;
        let (left, right) = (transposed(&left, rank), right);
        // What is stored turned is another matrix: its outputs are columns.
        let (left, right) = if recode.transposed { (right, left) } else { (left, right) };
        Spectrum::new(left, right, rank, None).best(options.wanted)
    } else {
        let values = added(&edited, recode, &(0..rows))?;
        let values = Order { transposed: recode.transposed, inputs: None }.to_model(values, cols);
        best(&values, if recode.transposed { rows } else { cols }, options.wanted, seed, None)
    };
    finite(&found.factors.left)?;
    finite(&found.factors.right)?;
    Ok(found)
}

/// The same of one matrix of a stack, which may lie in several weights; none where nothing changes it. A weight's edits stay loaded while its matrices go by.
pub(super) fn cut_matrix<'i>(
    inputs: &'i Inputs,
    stack: &Stack<'_>,
    expert: usize,
    (recodes, loaded): (&HashMap<&str, &Recode>, &mut HashMap<String, Edited<'i>>),
    options: &ConvertOptions,
) -> Result<Option<Best>> {
    let pieces: Vec<_> = stack.experts[expert]
        .iter()
        .filter_map(|piece| Some((piece, *recodes.get(piece.claim.weight.name())?)))
        .collect();
    if pieces.is_empty() {
        return Ok(None);
    }
    loaded.retain(|name, _| pieces.iter().any(|(piece, _)| piece.claim.weight.name() == name));
    for (piece, recode) in &pieces {
        if let Entry::Vacant(place) = loaded.entry(piece.claim.weight.name().to_owned()) {
            place.insert(Edited::new(inputs, recode)?);
        }
    }
    let (outputs, width) = stack.shape;
    let ranks = pieces.iter().map(|(piece, _)| {
        let edits = loaded[piece.claim.weight.name()].edits()?;
        edit::rank(edits, &piece.spot.rows)
    });
    let rank: Option<usize> = ranks.sum();
    if rank == Some(0) {
        return Ok(None);
    }
    let found = match rank.filter(|rank| *rank < outputs.min(width)) {
        Some(rank) => {
            // Turned.
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for (piece, recode) in &pieces {
                let edits = loaded[piece.claim.weight.name()].edits().unwrap_or_default();
                let cols = recode.from.weight.geometry().cols;
                let Some(own) = edit::factors(edits, &piece.spot.rows, cols) else {
                    return Err(Error::new(Kind::Bug, "a product without factors"));
                };
                let (of_outputs, of_inputs) = match piece.spot.transposed {
                    true => (own.right, transposed(&own.left, own.rank)),
                    false => (transposed(&own.left, own.rank), own.right),
                };
                for column in of_outputs.chunks_exact(piece.spot.width.max(1)) {
                    let mut whole = vec![0.0; outputs];
                    for (from, to) in piece.spot.put.iter().zip(piece.spot.take.iter()) {
                        whole[to] = column[from];
                    }
                    left.extend(whole);
                }
                right.extend(of_inputs);
            }
            finite(&left)?;
            finite(&right)?;
            Spectrum::new(left, right, rank, None).best(options.wanted)
        }
        None => {
            let mut difference = vec![0.0; outputs * width];
            for (piece, recode) in &pieces {
                let edited = &loaded[piece.claim.weight.name()];
                let values = added(edited, recode, &piece.spot.rows)?;
                put_rows(&piece.spot, values, width, &mut difference);
            }
            finite(&difference)?;
            let seed = seed_of(&matrix_name(&stack.path(), expert), options.seed);
            best(&difference, width, options.wanted, seed, None)
        }
    };
    finite(&found.factors.left)?;
    finite(&found.factors.right)?;
    Ok(Some(found))
}

/// What edits add to some rows of a weight, as it is stored.
fn added(edited: &Edited<'_>, recode: &Recode, rows: &Range<usize>) -> Result<Vec<f32>> {
    let cols = recode.from.weight.geometry().cols;
    let mut values = Vec::new();
    if recode.adds() {
        let zero = vec![0.0; rows.len() * cols];
        values.resize(zero.len(), 0.0);
        edit::apply(edited.edits().unwrap_or_default(), rows, cols, &zero, &mut values);
    } else {
        let mut base = Vec::new();
        edited.rows(rows, &mut base, &mut values)?;
        values.iter_mut().zip(base).for_each(|(x, base)| *x -= base);
    }
    finite(&values)?;
    Ok(values)
}
