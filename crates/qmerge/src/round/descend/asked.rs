//! More than the adapter as a target, so that all of it comes out.
//!
//! What rounding loses of the adapter's output is lost at all tokens and in all layers with the same sign, and noise is not: so a loss of a few per cent costs a model as
//! much as noise of many times that. To make mu large enough that little is lost makes all noise along U dear, of which most is harmless. Here the loss alone is made up
//! for: with u_k a direction of the adapter's output, e_k = u_kᵀ E H Dᵀ u_k is to be 0. The method of multipliers (Hestenes 1969, Powell 1969) holds such conditions by a
//! shift of the target, which becomes W0 + D + Σ a_k u_k u_kᵀ D; a_k grows by what was lacking, −e_k / (u_kᵀ D H Dᵀ u_k), each time that it is asked.

use super::State;
use crate::parallel::spread;
use crate::simd::vectors::axpys;

/// What the mean square of lost output counts in the end, where noise counts 1.
pub(super) const WEIGHT: f64 = 96.0;
/// Most that is asked at once, as a share of the adapter: what is lacking may be noise, where the adapter hardly puts out a thing.
const MOST: f64 = 0.5;
/// A direction with less than this share of the strongest one's output is one of rounded sums.
const WEAK: f64 = 1e-7;

impl State<'_, '_> {
    /// Asks for what is lacking of the adapter's output, by direction. Of a settled state.
    pub(super) fn ask(&mut self) {
        let strongest = self.delta.strengths.first().copied().unwrap_or(0.0);
        let all = self.delta.strengths.iter().zip(&self.lacking).zip(&self.asked);
        let more: Vec<f64> = all
            .map(
                |((strength, lacking), asked)| {
                    if *strength <= WEAK * strongest { 0.0 } else { (-lacking / strength - asked).clamp(-MOST, MOST) }
                },
            )
            .collect();
        self.shift(&more);
    }

    /// Goes back to the adapter itself as the target.
    pub(super) fn take_back(&mut self) {
        let back: Vec<f64> = self.asked.iter().map(|asked| -asked).collect();
        self.shift(&back);
    }

    /// Moves the target by Σ more_k u_k u_kᵀ D, which E, P and S follow.
    fn shift(&mut self, more: &[f64]) {
        if more.iter().all(|more| *more == 0.0) {
            return;
        }
        let (n, delta) = (self.matrix.cols, self.delta);
        let mut change = 0.0;
        for ((more, strength), (lacking, asked)) in
            more.iter().zip(&delta.strengths).zip(self.lacking.iter_mut().zip(&mut self.asked))
        {
            change += more * (more * strength - 2.0 * *lacking);
            *lacking -= more * strength;
            *asked += more;
        }
        // It lies in the directions, so it changes both parts by as much.
        self.energy.along += change;
        self.objective += (1.0 + f64::from(self.mu)) * change;
        self.energy.lost = self.lost();
        spread(self.sums(), |block| {
            let rows = delta.moments.chunks_exact(n).zip(more);
            let moved: Vec<f32> =
                rows.flat_map(|(row, more)| row[block.columns.clone()].iter().map(|x| -(*more as f32) * x)).collect();
            block.shared.iter_mut().zip(&moved).for_each(|(sum, moved)| *sum += moved);
            let rows = block.products.chunks_exact_mut(block.columns.len()).enumerate();
            rows.for_each(|(r, row)| axpys(delta.own(r), &moved, row));
        });
        self.beyond.clear();
        if self.asked.iter().any(|asked| *asked != 0.0) {
            for block in self.blocks() {
                let rows = delta.coefficients.chunks_exact(n).zip(&self.asked);
                rows.for_each(|(row, asked)| {
                    self.beyond.extend(row[block.clone()].iter().map(|x| -(*asked as f32) * x))
                });
            }
        }
    }

    /// The mean square of the adapter's output that does not come out, of a target that is the adapter.
    pub(super) fn lost(&self) -> f64 {
        let pairs = self.lacking.iter().zip(&self.delta.strengths).filter(|(_, strength)| **strength > 0.0);
        pairs.map(|(lacking, strength)| lacking * lacking / strength).sum()
    }
}
