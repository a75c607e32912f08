//! More than the adapter as a target, so that all of it comes out.
//!
//! What rounding loses of the adapter's output is lost at all tokens and in all layers with the same sign, and noise is not: so a loss of a few per cent costs a model as
//! much as noise of many times that. To make mu large enough that little is lost makes all noise along U dear, of which most is harmless. Here the loss alone is made up
//! for: with u_k a direction of the adapter's output, e_k = u_kᵀ E H Dᵀ u_k is to be 0. The method of multipliers (Hestenes 1969, Powell 1969) holds such conditions by a
//! shift of the target, which becomes W0 + D + Σ a_k u_k u_kᵀ D; a_k grows by what was lacking, −e_k / (u_kᵀ D H Dᵀ u_k), each time that it is asked. What of D lies in no
//! direction, where its rank is higher than their number, is asked for as one.

use super::super::matrix::Delta;
use super::State;
use crate::linalg;
use crate::parallel::spread;
use crate::simd::vectors::{axpy, axpys};

/// What the mean square of lost output counts in the end, where noise counts 1.
pub(super) const WEIGHT: f64 = 96.0;
/// Most that is asked at once, as a share of the adapter: what is lacking may be noise, where the adapter hardly puts out a thing.
const MOST: f64 = 0.5;
/// A direction with less than this share of the strongest one's output is one of rounded sums.
const WEAK: f64 = 1e-7;

/// By how much more to ask for an output of some mean square of which some is lacking (less than 0) at a target that asks for so much more already.
pub(super) fn more(delta: &Delta, (strength, lacking): (f64, f64), asked: f64) -> f64 {
    let strongest = delta.strengths.first().copied().unwrap_or(0.0);
    if strength <= WEAK * strongest { 0.0 } else { (-lacking / strength - asked).clamp(-MOST, MOST) }
}

impl State<'_, '_> {
    /// Asks for what is lacking of the adapter's output, by direction. Of a settled state.
    pub(super) fn ask(&mut self) {
        let all = self.delta.strengths.iter().zip(&self.lacking).zip(&self.asked);
        let by_direction: Vec<f64> =
            all.map(|((strength, lacking), asked)| more(self.delta, (*strength, *lacking), *asked)).collect();
        let rest = more(self.delta, (self.delta.rest, self.rest.lacking), self.rest.asked);
        self.shift(&by_direction, rest);
    }

    /// Goes back to the adapter itself as the target.
    pub(super) fn take_back(&mut self) {
        let back: Vec<f64> = self.asked.iter().map(|asked| -asked).collect();
        self.shift(&back, -self.rest.asked);
    }

    /// Moves the target by Σ more_k u_k u_kᵀ D + rest · (D − U Uᵀ D), which E, P and S follow.
    fn shift(&mut self, more: &[f64], rest: f64) {
        if rest == 0.0 && more.iter().all(|more| *more == 0.0) {
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
        // The rest lies in none of them.
        self.objective += rest * (rest * delta.rest - 2.0 * self.rest.lacking);
        self.rest.lacking -= rest * delta.rest;
        self.rest.asked += rest;
        self.energy.lost = self.lost();
        spread(self.sums(), |block| {
            let width = block.columns.len();
            let along = |factor: &dyn Fn(f64) -> f64| -> Vec<f32> {
                let rows = delta.moments.chunks_exact(n).zip(more);
                rows.flat_map(|(row, more)| {
                    let factor = -(factor(*more) as f32);
                    row[block.columns.clone()].iter().map(move |x| factor * x)
                })
                .collect()
            };
            let moved = along(&|more| more);
            block.shared.iter_mut().zip(&moved).for_each(|(sum, moved)| *sum += moved);
            // rest · D has the directions' share in it.
            let moved = if rest == 0.0 { moved } else { along(&|more| more - rest) };
            for (r, row) in block.products.chunks_exact_mut(width).enumerate() {
                axpys(delta.own(r), &moved, row);
                if let Some(dense) = delta.dense.as_ref().filter(|_| rest != 0.0) {
                    axpy(-(rest as f32), &dense[r * n..(r + 1) * n][block.columns.clone()], row);
                }
            }
        });
        self.beyond.clear();
        if self.rest.asked != 0.0 || self.asked.iter().any(|asked| *asked != 0.0) {
            for block in self.blocks() {
                let rows = delta.coefficients.chunks_exact(n).zip(&self.asked);
                rows.for_each(|(row, asked)| {
                    let factor = -((*asked - self.rest.asked) as f32);
                    self.beyond.extend(row[block.clone()].iter().map(|x| factor * x));
                });
            }
        }
    }

    /// ⟨E, D − U Uᵀ D⟩_H, minus what is lacking of what lies in no direction. Of a settled state whose `lacking` is up to date.
    pub(super) fn lacking_rest(&self) -> f64 {
        if self.delta.dense.is_none() {
            return 0.0;
        }
        let n = self.matrix.cols;
        let mut sum = 0.0;
        for block in self.blocks() {
            for r in 0..self.matrix.rows {
                let at = r * n + block.start..r * n + block.end;
                let pairs = self.matrix.target[at.clone()].iter().zip(&self.matrix.base[at]);
                let delta: Vec<f32> = pairs.map(|(target, base)| target - base).collect();
                sum += linalg::dot(&delta, &self.products[self.place(r, &block)]);
            }
        }
        sum - self.lacking.iter().sum::<f64>()
    }

    /// The mean square of the adapter's output that does not come out, of a target that is the adapter.
    pub(super) fn lost(&self) -> f64 {
        let rest = (self.rest.lacking, self.delta.rest);
        let pairs = self.lacking.iter().copied().zip(self.delta.strengths.iter().copied()).chain([rest]);
        pairs.filter(|(_, strength)| *strength > 0.0).map(|(lacking, strength)| lacking * lacking / strength).sum()
    }
}
