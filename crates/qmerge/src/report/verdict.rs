//! One plain sentence on what became of the adapter, and one on what to do.
//!
//! It rests on behaviour where the model was run. Else it says that behaviour is unknown, and judges by what is known: the strength of
//! layers' outputs, and only where neither is known the strength of the delta in the weights. Weights alone mislead where values were
//! chosen by what comes out of a layer, and those merges have the strength of the outputs.

use serde::Serialize;

use super::Behaviour;
use crate::measure::Loss;
use crate::round::Seen;

/// The verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// "kept", "weakened", "lost", "broken" (the merged model's predictions are not finite), "noisy" or "unknown" (behaviour was not measured, and what
    /// is known does not tell), "none" (the adapter changes nothing) or "converted" (there was no adapter).
    pub effect: &'static str,
    /// Share of the adapter's effect that is left, as far as it is known: 1 is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<f64>,
    /// What that is a share of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// What happened, in words.
    pub text: String,
    /// What to do, where something should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// What the share that is left was found by, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// 1 − KL(apart ‖ merged) / KL(apart ‖ base), of the models' predictions.
    Behaviour,
    /// Mean strength at which the adapter's outputs come out of layers: `kept_output`.
    KeptOutput,
    /// Strength of the delta in the weights: `survival`.
    Survival,
}

impl By {
    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Behaviour => "what is kept in behaviour",
            Self::KeptOutput => "kept output",
            Self::Survival => "survival",
        }
    }
}

/// What a verdict on a merge rests on.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Over all edited weights.
    pub loss: &'a Loss,
    /// True if an edited weight is stored coarser than in 16 bits.
    pub is_coarse: bool,
    /// True if one of these was not so in the base, so that its own values were rounded as well.
    pub rounds_base: bool,
    /// Mean strength of the adapter's outputs, where inputs are known.
    pub kept_output: Option<f64>,
    /// Of these inputs.
    pub seen: Seen,
    /// What a run of the merged model showed.
    pub behaviour: Option<&'a Behaviour>,
}

/// Shares of the effect that are lost: up to the first it counts as kept, beyond the second as lost.
const KEPT: f64 = 0.05;
const LOST: f64 = 0.5;
/// Above this ratio the rounding noise outweighs the delta so far that the strength of the delta alone says little.
const NOISY: f64 = 2.0;
/// A share whose standard error is above this is said to be about that.
const ROUGH: f64 = 0.02;
/// Fewer tokens than this make any share a rough one.
const FEW: usize = 500;

/// "kept", "weakened" or "lost", by the share of the effect that is lost.
fn effect(lost: f64) -> &'static str {
    if lost <= KEPT {
        "kept"
    } else if lost <= LOST {
        "weakened"
    } else {
        "lost"
    }
}

/// Judges a merge.
pub fn verdict(evidence: &Evidence<'_>) -> Verdict {
    let Evidence { loss, is_coarse, rounds_base, kept_output, seen, behaviour } = *evidence;
    let (Some(survival), Some(noise)) = (loss.survival, loss.noise_to_delta) else {
        return Verdict::new("none", None, "the adapter changes nothing: its delta is zero".into());
    };
    let found = match (behaviour, kept_output) {
        (Some(behaviour), _) => {
            let mut found = behaviour.verdict();
            if rounds_base && matches!(found.effect, "weakened" | "lost") {
                found.text += ". What the format rounds of the base itself is in this: `qmerge compare` with the base converted to it beside tells the two apart";
            }
            found
        }
        (None, Some(kept)) => by_outputs(kept, seen),
        (None, None) => by_weights(loss, survival, noise, is_coarse),
    };
    let is_changed = match found.effect {
        "weakened" | "lost" | "broken" => true,
        "noisy" => found.kept.is_some_and(|kept| lost_at(kept) > KEPT),
        _ => false,
    };
    let advice = match is_changed {
        true if is_coarse && kept_output.is_none() => Some(
            "merge with --rounding auto, which goes by what comes out of the layers where the model can be run and --fast is left out, or keep the adapter apart, which is exact",
        ),
        true if is_coarse && seen == Seen::Few => {
            Some("merge without --fast, which goes by few tokens, or keep the adapter apart, which is exact")
        }
        true if is_coarse && seen == Seen::Own && found.effect != "broken" => Some(
            "calibrate on a text of the adapter's task, with --calibrate, keep the adapter apart, which is exact, or merge into more bits",
        ),
        true => Some("keep the adapter apart, which is exact, or merge into more bits"),
        false => None,
    };
    Verdict { advice: advice.map(str::to_owned), ..found }
}

/// For a conversion.
pub(crate) fn converted(weights: usize) -> Verdict {
    let what = if weights == 1 { "1 weight was converted".into() } else { format!("{weights} weights were converted") };
    Verdict::new("converted", None, format!("{what}; there was no adapter to judge"))
}

/// For a merge that puts whole tensors of an adapter into the base and has no delta. `exactly`: none of them was rounded coarser than to 16 bits.
pub(crate) fn replaced(tensors: usize, exactly: bool) -> Verdict {
    let what = if tensors == 1 { "1 tensor".into() } else { format!("{tensors} tensors") };
    let text = format!("{what} of the adapter stand in place of the base's; there is no delta besides");
    match exactly {
        true => Verdict::new("kept", None, text),
        false => Verdict::new("unknown", None, format!("{text}. They were rounded, and behaviour is unknown")),
    }
}

/// What was judged, where it was taken out of a merge: how much of what the adapter adds was subtracted.
pub(crate) fn undone(judged: Verdict, survival: Option<f64>) -> Verdict {
    let Some(survival) = survival else { return judged };
    let text = match (survival - 1.0).abs() < 0.005 {
        true => format!("what the adapter adds is subtracted, at {survival:.2} of its strength (survival). {UNKNOWN}"),
        false if survival > 1.0 => format!(
            "more than what the adapter adds is subtracted, {survival:.2} times of it (survival), since the output is rounded. {UNKNOWN}"
        ),
        false => format!(
            "of what the adapter adds {survival:.2} could be subtracted (survival), the rest is lost in rounding: if the merge held all of it, the output still holds the rest. {UNKNOWN}"
        ),
    };
    let advice = (judged.effect != "kept").then(|| "take the original base".to_owned());
    Verdict { text, advice, ..judged }
}

impl Verdict {
    /// The same of something else than an adapter.
    pub(crate) fn of(self, subject: &str) -> Self {
        // What is as large as the model is not kept apart.
        let advice = self.advice.map(|advice| match advice.contains("--rounding auto") {
            true => {
                "merge with --rounding auto, which goes by what comes out of the layers where the model can be run and --fast is left out, or into more bits".to_owned()
            }
            false if advice.contains("--calibrate") => {
                "calibrate on a text of its task, with --calibrate, or merge into more bits".to_owned()
            }
            false => "merge into more bits".to_owned(),
        });
        Self { text: self.text.replace("the adapter", subject), advice, ..self }
    }

    fn new(effect: &'static str, kept: Option<(f64, By)>, text: String) -> Self {
        Self { effect, kept: kept.map(|(kept, _)| kept), by: kept.map(|(_, by)| by), text, advice: None }
    }
}

impl Behaviour {
    /// The verdict by what a run of the model showed, without advice.
    pub fn verdict(&self) -> Verdict {
        let Self { kl, kl_share, kl_share_se, tokens, .. } = *self;
        if !kl.is_finite() {
            let text = "the merged model is broken: its predictions are not finite numbers".to_owned();
            return Verdict::new("broken", None, text);
        }
        let Some(lost) = kl_share else {
            let text = format!("the adapter changes nothing in what the model predicts, on {tokens} tokens");
            return Verdict::new("none", None, text);
        };
        let effect = effect(lost);
        // Predictions do not tell whether it is too weak, too strong or under noise.
        let what = match effect {
            _ if lost > 1.0 => "overlaid or overshot",
            "lost" => "mostly lost or overlaid",
            "weakened" => "changed",
            _ => effect,
        };
        let left = if lost > 1.0 {
            "the merged model predicts less like the adapter than the base alone does".into()
        } else {
            let rough = tokens < FEW || kl_share_se.is_none_or(|se| se > ROUGH);
            let about = if rough { "about " } else { "" };
            let share = match kl_share_se {
                Some(se) if se >= 0.0005 => format!("{:.1} ± {:.1} %", 100.0 * (1.0 - lost), 100.0 * se),
                Some(se) if se >= 0.00005 => format!("{:.2} ± {:.2} %", 100.0 * (1.0 - lost), 100.0 * se),
                _ => percent(1.0 - lost),
            };
            format!("{about}{share} of it is left in what the model predicts")
        };
        let text = format!("the adapter's effect is {what}: {left}, on {tokens} tokens");
        Verdict::new(effect, Some((1.0 - lost, By::Behaviour)), text)
    }
}

/// With as many digits as tell it from 100 %.
fn percent(x: f64) -> String {
    match 100.0 * x {
        x if x < 99.95 => format!("{x:.1} %"),
        x if x < 99.995 => format!("{x:.2} %"),
        _ => "100 %".into(),
    }
}

/// The share of an effect that is lost where it comes at another strength: KL goes with the square of a change.
fn lost_at(strength: f64) -> f64 {
    let lost = 1.0 - strength;
    lost * lost
}

const UNKNOWN: &str = "Behaviour is unknown: the merged model was not run";

/// What a strength by few tokens may be off by: of a LoRA, an OFT and a DoRA, merges that keep 97 % and more have 0.89 to 1.27.
const ROUGHLY: f64 = 0.3;

/// By the strength of layers' outputs: what is weak there is weak in the model, and what is strong there may be under noise.
fn by_outputs(kept: f64, seen: Seen) -> Verdict {
    let is_rough = seen == Seen::Few;
    let strength = if is_rough && (kept - 1.0).abs() <= ROUGHLY { 1.0 } else { kept };
    let (effect, what) = match effect(lost_at(strength)) {
        "kept" => ("unknown", "comes out of the layers"),
        _ if kept > 1.0 => ("noisy", "comes out of the layers too strong"),
        "weakened" => ("weakened", "comes out of the layers weakened"),
        _ => ("lost", "hardly comes out of the layers"),
    };
    let (about, text) = if is_rough { ("about ", "few tokens") } else { ("", "the calibration text") };
    let text =
        format!("the adapter's effect {what}: at {about}{kept:.2} of its strength on {text} (kept output). {UNKNOWN}");
    Verdict::new(effect, Some((kept, By::KeptOutput)), text)
}

/// By the weights of a method that does not look at outputs, whose errors go with no input in particular.
fn by_weights(loss: &Loss, survival: f64, noise: f64, is_coarse: bool) -> Verdict {
    let strength = format!("in the weights the delta has {survival:.2} of its strength (survival)");
    let is_noisy = is_coarse && noise > NOISY;
    let (effect, text) = match effect(lost_at(survival)) {
        "weakened" | "lost" if !is_noisy && survival > 1.0 => {
            ("noisy", format!("the adapter's effect is too strong: {strength}. {UNKNOWN}"))
        }
        found if is_noisy => {
            let what = if found == "kept" { "there under noise" } else { "under noise" };
            (
                "noisy",
                format!(
                    "the adapter is {what}: {strength}, and rounding added noise {noise:.1} times its size. {UNKNOWN}"
                ),
            )
        }
        "lost" => ("lost", format!("the adapter's effect is mostly lost: {strength}. {UNKNOWN}")),
        "weakened" => ("weakened", format!("the adapter's effect is weakened: {strength}. {UNKNOWN}")),
        _ => {
            let error = 100.0 * loss.error_rms / loss.weight_rms.max(1e-30);
            let error = if error < 0.005 { "less than 0.01".into() } else { format!("{error:.2}") };
            (
                "kept",
                format!(
                    "the adapter's effect is most likely kept: the output is {error} % of the weights away from the exact merge, and {strength}. {UNKNOWN}"
                ),
            )
        }
    };
    Verdict::new(effect, Some((survival, By::Survival)), text)
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

    fn behaviour(kl: f64) -> Behaviour {
        Behaviour::new(&[kl, kl], &[0.323, 0.323], 0.95, 752, "that the model wrote".into())
    }

    fn judged(loss: &Loss, is_coarse: bool, kept_output: Option<f64>, behaviour: Option<&Behaviour>) -> Verdict {
        verdict(&Evidence { loss, is_coarse, rounds_base: false, kept_output, seen: Seen::Many, behaviour })
    }

    /// Text that the model wrote may hardly show what the adapter is for: where something is lost, one of the task is the first thing to try.
    #[test]
    fn after_own_text_a_text_of_the_task_is_advised() {
        for (seen, kl, is_told) in
            [(Seen::Own, 0.1, true), (Seen::Own, 0.001, false), (Seen::Own, f64::NAN, false), (Seen::Many, 0.1, false)]
        {
            let (loss, behaviour) = (loss(0.7, 3.5), behaviour(kl));
            let behaviour = Some(&behaviour);
            let evidence =
                Evidence { loss: &loss, is_coarse: true, rounds_base: false, kept_output: Some(1.0), seen, behaviour };
            for (found, what) in
                [(verdict(&evidence), "adapter"), (verdict(&evidence).of("the task vector"), "its task")]
            {
                let advice = found.advice.unwrap_or_default();
                assert_eq!(advice.contains("--calibrate") && advice.contains(what), is_told, "{seen:?} {kl}: {advice}");
            }
        }
    }

    #[test]
    fn what_is_no_adapter_is_not_called_one() {
        let behaviours = [0.0, 0.1, 0.3, 0.5, f64::NAN].map(behaviour);
        for (survival, noise) in [(1.0, 0.1), (0.8, 0.2), (0.1, 0.9), (0.9, 9.0), (1.3, 0.35), (0.4, 43.0)] {
            for kept in [None, Some(1.0), Some(0.6), Some(0.1)] {
                for behaviour in behaviours.iter().map(Some).chain([None]) {
                    let found = judged(&loss(survival, noise), true, kept, behaviour).of("the task vector");
                    let advice = found.advice.as_deref().unwrap_or_default();
                    assert!(!found.text.contains("adapter") && !advice.contains("apart"), "{} {advice}", found.text);
                }
            }
        }
    }

    /// Figures of merges of a 135 M model (survival, noise, coarse, kept output) in the order of their KL: the order of verdicts is the same, however much the
    /// figures in the weights would change it.
    #[test]
    fn verdicts_are_in_the_order_of_measured_kl() {
        let merges = [
            (0.898, 0.49, false, None, 0.0008),
            (0.97, 1.9, true, Some(0.999), 0.0010),
            (0.825, 8.64, true, Some(0.984), 0.0041),
            (0.80, 8.7, true, Some(0.97), 0.0140),
            (0.457, 7.3, true, Some(0.85), 0.0164),
            (0.98, 9.1, true, None, 0.0341),
            (0.629, 9.0, true, Some(0.625), 0.0423),
            (0.01, 1.06, true, None, 0.3132),
        ];
        let verdicts: Vec<Verdict> = merges
            .iter()
            .map(|&(survival, noise, coarse, kept, kl)| {
                judged(&loss(survival, noise), coarse, kept, Some(&behaviour(kl)))
            })
            .collect();
        let kept: Vec<f64> = verdicts.iter().map(|verdict| verdict.kept.unwrap()).collect();
        assert!(kept.is_sorted_by(|a, b| a > b), "{kept:?}");
        let effects: Vec<&str> = verdicts.iter().map(|verdict| verdict.effect).collect();
        assert_eq!(effects, ["kept", "kept", "kept", "kept", "weakened", "weakened", "weakened", "lost"]);
        assert!(
            verdicts[2].text.starts_with("the adapter's effect is kept: 98.7 % of it is left"),
            "{}",
            verdicts[2].text
        );
        assert!(verdicts[2].text.ends_with(", on 752 tokens"), "{}", verdicts[2].text);
        // Only what lost something is given advice.
        assert!(verdicts.iter().all(|verdict| verdict.advice.is_some() == (verdict.effect != "kept")));
    }

    #[test]
    fn without_a_run_behaviour_is_unknown() {
        let verdict = |loss: &Loss, coarse, kept| judged(loss, coarse, kept, None);
        let cases = [
            (verdict(&loss(0.02, 1.05), true, None), "lost", By::Survival),
            (verdict(&loss(0.6, 0.9), true, None), "weakened", By::Survival),
            (verdict(&loss(0.98, 9.1), true, None), "noisy", By::Survival),
            (verdict(&loss(1.0, 0.1), true, None), "kept", By::Survival),
            // At 16 bits noise of half a delta is a fraction of a percent of the weights.
            (verdict(&loss(0.898, 0.49), false, None), "kept", By::Survival),
            (verdict(&loss(0.4, 0.9), false, None), "weakened", By::Survival),
            // What is too strong is not weakened.
            (verdict(&loss(1.48, 9.0), true, None), "noisy", By::Survival),
            (verdict(&loss(1.3, 0.35), true, None), "noisy", By::Survival),
            (verdict(&loss(1.3, 0.35), false, None), "noisy", By::Survival),
            // Under noise that hides it, a strength in the weights is no one's strength.
            (verdict(&loss(0.39, 43.0), true, None), "noisy", By::Survival),
            (verdict(&loss(0.7, 9.0), true, Some(1.6)), "noisy", By::KeptOutput),
            // A strong output may still be under noise, a weak one is weak.
            (verdict(&loss(0.7, 9.0), true, Some(0.98)), "unknown", By::KeptOutput),
            (verdict(&loss(0.7, 9.0), true, Some(0.5)), "weakened", By::KeptOutput),
            (verdict(&loss(0.7, 9.0), true, Some(0.1)), "lost", By::KeptOutput),
            // Few tokens do not tell a strength well.
            (by_outputs(1.27, Seen::Few), "unknown", By::KeptOutput),
            (by_outputs(1.27, Seen::Many), "noisy", By::KeptOutput),
            (by_outputs(0.6, Seen::Few), "weakened", By::KeptOutput),
            (by_outputs(0.1, Seen::Few), "lost", By::KeptOutput),
        ];
        for (verdict, effect, by) in cases {
            assert_eq!((verdict.effect, verdict.by), (effect, Some(by)), "{verdict:?}");
            assert!(verdict.text.contains("Behaviour is unknown"), "{verdict:?}");
        }
        let strong = verdict(&loss(1.3, 0.35), true, None).text;
        assert!(strong.contains("too strong") && !strong.contains("noise"), "{strong}");
    }

    #[test]
    fn few_tokens_make_a_rough_share() {
        let few = Behaviour::new(&[0.004, 0.004], &[0.323, 0.323], 0.95, 94, "of a.txt".into());
        assert!(judged(&loss(1.0, 1.0), true, None, Some(&few)).text.contains("about 98.8 %"));
        let uneven = Behaviour::new(&[0.0, 0.1], &[0.3, 0.3], 0.95, 752, "of a.txt".into());
        let text = judged(&loss(1.0, 1.0), true, None, Some(&uneven)).text;
        assert!(text.contains("about 83.3 ± 16.7 %"), "{text}");
    }

    #[test]
    fn what_has_no_share_has_its_own_words() {
        let of = |behaviour: Behaviour| judged(&loss(1.0, 0.1), true, None, Some(&behaviour));
        let broken = of(behaviour(f64::NAN));
        assert_eq!((broken.effect, broken.kept), ("broken", None));
        let nothing = of(Behaviour::new(&[0.0, 0.0], &[0.0, 0.0], 1.0, 752, String::new()));
        assert_eq!((nothing.effect, nothing.kept), ("none", None));
        let worse = of(behaviour(0.4));
        assert_eq!(worse.effect, "lost");
        assert!(worse.text.contains("less like the adapter than the base alone does"), "{}", worse.text);
        let zero = Loss { survival: None, ..loss(0.0, 0.0) };
        assert_eq!(judged(&zero, true, None, Some(&behaviour(0.0))).effect, "none");
        assert_eq!(
            (converted(1).effect, replaced(2, true).effect, replaced(2, false).effect),
            ("converted", "kept", "unknown")
        );
        assert!(!converted(3).text.contains("delta"));
    }
}
