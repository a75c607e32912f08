//! How a merged model behaves, in the report.

use serde::Serialize;

/// How the merged model predicts a text that its calibration did not see, against the base with the adapter kept apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Behaviour {
    /// Mean KL(apart ‖ merged), nats per token; null where the merged model's predictions are not finite.
    pub kl: f64,
    /// Mean KL(apart ‖ base) on the same tokens: how much the adapter changes.
    pub kl_base: f64,
    /// `kl / kl_base`: the share of the adapter's effect that is lost; null where the adapter changes nothing.
    pub kl_share: Option<f64>,
    /// Its standard error, over sequences; null with one sequence.
    pub kl_share_se: Option<f64>,
    /// Share of tokens where merged and apart find the same next token most likely.
    pub top1: f64,
    /// Predicted tokens.
    pub tokens: usize,
    /// What they are of, in words.
    pub text: String,
}

/// An adapter below this KL changes nothing that a forward pass in f32 can show.
const NOTHING: f64 = 1e-8;

impl Behaviour {
    /// From the mean KL of each sequence, of the merged model and of the base. All sequences have as many tokens.
    pub fn new(merged: &[f64], base: &[f64], top1: f64, tokens: usize, text: String) -> Self {
        let n = merged.len().min(base.len()) as f64;
        let (kl, kl_base) = (merged.iter().sum::<f64>() / n, base.iter().sum::<f64>() / n);
        let share = (kl_base > NOTHING && kl.is_finite()).then(|| kl / kl_base);
        // Of a ratio of means: sequences that are hard for the base are hard for the merge too.
        let error = |share: f64| {
            let squares: f64 = merged
                .iter()
                .zip(base)
                .map(|(m, b)| {
                    let x = m - share * b;
                    x * x
                })
                .sum();
            (squares / (n * (n - 1.0))).sqrt() / kl_base
        };
        Self { kl, kl_base, kl_share: share, kl_share_se: share.filter(|_| n > 1.0).map(error), top1, tokens, text }
    }

    /// Its figures in a line; `reference` is what the merged model is compared with.
    pub(crate) fn in_words(&self, reference: &str) -> String {
        let Self { kl, kl_base, top1, tokens, text, .. } = self;
        if !kl.is_finite() {
            return format!("predictions that are not finite, on {tokens} tokens {text}");
        }
        // A KL of nothing may come out below nothing in the last digit.
        let (kl, top1) = (kl.max(0.0), 100.0 * top1);
        format!(
            "KL {kl:.4} to {reference} (the base alone: {kl_base:.4}), the same first choice for {top1:.1} % of {tokens} tokens {text}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_all_tokens_and_its_error_that_of_a_ratio() {
        let found = Behaviour::new(&[0.01, 0.03], &[0.1, 0.3], 0.9, 94, String::new());
        assert!((found.kl - 0.02).abs() < 1e-12 && (found.kl_base - 0.2).abs() < 1e-12);
        // Ten percent of each sequence is ten percent for certain, however much the sequences differ.
        assert!((found.kl_share.unwrap() - 0.1).abs() < 1e-12 && found.kl_share_se.unwrap() < 1e-12);
        // 0.02 of 0.2 in each of two, that are 0 and 0.04: residuals ±0.02, so √(2·0.02² / 2) / 0.2.
        let found = Behaviour::new(&[0.0, 0.04], &[0.2, 0.2], 0.9, 94, String::new());
        assert!((found.kl_share_se.unwrap() - 0.1).abs() < 1e-12, "{found:?}");
        let one = Behaviour::new(&[0.01], &[0.1], 0.9, 47, String::new());
        assert_eq!((one.kl_share.is_some(), one.kl_share_se), (true, None));
    }

    #[test]
    fn there_is_no_share_of_nothing_and_none_of_what_is_not_finite() {
        assert_eq!(Behaviour::new(&[0.0, 0.0], &[0.0, 1e-9], 1.0, 94, String::new()).kl_share, None);
        let broken = Behaviour::new(&[0.1, f64::NAN], &[0.1, 0.2], 0.0, 94, String::new());
        assert_eq!((broken.kl.is_nan(), broken.kl_share, broken.kl_share_se), (true, None, None));
        assert!(serde_json::to_value(&broken).unwrap()["kl"].is_null());
    }
}
