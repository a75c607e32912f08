//! What edits add to a weight, as two factors.

use std::ops::Range;

use super::low_rank::LowRank;
use super::place::overlap;
use super::{Edit, Kind};
use crate::linalg::Factors;

/// The rank of what edits add to some rows of a weight, at most; `None` where one of them does not add a product.
pub fn rank(edits: &[Edit], rows: &Range<usize>) -> Option<usize> {
    let of = |edit: &Edit| match &edit.kind {
        Kind::Product(low_rank) => {
            let own = low_rank.blocks.iter().filter(|block| !overlap(&block.rows, rows).is_empty());
            Some(own.map(|block| block.rank).sum::<usize>())
        }
        Kind::Add(deltas) => {
            let own = deltas.iter().filter(|(spot, _)| !overlap(&spot.rows, rows).is_empty());
            own.map(|(_, delta)| delta.rank()).sum()
        }
        Kind::Map(_) => None,
    };
    edits.iter().map(of).sum()
}

/// D of some rows of a weight as one product, the sum of what all edits add; `None` where one of them does not add a product.
///
/// Products stand side by side, each with zeros in the rows that are not its own, so the rank is the sum of theirs: for a stack of experts, ask for the rows
/// of one. The factor of a product is in `left`. Where a reference rounds a product before it is added, that rounding is left out.
pub fn factors(edits: &[Edit], rows: &Range<usize>, cols: usize) -> Option<Factors> {
    // What is a product only once it is asked for.
    let mut made = Vec::new();
    for edit in edits {
        made.push(match &edit.kind {
            Kind::Product(_) => None,
            Kind::Add(deltas) => {
                let own = deltas.iter().filter(|(spot, _)| !overlap(&spot.rows, rows).is_empty());
                let (spots, products): (Vec<_>, Vec<_>) =
                    own.map(|(spot, delta)| Some((spot.clone(), delta.factors()?))).collect::<Option<_>>()?;
                Some(LowRank::new(products, spots.into_iter()))
            }
            Kind::Map(_) => return None,
        });
    }
    let mut blocks = Vec::new();
    for (edit, made) in edits.iter().zip(&made) {
        let ((Kind::Product(low_rank), _) | (_, Some(low_rank))) = (&edit.kind, made) else { return None };
        let found = low_rank.blocks.iter().map(|block| (low_rank.scale, block, overlap(&block.rows, rows)));
        blocks.extend(found.filter(|(_, _, own)| !own.is_empty()));
    }
    let rank = blocks.iter().map(|(_, block, _)| block.rank).sum();
    let mut left = vec![0.0; rows.len() * rank];
    let mut right = Vec::with_capacity(rank * cols);
    let mut own_right = Vec::new();
    let mut column = 0;
    for (scale, block, own) in blocks {
        for row in own {
            let from = (row - block.rows.start) * block.rank;
            let to = (row - rows.start) * rank + column;
            for (to, x) in left[to..to + block.rank].iter_mut().zip(&block.left[from..from + block.rank]) {
                *to = scale * x;
            }
        }
        block.right.rows(0..block.rank, &mut own_right);
        right.extend_from_slice(&own_right);
        column += block.rank;
    }
    Some(Factors { rank, left, right })
}
