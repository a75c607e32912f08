//! `qmerge generate`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use qmerge::error::{self, Error};
use qmerge::plan::Plan;
use qmerge::progress::{Progress, Silent};
use qmerge_run::generate::{self, Sampling, generate};
use qmerge_run::model::half_of_free_memory;
use qmerge_run::tensors::Tensors;
use qmerge_run::text::{Message, Tokenizer};
use qmerge_run::{Model, Options};
use serde::Serialize;

use super::{apart_options, open_with, usage};
use crate::args::{Engine, GenerateArgs};
use crate::{Outcome, show};

/// What a model takes besides the weights it holds: code, the tokenizer, activations of one sequence.
const BESIDE: u64 = 256 << 20;

/// Why a continuation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    /// The model ended it.
    Stop,
    /// It has as many tokens as were asked for.
    MaxTokens,
    /// It is as long as any text that the model was made for.
    Context,
}

/// A continuation.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) text: String,
    pub(crate) prompt_tokens: usize,
    pub(crate) tokens: usize,
    pub(crate) finish_reason: Finish,
    /// Without the first, which waits for the prompt.
    pub(crate) tokens_per_second: Option<f64>,
    /// Speed at which stored weights went through the processor.
    pub(crate) bytes_per_second: Option<f64>,
}

/// What ends a chat.
const EXIT: &str = "/exit";

pub(crate) fn run(args: &GenerateArgs) -> Result<Outcome> {
    let is_terminal = std::io::stdin().is_terminal();
    match args.prompt.as_deref() {
        None if args.chat || is_terminal => return chat(args, is_terminal),
        Some("-") => {
            let prompt = Some(read_prompt()?);
            told(&find(&GenerateArgs { prompt, ..args.clone() }, &Silent, &mut print)?, args)?;
        }
        _ => told(&find(args, &Silent, &mut print)?, args)?,
    }
    Ok(Outcome::Done)
}

/// Shows a piece of an answer.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Ends an answer, and says what is to be known of it.
fn told(found: &Found, args: &GenerateArgs) -> Result<()> {
    print("\n")?;
    if let (Some(speed), Some(bytes), false) = (found.tokens_per_second, found.bytes_per_second, args.quiet) {
        let tokens = show::counted(found.tokens, "token");
        show::note(&format!("{tokens}, {speed:.1} tokens/s, {:.1} GB/s of weights", bytes / 1e9));
    }
    match found.finish_reason {
        Finish::MaxTokens if !args.quiet => show::note(&format!("cut off at --max-tokens {}", args.max_tokens)),
        Finish::Context if !args.quiet => show::note("cut off: the model was made for no longer text"),
        _ => {}
    }
    Ok(())
}

/// Answers line by line, until there are no more.
fn chat(args: &GenerateArgs, is_terminal: bool) -> Result<Outcome> {
    // A template that cannot be followed is told before anybody writes.
    let probe =
        |tokenizer: &Tokenizer| tokenizer.chat(&[beginning(args), vec![Message::new("user", "Hello")]].concat());
    opened(args, &Silent, probe, |voice, _| {
        let lost = |error| Error::io("read", Path::new("(standard input)"), error);
        let mut messages = beginning(args);
        if is_terminal && !args.quiet {
            show::note(&format!("a line is a message; {EXIT} ends the chat"));
        }
        let mut lines = std::io::stdin().lines();
        loop {
            if is_terminal {
                let mut terminal = std::io::stderr();
                terminal.write_all(b"> ").and_then(|()| terminal.flush()).map_err(lost)?;
            }
            let line = match lines.next().transpose().map_err(lost)? {
                None => break,
                Some(line) if line.trim() == EXIT => break,
                Some(line) if line.trim().is_empty() => continue,
                Some(line) => line,
            };
            let mut heard = messages.clone();
            heard.push(Message::new("user", line));
            let tokens = voice.within(&mut heard)?;
            let most = voice.model.spec().max_positions;
            if tokens.len() >= most {
                show::note(&format!(
                    "a message of {} tokens is too long for a model of {most}: it is passed over",
                    tokens.len()
                ));
                continue;
            }
            let found = voice.answer(&tokens, &Silent, &mut print)?;
            told(&found, args)?;
            heard.push(Message::new("assistant", found.text));
            messages = heard;
        }
        Ok(Outcome::Done)
    })
}

/// What stands before the first message.
fn beginning(args: &GenerateArgs) -> Vec<Message> {
    args.system.iter().map(|text| Message::new("system", text)).collect()
}

/// All of the standard input, without the line's end that a shell puts behind it.
fn read_prompt() -> error::Result<String> {
    let place = Path::new("(standard input)");
    let text = std::io::read_to_string(std::io::stdin()).map_err(|error| Error::io("read", place, error))?;
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
}

/// Continues the prompt. `each` gets the text as it comes, and ends it with an error.
pub(crate) fn find(
    args: &GenerateArgs,
    progress: &dyn Progress,
    each: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> error::Result<Found> {
    let Some(text) = &args.prompt else {
        return Err(usage("there is nothing to continue".into())
            .with_hint("give a --prompt, or --chat to read messages from the standard input, a line each"));
    };
    if args.system.is_some() && !args.chat {
        return Err(usage("--system is a part of a chat".into()).with_hint("say --chat too"));
    }
    let prompt = |tokenizer: &Tokenizer| {
        let prompt = match args.chat {
            true => tokenizer.chat(&[beginning(args), vec![Message::new("user", text)]].concat())?,
            false => tokenizer.encode_prompt(text)?,
        };
        match prompt.is_empty() {
            true if text.is_empty() => {
                Err(usage("the prompt holds no tokens".into()).with_hint("give a --prompt that is not empty"))
            }
            true => Err(tokenizer.knows_nothing()),
            false => Ok(prompt),
        }
    };
    opened(args, progress, prompt, |voice, prompt| voice.answer(&prompt, progress, each))
}

/// A model with what it takes to let it speak.
struct Voice<'a> {
    args: &'a GenerateArgs,
    tokenizer: &'a Tokenizer,
    model: &'a Model<'a>,
}

/// Opens the model, with its adapters apart, and lets it speak; the prompt is made before that takes its time.
fn opened<P, T, E: From<Error>>(
    args: &GenerateArgs,
    progress: &dyn Progress,
    prompt: impl FnOnce(&Tokenizer) -> error::Result<P>,
    then: impl FnOnce(&Voice<'_>, P) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        let problem = usage(format!("--temperature is {}: it must be 0 or more", args.temperature));
        return Err(problem
            .with_hint("0 takes the most likely token, 1 draws by the model's own probabilities")
            .into());
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        let problem = usage(format!("--top-p is {}: it must be above 0, and 1 at most", args.top_p));
        return Err(problem.with_hint("1 draws among all tokens").into());
    }
    let inputs = open_with(args.model.base(), &args.adapter)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning, &args.scaling)?)?;
    let tokenizer = Tokenizer::of(&inputs)?;
    let prompt = prompt(&tokenizer)?;
    let engine = options(&args.engine, 1, BESIDE, progress)?;
    let tensors = Tensors::new(&inputs, Some(&plan));
    let model = Model::new(&tensors, engine)?;
    then(&Voice { args, tokenizer: &tokenizer, model: &model }, prompt)
}

impl Voice<'_> {
    /// The tokens of a chat. The oldest messages behind what `--system` says are forgotten where they leave no room for an answer.
    fn within(&self, messages: &mut Vec<Message>) -> error::Result<Vec<u32>> {
        let first = beginning(self.args).len();
        loop {
            let tokens = self.tokenizer.chat(messages)?;
            let most = self.model.spec().max_positions;
            if tokens.len().saturating_add(self.args.max_tokens) <= most || messages.len() <= first + 1 {
                return Ok(tokens);
            }
            // A question and its answer.
            messages.drain(first..(first + 2).min(messages.len() - 1));
        }
    }

    /// Continues a prompt. `each` gets the text as it comes, and ends it with an error.
    fn answer(
        &self,
        prompt: &[u32],
        progress: &dyn Progress,
        each: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> error::Result<Found> {
        let Self { args, tokenizer, model } = self;
        tokenizer.check(prompt, model.spec().vocab)?;
        let sampling = Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed };
        let (mut tokens, mut written) = (Vec::new(), tokenizer.written());
        let mut show = |text: String| text.is_empty() || each(&text).is_ok();
        let mut clock = None;
        progress.start(generate::work(model, prompt.len(), args.max_tokens));
        progress.phase("writing", "tokens");
        generate(model, prompt, args.max_tokens, sampling, tokenizer.stop(), |token| {
            clock.get_or_insert_with(Instant::now);
            tokens.push(token);
            progress.part(tokens.len() as u64, args.max_tokens as u64);
            written.push(token).is_ok_and(&mut show)
        })?;
        show(written.finish()?);
        let seconds = clock.map(|clock| clock.elapsed().as_secs_f64()).filter(|_| tokens.len() > 1);
        let finish_reason = if tokens.len() == args.max_tokens {
            Finish::MaxTokens
        } else if prompt.len() + tokens.len() > model.spec().max_positions {
            Finish::Context
        } else {
            Finish::Stop
        };
        let tokens_per_second = seconds.map(|seconds| (tokens.len() - 1) as f64 / seconds);
        Ok(Found {
            text: tokenizer.decode(&tokens)?,
            prompt_tokens: prompt.len(),
            tokens: tokens.len(),
            finish_reason,
            tokens_per_second,
            bytes_per_second: tokens_per_second.map(|speed| model.bytes_per_token() as f64 * speed),
        })
    }
}

/// Options for one of `models` models in memory together.
pub(super) fn options<'a>(
    args: &Engine,
    models: u64,
    beside: u64,
    progress: &'a dyn Progress,
) -> error::Result<Options<'a>> {
    let held = match args.max_memory {
        Some(limit) if limit < beside => {
            let (given, needed) = (limit >> 20, beside.div_ceil(1 << 20));
            return Err(usage(format!("--max-memory {given}M is not enough: running takes at least {needed}M")));
        }
        Some(limit) => Some((limit - beside) / models),
        None => Some(half_of_free_memory() / models),
    };
    Ok(Options { threads: args.workers.threads, held, progress: Some(progress) })
}
