//! The next tokens: greedy, or drawn from the most likely ones.

use qmerge::error::Result;
use qmerge::linalg::mix;
use qmerge::simd::exp::exp;
use rayon::prelude::*;

use crate::activation::softmax;
use crate::linear::Precision;
use crate::model::{Cache, Model};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 takes the most likely token; 1 draws by the model's own probabilities.
    pub temperature: f32,
    /// Draws among the most likely tokens that together have this share.
    pub top_p: f32,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// Continues a prompt by up to `most` tokens, or until one of `stop`. `each` sees every token and says whether to go on.
pub fn generate(
    model: &Model<'_>,
    prompt: &[u32],
    most: usize,
    sampling: Sampling,
    stop: &[u32],
    mut each: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    let capacity = prompt.len().saturating_add(most).min(model.spec().max_positions).max(prompt.len());
    let mut cache = Cache::new(model, capacity);
    let mut random = Random::new(sampling.seed);
    let mut passes = 0;
    let (mut answer, mut logits) = (Vec::new(), Vec::new());
    let mut next = prompt.to_vec();
    while answer.len() < most && cache.len() + next.len() <= capacity && !next.is_empty() {
        let hidden = model.advance(&next, &mut cache)?;
        model.logits(&hidden, next.len() - 1..next.len(), &mut logits)?;
        passes += 1;
        let token = choose(&mut logits, sampling, &mut random);
        if stop.contains(&token) {
            break;
        }
        answer.push(token);
        next = vec![token];
        if !each(token) {
            break;
        }
    }
    if let Some(progress) = model.progress() {
        progress.skip(
            (passes..steps(model, prompt.len(), most)).map(|number| step_work(model, prompt.len(), number)).sum(),
        );
    }
    Ok(answer)
}

/// Work of a continuation of `most` tokens, or of as many as the model has positions for.
pub fn work(model: &Model<'_>, prompt: usize, most: usize) -> u64 {
    (0..steps(model, prompt, most)).map(|number| step_work(model, prompt, number)).sum()
}

/// Most passes of a continuation: the model has positions for no more.
fn steps(model: &Model<'_>, prompt: usize, most: usize) -> usize {
    most.min(model.spec().max_positions.saturating_sub(prompt).saturating_add(1))
}

/// Work of one token of it: the first takes the prompt in.
fn step_work(model: &Model<'_>, prompt: usize, number: usize) -> u64 {
    let (tokens, seen) = if number == 0 { (prompt, prompt.div_ceil(2)) } else { (1, prompt + number) };
    model.pass_work(Precision::Full, tokens, seen) + model.logits_work(Precision::Full, 1)
}

/// The most likely token; of equals the first.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (at, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = at;
        }
    }
    best as u32
}

/// Tokens that a thread takes the exponentials of together.
const ROWS: usize = 512;

/// A token for each column of `logits` (vocab, columns), drawn by the model's own probabilities as [`choose`] draws it.
pub(crate) fn draw(logits: &mut [f32], random: &mut [Random]) -> Vec<u32> {
    let columns = random.len();
    // The largest, and what is left of a difference from it, do not depend on an order; sums do.
    let some = ROWS * columns;
    let larger = |mut largest: Vec<f32>, row: &[f32]| {
        largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(*x));
        largest
    };
    let none = || vec![f32::NEG_INFINITY; columns];
    let largest = logits
        .par_chunks(some)
        .map(|rows| rows.chunks_exact(columns).fold(none(), larger))
        .reduce(none, |one, other| larger(one, &other));
    logits.par_chunks_mut(some).for_each(|rows| {
        for row in rows.chunks_exact_mut(columns) {
            row.iter_mut().zip(&largest).for_each(|(x, largest)| *x -= largest);
        }
        exp(rows);
    });
    let mut sums = vec![0.0; columns];
    for row in logits.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let mut left: Vec<f32> = random.iter_mut().map(Random::uniform).collect();
    // Tokens that leave something come before the one that is drawn: what is left only falls.
    let mut drawn = vec![0_u32; columns];
    for row in logits.chunks_exact(columns) {
        for ((drawn, left), (x, sum)) in drawn.iter_mut().zip(&mut left).zip(row.iter().zip(&sums)) {
            *left -= x / sum;
            *drawn += u32::from(*left >= 0.0 || left.is_nan());
        }
    }
    let last = (logits.len() / columns).saturating_sub(1) as u32;
    drawn.into_iter().map(|token| token.min(last)).collect()
}

pub(crate) fn choose(logits: &mut [f32], sampling: Sampling, random: &mut Random) -> u32 {
    if sampling.temperature <= 0.0 {
        return most_likely(logits);
    }
    logits.iter_mut().for_each(|x| *x /= sampling.temperature);
    softmax(logits);
    if sampling.top_p >= 1.0 {
        let mut left = random.uniform();
        let drawn = logits.iter().position(|share| {
            left -= share;
            left < 0.0
        });
        // The shares sum to a little less than one, or more.
        return drawn.unwrap_or(logits.len() - 1) as u32;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let mut kept = 0;
    let mut share = 0.0;
    while kept < order.len() && (kept == 0 || share < sampling.top_p) {
        share += logits[order[kept]];
        kept += 1;
    }
    let mut left = random.uniform() * share;
    for &token in &order[..kept] {
        left -= logits[token];
        if left <= 0.0 {
            return token as u32;
        }
    }
    order[kept - 1] as u32
}

/// splitmix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Any of so many tokens.
    pub(crate) fn token(&mut self, vocab: usize) -> u32 {
        ((self.uniform() * vocab as f32) as u32).min(vocab as u32 - 1)
    }

    /// In [0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 40) as f32 / (1_u32 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 3.0_f32.ln(), f32::NEG_INFINITY];
        let draw = |sampling: Sampling| {
            let mut random = Random(sampling.seed);
            let mut counts = [0; 3];
            (0..10_000).for_each(|_| counts[choose(&mut logits.clone(), sampling, &mut random) as usize] += 1);
            counts
        };
        assert_eq!(draw(Sampling::default()), [0, 10_000, 0]);
        let counts = draw(Sampling { temperature: 1.0, top_p: 1.0, seed: 7 });
        assert!((7_300..7_700).contains(&counts[1]) && counts[2] == 0, "{counts:?}");
        assert_eq!(draw(Sampling { temperature: 1.0, top_p: 0.5, seed: 7 }), [0, 10_000, 0]);
        // At temperature 1/2 odds are squared: 1 to 9.
        let counts = draw(Sampling { temperature: 0.5, top_p: 1.0, seed: 7 });
        assert!((8_900..9_100).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn columns_are_drawn_as_each_alone() {
        let (vocab, columns) = (301, 5);
        let logits: Vec<f32> = (0..vocab * columns).map(|i| ((i * 7919) % 1009) as f32 / 100.0 - 5.0).collect();
        let mut random: Vec<Random> = (0..columns as u64).map(Random::new).collect();
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 0 };
        let column = |number: usize| logits.iter().skip(number).step_by(columns).copied().collect::<Vec<_>>();
        for _ in 0..20 {
            let mut own: Vec<Random> = random.iter().map(|random| Random(random.0)).collect();
            let want: Vec<u32> =
                own.iter_mut().enumerate().map(|(c, own)| choose(&mut column(c), sampling, own)).collect();
            assert_eq!(draw(&mut logits.clone(), &mut random), want);
        }
    }
}
