//! One plain sentence on what became of the adapter, and one on what to do.

use serde::Serialize;

use crate::measure::Loss;

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// "kept", "weakened", "lost", "noisy" or "none".
    pub effect: &'static str,
    /// What happened, in words.
    pub text: String,
    /// What to do, where something should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What is better than this merge for those who can serve an adapter beside a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<&'static str>,
}

/// Rounding costs more than the small directions of an adapter: docs/src/research/rounding.md has the figures.
const BESIDE: &str = "if you can serve an adapter beside the model, do not merge: `qmerge truncate --rank 2` beside the untouched base came closer \
                      to the whole adapter (in KL) than any merge where both were measured";

impl Verdict {
    /// Says so where it applies: the output is coarser than 16 bits and the adapter can be cut.
    pub(crate) fn or_beside(mut self, applies: bool) -> Self {
        self.beside = (applies && self.effect != "none").then_some(BESIDE);
        self
    }
}

/// Below this survival the effect counts as lost, above [`KEPT`] as kept.
const LOST: f64 = 0.3;
const KEPT: f64 = 0.9;
/// Above this ratio the rounding noise outweighs the adapter so far that survival alone misleads.
const NOISY: f64 = 2.0;

/// Judges the summed figures. `quantized` is true if the output is coarser than 16 bits; `kept_output` is the strength at which the adapter's outputs come
/// out, where it is known, and then decides: in a quantized weight, values far from the delta can give its output, and values near it can fail to.
pub fn verdict(loss: &Loss, quantized: bool, kept_output: Option<f64>) -> Verdict {
    let (Some(survival), Some(noise)) = (loss.survival, loss.noise_to_delta) else {
        return Verdict {
            effect: "none",
            text: "the adapter changes nothing: its delta is zero".into(),
            advice: None,
            beside: None,
        };
    };
    let figures = format!("survival {survival:.2}, noise {noise:.2} × the delta");
    if let Some(kept) = kept_output.filter(|kept| *kept >= KEPT) {
        let text = format!(
            "the adapter's effect was kept: its outputs have {kept:.2} of their strength (in the weights: {figures})"
        );
        return Verdict { effect: "kept", text, advice: None, beside: None };
    }
    let apart = if quantized {
        "merge with --rounding auto, which keeps it at the same size, or keep the adapter apart, which is exact"
    } else {
        "keep the adapter apart, which is exact, or merge into more bits"
    };
    let (effect, text, advice) = if survival < LOST {
        ("lost", format!("the adapter's effect was mostly lost: {figures}"), Some(apart))
    } else if survival < KEPT {
        ("weakened", format!("the adapter's effect was weakened: {figures}"), Some(apart))
    } else if noise > NOISY && quantized {
        (
            "noisy",
            format!("the adapter's effect was kept on average, under rounding noise larger than itself: {figures}"),
            Some("compare the output with the adapter kept apart before you deploy it"),
        )
    } else {
        ("kept", format!("the adapter's effect was kept: {figures}"), None)
    };
    Verdict { effect, text, advice: advice.map(str::to_owned), beside: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(survival: f64, noise: f64) -> Loss {
        Loss {
            elements: 1,
            survival: Some(survival),
            noise_to_delta: Some(noise),
            delta_rms: 1.0,
            weight_rms: 1.0,
            error_rms: 1.0,
            changed_fraction: 0.0,
            max_abs_error: 0.0,
        }
    }

    #[test]
    fn a_side_adapter_is_advised_where_it_applies() {
        let kept = || super::verdict(&loss(0.7, 9.0), true, Some(0.98));
        assert!(kept().or_beside(true).beside.unwrap().contains("qmerge truncate --rank 2"));
        assert_eq!(kept().or_beside(false), kept());
        let nothing = Loss { survival: None, ..loss(0.0, 0.0) };
        assert_eq!(super::verdict(&nothing, true, None).or_beside(true).beside, None);
    }

    #[test]
    fn the_words_follow_the_figures() {
        let verdict = |loss: &Loss, quantized| super::verdict(loss, quantized, None);
        assert_eq!(super::verdict(&loss(0.7, 9.0), true, Some(0.98)).effect, "kept");
        assert_eq!(super::verdict(&loss(0.7, 9.0), true, Some(0.5)).effect, "weakened");
        assert_eq!(verdict(&loss(0.02, 1.05), true).effect, "lost");
        assert_eq!(verdict(&loss(0.6, 0.9), true).effect, "weakened");
        assert_eq!(verdict(&loss(1.0, 0.1), true).effect, "kept");
        assert_eq!(verdict(&loss(0.99, 9.0), true).effect, "noisy");
        assert_eq!(verdict(&Loss { survival: None, ..loss(0.0, 0.0) }, true).effect, "none");
        assert!(
            verdict(&loss(0.02, 1.05), true).text.starts_with("the adapter's effect was mostly lost: survival 0.02")
        );
    }
}
