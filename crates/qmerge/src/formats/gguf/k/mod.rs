//! Q2_K to Q6_K: 256 elements in runs, whose scales (and minima) are whole multiples of one f16 for all of the block.

mod runs_of_16;
mod runs_of_32;

pub(super) use runs_of_16::{Q2K, Q3K, Q6K};
pub(super) use runs_of_32::{Q4K, Q5K, by_importance_of_pair};

use super::fit::{Runs, Search, codes, nearest};

/// A scale and whole multiples of it that come near to all of some scales: the largest gets `top`.
#[inline(always)]
fn shared<const L: usize>(scales: &[f32; L], top: i32) -> (f32, [i32; L]) {
    let most = scales.iter().fold(0.0, |most: f32, &scale| if scale > most { scale } else { most });
    if most > 0.0 {
        let inverse = top as f32 / most;
        (most / top as f32, scales.map(|scale| nearest(inverse * scale)))
    } else {
        (0.0, [0; L])
    }
}

/// The codes of runs, by the blocks that they are.
#[inline(always)]
fn block_codes<const N: usize, const BLOCKS: usize>(found: &Runs<N>) -> [[u8; 256]; BLOCKS] {
    let mut all = [[0; 256]; BLOCKS];
    all.as_flattened_mut().copy_from_slice(codes(found).as_flattened());
    all
}

/// What is searched where inputs are known.
#[inline(always)]
fn known(top: i32) -> Search {
    Search { top, first: -0.9, step: 0.05, steps: 36, absolute: false }
}
