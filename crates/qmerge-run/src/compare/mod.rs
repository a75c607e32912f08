//! Models side by side on a text: what a merge costs in behaviour, against the adapter kept apart.
//!
//! The text is cut into windows that do not overlap and that the models see from a fresh start, each after the tokens that the tokenizer begins a text with
//! (BOS), which are not scored; where it adds none, a window's first token is not scored either. What is left at the end is left out. `kl` is the mean of KL(apart ‖ model) over tokens, in nats; its standard error is that of
//! the windows' means, since tokens of a window are not independent.

mod score;

use std::time::Instant;

use qmerge::error::{Error, Kind, Result};
use qmerge::progress::Progress;
use qmerge::report::{Behaviour, Verdict};
use serde::Serialize;

pub(crate) use score::{COLUMNS, divergence, score_all};
use score::{Sums, score_work};

use crate::generate::{self, Sampling, generate};
use crate::linear::Precision;
use crate::model::Model;
use crate::text::Tokenizer;

/// A model and what it is called.
#[derive(Debug)]
pub struct Candidate<'m, 'a> {
    /// "base", "apart", or what else is compared: the path of a merge or of another adapter.
    pub name: String,
    /// The model.
    pub model: &'m Model<'a>,
}

/// What is compared on.
#[derive(Clone, Debug)]
pub struct Task {
    /// Where the text came from.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Tokens that every window begins with beside its own: as the tokenizer begins a text. They are not scored.
    pub begin: Vec<u32>,
    /// Tokens of the text in a window.
    pub context: usize,
    /// Most windows.
    pub windows: Option<usize>,
    /// Prompts to continue greedily, each as tokens.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens of a continuation.
    pub continuation: usize,
    /// Tokens that go through a model at a time.
    pub batch: usize,
}

impl Task {
    /// The first token of a window whose continuation is scored: the last of those that it begins with, or the first of the text's.
    fn from(&self) -> usize {
        self.begin.len().saturating_sub(1)
    }

    /// Tokens of a window that are scored.
    fn scored(&self) -> usize {
        self.begin.len() + self.context - 1 - self.from()
    }
}

/// The answer; the names of its fields are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Version of the document.
    pub schema_version: u32,
    /// Where the text came from.
    pub text: String,
    /// Tokens of a window.
    pub context: usize,
    /// Windows.
    pub windows: usize,
    /// Scored tokens.
    pub tokens: usize,
    /// Prompts that were continued, as text.
    pub prompts: Vec<String>,
    /// One per model; the reference is "apart".
    pub models: Vec<Figures>,
}

/// One model's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// "base", "apart", or what else is compared: the path of a merge or of another adapter.
    pub name: String,
    /// Mean negative log-likelihood, nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Mean KL(apart ‖ this).
    pub kl: f64,
    /// Standard error of `kl`; `None` with one window.
    pub kl_se: Option<f64>,
    /// `kl` / `kl` of the base: the share of the adapter's effect that is lost; `None` where the adapter changes nothing.
    pub kl_share: Option<f64>,
    /// Share of tokens where both find the same token most likely.
    pub top1: f64,
    /// (loss of the base − this loss) / (loss of the base − loss apart); `None` where that gain is not above twice its standard error, by the windows.
    pub gain_kept: Option<f64>,
    /// Mean number of leading tokens that its greedy continuations share with those of the adapter apart.
    pub first_divergence: Option<f64>,
    /// Speed of greedy continuation.
    pub tokens_per_second: Option<f64>,
    /// Its continuations as text, in the order of the prompts.
    pub generations: Vec<String>,
    /// What is left of the adapter's effect, in words; `None` for base and apart.
    pub verdict: Option<Verdict>,
}

/// Runs all models, which must have been loaded with the same `progress`. One of them must be called "apart".
pub fn compare(
    candidates: &[Candidate<'_, '_>],
    task: &Task,
    tokenizer: &Tokenizer,
    progress: &dyn Progress,
) -> Result<Comparison> {
    let apart = candidates.iter().position(|candidate| candidate.name == "apart");
    let apart = apart.ok_or_else(|| Error::new(Kind::Bug, "nothing to compare with"))?;
    if task.windows == Some(0) {
        return Err(Error::new(Kind::Usage, "no windows score nothing").with_hint("give --windows a number above 0"));
    }
    if task.context < 2 {
        return Err(Error::new(Kind::Usage, "a context of less than 2 tokens scores nothing")
            .with_hint("give a larger --context"));
    }
    let windows: Vec<Vec<u32>> = task
        .tokens
        .chunks_exact(task.context)
        .take(task.windows.unwrap_or(usize::MAX))
        .map(|window| [&task.begin[..], window].concat())
        .collect();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    if windows.is_empty() {
        let problem = format!("only {} of the {} tokens that a window takes", task.tokens.len(), task.context);
        return Err(Error::new(Kind::Mismatch, problem)
            .in_file(std::path::Path::new(&task.text))
            .with_hint("give a longer text or a smaller --context"));
    }
    let known = candidates[apart].model.spec().vocab;
    for tokens in windows.iter().copied().chain(task.prompts.iter().map(Vec::as_slice)) {
        tokenizer.check(tokens, known)?;
        candidates.iter().try_for_each(|candidate| candidate.model.fits(tokens.len()))?;
        for Candidate { name, model } in candidates {
            let known = model.spec().vocab;
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= known) {
                let problem = format!("it knows {known} tokens, and what it is to read has one of id {token}");
                return Err(Error::new(Kind::Mismatch, problem).in_file(std::path::Path::new(name)).with_hint(
                    "it is made of another model than the adapter's base, or without the tokens that the adapter adds",
                ));
            }
        }
    }
    progress.start(text_work(candidates, task, windows.len()) + prompts_work(candidates, task));
    progress.phase("comparing", "windows");
    let sums = score_all(candidates, &windows, task.from(), task.batch, COLUMNS, apart, progress)?;
    let tokens = windows.len() * task.scored();
    let mut models: Vec<Figures> =
        candidates.iter().zip(&sums).map(|(c, sums)| figures(&c.name, sums, tokens)).collect();
    // What others are measured against must be numbers; a merge that is not has a verdict that says so.
    for model in models.iter().filter(|model| ["base", "apart"].contains(&model.name.as_str())) {
        if !model.loss.is_finite() {
            let what = if model.name == "base" { "the base" } else { "the base with the adapter kept apart" };
            return Err(Error::new(Kind::NotFinite, format!("{what} predicts what is not finite"))
                .in_file(std::path::Path::new(&task.text))
                .with_hint(
                    "its activations overflow on this text: check the base and the adapter, or give another text",
                ));
        }
    }
    if let Some(base) = models.iter().position(|model| model.name == "base") {
        judge(&mut models, &sums, base, apart, task);
    }
    continue_prompts(candidates, task, tokenizer, apart, &mut models, progress)?;
    Ok(Comparison {
        schema_version: 1,
        text: task.text.clone(),
        context: task.context,
        windows: windows.len(),
        tokens,
        prompts: task.prompts.iter().map(|prompt| tokenizer.decode(prompt)).collect::<Result<_>>()?,
        models,
    })
}

/// Adds what follows from the base's figures and those with the adapter kept apart.
fn judge(models: &mut [Figures], sums: &[Sums], base: usize, apart: usize, task: &Task) {
    let before = models[base].loss;
    let gain = before - models[apart].loss;
    let gains: Vec<f64> =
        sums[base].window_loss.iter().zip(&sums[apart].window_loss).map(|(before, after)| before - after).collect();
    // One window alone does not tell how sure its gain is.
    let gain_se = standard_error(&gains).unwrap_or(0.0);
    let is_gain = gain > (2.0 * gain_se).max(1e-9);
    for (number, (model, own)) in models.iter_mut().zip(sums).enumerate() {
        // Of an adapter that raises the loss nothing is gained that could be kept, and of a gain that may be none any share may be.
        model.gain_kept = is_gain.then(|| (before - model.loss) / gain);
        let tokens = own.window_kl.len() * task.scored();
        let behaviour =
            Behaviour::new(&own.window_kl, &sums[base].window_kl, model.top1, tokens, format!("of {}", task.text));
        model.kl_share = behaviour.kl_share;
        if number == base || number == apart {
            continue;
        }
        let mut verdict = behaviour.verdict();
        match model.gain_kept.filter(|gain| gain.is_finite()) {
            Some(kept) => {
                verdict.text += &format!(
                    "; it keeps {:.1} % of what the adapter gains in loss",
                    (1000.0 * kept).round() / 10.0 + 0.0
                )
            }
            None if gain < -1e-9 => verdict.text += "; the adapter does not lower the loss on this text",
            None if gain > 1e-9 && !is_gain => {
                verdict.text += &format!(
                    "; the adapter may not lower the loss on this text at all (by {gain:.4} ± {gain_se:.4}), so no share of that is told"
                )
            }
            None => {}
        }
        model.verdict = Some(verdict);
    }
}

/// Work of the text.
fn text_work(candidates: &[Candidate<'_, '_>], task: &Task, windows: usize) -> u64 {
    let length = task.begin.len() + task.context;
    let batch = (task.batch / length).max(1);
    let scored = |from: usize| COLUMNS.min(task.scored() - from);
    let window: u64 = (0..task.scored())
        .step_by(COLUMNS)
        .map(|from| {
            let logits: u64 =
                candidates.iter().map(|candidate| candidate.model.logits_work(Precision::Full, scored(from))).sum();
            logits + score_work(candidates, scored(from))
        })
        .sum();
    let pass = |count: usize| -> u64 {
        let seen = length.div_ceil(2);
        candidates.iter().map(|candidate| candidate.model.pass_work(Precision::Full, count * length, seen)).sum()
    };
    let last = windows % batch;
    windows as u64 * window + (windows / batch) as u64 * pass(batch) + if last > 0 { pass(last) } else { 0 }
}

fn prompts_work(candidates: &[Candidate<'_, '_>], task: &Task) -> u64 {
    let each = |candidate: &Candidate<'_, '_>| -> u64 {
        task.prompts.iter().map(|prompt| generate::work(candidate.model, prompt.len(), task.continuation)).sum()
    };
    candidates.iter().map(each).sum()
}

/// Of the mean of windows' means; `None` of one window.
fn standard_error(means: &[f64]) -> Option<f64> {
    let windows = means.len() as f64;
    let mean = means.iter().sum::<f64>() / windows;
    let variance = means.iter().map(|own| (own - mean) * (own - mean)).sum::<f64>() / (windows - 1.0);
    (windows > 1.0).then(|| (variance / windows).sqrt())
}

fn figures(name: &str, sums: &Sums, tokens: usize) -> Figures {
    let n = tokens as f64;
    Figures {
        name: name.to_owned(),
        loss: sums.loss / n,
        perplexity: libm::exp(sums.loss / n),
        kl: sums.kl / n,
        kl_se: standard_error(&sums.window_kl),
        top1: sums.same as f64 / n,
        kl_share: None,
        gain_kept: None,
        first_divergence: None,
        tokens_per_second: None,
        generations: Vec::new(),
        verdict: None,
    }
}

fn continue_prompts(
    candidates: &[Candidate<'_, '_>],
    task: &Task,
    tokenizer: &Tokenizer,
    apart: usize,
    models: &mut [Figures],
    progress: &dyn Progress,
) -> Result<()> {
    if task.prompts.is_empty() {
        return Ok(());
    }
    let mut all: Vec<Vec<Vec<u32>>> = Vec::new();
    progress.phase("continuing prompts", "continuations");
    let (mut written, continuations) = (0, (candidates.len() * task.prompts.len()) as u64);
    for (candidate, figures) in candidates.iter().zip(&mut *models) {
        let (mut answers, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
        for prompt in &task.prompts {
            // The clock starts with the first token: the prompt goes in at another speed.
            let mut since = Instant::now();
            let mut count = 0;
            let answer =
                generate(candidate.model, prompt, task.continuation, Sampling::default(), tokenizer.stop(), |_| {
                    count += 1;
                    if count == 1 {
                        since = Instant::now();
                    }
                    true
                })?;
            tokens += answer.len().saturating_sub(1);
            seconds += since.elapsed().as_secs_f64();
            figures.generations.push(tokenizer.decode(&answer)?);
            answers.push(answer);
            written += 1;
            progress.part(written, continuations);
        }
        figures.tokens_per_second = (tokens > 0).then(|| tokens as f64 / seconds.max(1e-9));
        all.push(answers);
    }
    for (answers, figures) in all.iter().zip(models) {
        let shared = |(a, b): (&Vec<u32>, &Vec<u32>)| a.iter().zip(b).take_while(|(a, b)| a == b).count() as f64;
        let sum: f64 = answers.iter().zip(&all[apart]).map(shared).sum();
        figures.first_divergence = Some(sum / answers.len() as f64);
    }
    Ok(())
}
