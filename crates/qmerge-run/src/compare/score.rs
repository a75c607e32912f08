//! What models make of the tokens of a text, summed over windows.

use std::ops::Range;

use qmerge::error::{Error, Kind, Result};
use qmerge::progress::Progress;
use qmerge::simd::exp::exp;
use rayon::prelude::*;

use super::Candidate;
use crate::linear::Unwatched;
use crate::work;

/// Columns whose logits stand in memory at a time.
pub(crate) const COLUMNS: usize = 64;

/// Sums of one model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    pub(super) kl: f64,
    pub(crate) same: usize,
    /// Mean KL of each window.
    pub(crate) window_kl: Vec<f64>,
    /// Mean loss of each window.
    pub(super) window_loss: Vec<f64>,
}

/// Runs all models on windows, about `batch` tokens at a time, and scores what each predicts from token number `from` on, `columns` tokens at a time.
/// Every window is longer than `from + 1` tokens.
pub(crate) fn score_all(
    candidates: &[Candidate<'_, '_>],
    windows: &[&[u32]],
    from: usize,
    batch: usize,
    columns: usize,
    apart: usize,
    progress: &dyn Progress,
) -> Result<Vec<Sums>> {
    let mut sums = vec![Sums::default(); candidates.len()];
    let mut logits = vec![Vec::new(); candidates.len()];
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(1);
    let mut done = 0;
    for batch in windows.chunks((batch / longest.max(1)).max(1)) {
        let hidden: Vec<Vec<f32>> =
            candidates.iter().map(|candidate| candidate.model.hidden(batch, &mut Unwatched)).collect::<Result<_>>()?;
        let mut begin = 0;
        for window in batch {
            let before: Vec<(f64, f64)> = sums.iter().map(|sums| (sums.kl, sums.loss)).collect();
            // The last token predicts what is not there.
            for start in (from..window.len() - 1).step_by(columns) {
                let end = (start + columns).min(window.len() - 1);
                for ((candidate, hidden), logits) in candidates.iter().zip(&hidden).zip(&mut logits) {
                    candidate.model.logits(hidden, begin + start..begin + end, logits)?;
                }
                score(candidates, &logits, &window[start + 1..end + 1], apart, &mut sums)?;
                progress.advance(score_work(candidates, end - start));
            }
            let scored = (window.len() - 1 - from) as f64;
            for (sums, (kl, loss)) in sums.iter_mut().zip(before) {
                sums.window_kl.push((sums.kl - kl) / scored);
                sums.window_loss.push((sums.loss - loss) / scored);
            }
            begin += window.len();
        }
        done += batch.len();
        progress.part(done as u64, windows.len() as u64);
    }
    Ok(sums)
}

/// Work of scoring so many columns.
pub(super) fn score_work(candidates: &[Candidate<'_, '_>], columns: usize) -> u64 {
    let logits: usize = candidates.iter().map(|candidate| candidate.model.spec().vocab * columns).sum();
    (work::SCORE * logits as f64) as u64
}

/// Adds some columns of logits to the sums. `next` holds the token that follows each column.
fn score(
    candidates: &[Candidate<'_, '_>],
    logits: &[Vec<f32>],
    next: &[u32],
    apart: usize,
    sums: &mut [Sums],
) -> Result<()> {
    let count = next.len();
    let vocab = logits[apart].len() / count;
    for (candidate, logits) in candidates.iter().zip(logits) {
        if logits.len() != vocab * count {
            let problem = format!("{} tokens, but the base with the adapter has {vocab}", logits.len() / count);
            return Err(Error::new(Kind::Mismatch, problem).in_file(std::path::Path::new(&candidate.name)));
        }
    }
    let starts: Vec<usize> = (0..count).step_by(GROUP).collect();
    let scores: Vec<Vec<Score>> = starts
        .into_par_iter()
        .flat_map_iter(|start| {
            let group = start..count.min(start + GROUP);
            score_group(logits, count, group.clone(), &next[group], apart)
        })
        .collect();
    for column in scores {
        for (sums, score) in sums.iter_mut().zip(column) {
            sums.loss += score.loss;
            sums.kl += score.kl;
            sums.same += usize::from(score.same);
        }
    }
    Ok(())
}

/// Sum over some columns of the KL between the first model's logits (vocab, count) and the second's.
pub(crate) fn divergence(logits: &[Vec<f32>; 2], count: usize) -> f64 {
    let groups = (0..count).step_by(GROUP).map(|start| start..count.min(start + GROUP));
    groups.flat_map(|group| score_group(logits, count, group, &[0; GROUP], 0)).map(|scores| scores[1].kl).sum()
}

/// Columns that are scored together: a cache line of each row.
const GROUP: usize = 16;
/// Rows of a group that are worked on at a time.
const ROWS: usize = 64;

/// What one model makes of one token.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    loss: f64,
    kl: f64,
    same: bool,
}

/// Scores of some columns of logits (vocab, count), by column and then by model.
///
/// With Z = Σ exp(x − max x), KL(a ‖ m) = Σ exp(a − max a) · ((a − max a) − (m − max m)) / Z_a − ln Z_a + ln Z_m.
fn score_group(logits: &[Vec<f32>], count: usize, group: Range<usize>, next: &[u32], apart: usize) -> Vec<Vec<Score>> {
    let width = group.len();
    let rows = |model: usize| logits[model].chunks_exact(count).map(|row| &row[group.clone()]);
    let best: Vec<Vec<(f32, usize)>> = (0..logits.len())
        .map(|model| {
            let mut best = vec![(f32::NEG_INFINITY, 0); width];
            for (number, row) in rows(model).enumerate() {
                for (best, &x) in best.iter_mut().zip(row) {
                    if x > best.0 {
                        *best = (x, number);
                    }
                }
            }
            best
        })
        .collect();
    // By model and column: Z, and the sum of the formula above.
    let mut sums = vec![vec![(0.0_f64, 0.0_f64); width]; logits.len()];
    let vocab = logits[apart].len() / count;
    let mut shifted = vec![Vec::new(); logits.len()];
    let mut exponentials = Vec::new();
    for start in (0..vocab).step_by(ROWS) {
        for (model, shifted) in shifted.iter_mut().enumerate() {
            shifted.clear();
            for row in logits[model][start * count..(start + ROWS).min(vocab) * count].chunks_exact(count) {
                shifted.extend(row[group.clone()].iter().zip(&best[model]).map(|(x, best)| x - best.0));
            }
        }
        let mut of_apart = shifted[apart].clone();
        exp(&mut of_apart);
        for (model, shifted_own) in shifted.iter().enumerate() {
            exponentials.clone_from(if model == apart { &of_apart } else { shifted_own });
            if model != apart {
                exp(&mut exponentials);
            }
            let mut block = [(0.0_f32, 0.0_f32); GROUP];
            for (at, exponential) in exponentials.chunks_exact(width).enumerate() {
                let at = at * width..(at + 1) * width;
                let terms = of_apart[at.clone()].iter().zip(&shifted[apart][at.clone()]).zip(&shifted_own[at]);
                for ((block, &exponential), ((&p, &a), &m)) in block.iter_mut().zip(exponential).zip(terms) {
                    block.0 += exponential;
                    block.1 += p * (a - m);
                }
            }
            for (sum, block) in sums[model].iter_mut().zip(block) {
                sum.0 += f64::from(block.0);
                sum.1 += f64::from(block.1);
            }
        }
    }
    (0..width)
        .map(|t| {
            let log_sum = |model: usize| libm::log(sums[model][t].0);
            let score = |model: usize| {
                let own = logits[model][next[t] as usize * count + group.start + t] - best[model][t].0;
                let kl = sums[model][t].1 / sums[apart][t].0 - log_sum(apart) + log_sum(model);
                Score {
                    loss: log_sum(model) - f64::from(own),
                    kl: if model == apart { 0.0 } else { kl },
                    same: best[model][t].1 == best[apart][t].1,
                }
            };
            (0..logits.len()).map(score).collect()
        })
        .collect()
}
