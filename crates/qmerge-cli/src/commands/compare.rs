//! `qmerge compare`.

use std::path::Path;

use anyhow::Result;
use qmerge::error::{self, Error, Kind};
use qmerge::plan::{Inputs, Plan};
use qmerge::progress::Progress;
use qmerge::report::{RESIDUAL_FOLDER, Verdict};
use qmerge_run::compare::{Candidate, Comparison, Task, compare};
use qmerge_run::tensors::Tensors;
use qmerge_run::text::Tokenizer;
use qmerge_run::{Model, Options};
use qmerge_store::Address;

use super::generate::options;
use super::next::{self, Made};
use super::{Spoken, answered, apart_options, open_both, open_with};
use crate::args::CompareArgs;
use crate::page::{self, Form};
use crate::{Outcome, show};

/// Tokens that go through a model at a time, where memory allows.
const BATCH: usize = 1024;
/// Tokens of a prompt that is taken from the text.
const PROMPT: usize = 32;
/// Prompts that are taken from the text.
const PROMPTS: usize = 4;

pub(crate) fn run(args: &CompareArgs) -> Result<Outcome> {
    answered(
        Spoken { json: args.json, quiet: args.quiet },
        |bar| find(args, bar),
        |found| {
            show::comparison(found);
            next(args, found);
        },
    )?;
    if !args.quiet {
        show::written(args.report.as_deref());
    }
    Ok(Outcome::Done)
}

/// To try the best of the merges; to merge, where there is none that is worth it.
fn next(args: &CompareArgs, found: &Comparison) {
    let judged = found.models.iter().filter_map(|model| Some((model.verdict.as_ref()?, &model.name)));
    let merges = judged.filter_map(|(verdict, name)| {
        let merged = args.merged.iter().find(|path| path.display().to_string() == *name)?;
        Some((verdict, merged))
    });
    let kept = |verdict: &Verdict| verdict.kept.unwrap_or(f64::NEG_INFINITY);
    match merges.max_by(|(a, _), (b, _)| kept(a).total_cmp(&kept(b))) {
        Some((verdict, merged)) if ["kept", "weakened"].contains(&verdict.effect) => drop(next::try_it(merged)),
        Some((verdict, _)) if verdict.effect == "none" => {}
        _ if !args.beside.is_empty() => {}
        _ => Made { sources: &args.sources, tuned: &args.tuned, meaning: &args.meaning, scaling: &args.scaling }
            .merge(Path::new("merged"), None),
    }
}

/// Runs all models on the text.
pub(crate) fn find(args: &CompareArgs, progress: &dyn Progress) -> error::Result<Comparison> {
    let form = args.report.as_deref().map(page::form).transpose()?;
    args.report.as_deref().map_or(Ok(()), page::refuse_report)?;
    let inputs = open_both(&args.sources, &args.tuned)?;
    let others_apart = apart_options(&args.meaning, &args.scaling)?;
    let mut apart = others_apart.clone();
    apart.read.joining = args.tuned.joining()?;
    let plan = Plan::new(&inputs, &apart)?;
    let merged = args
        .merged
        .iter()
        .map(|path| Inputs::new(qmerge_store::checkpoint(path)?, Vec::new()))
        .collect::<error::Result<Vec<_>>>()?;
    let others = others(args, &merged)?;
    let other_plans =
        others.iter().map(|(_, inputs)| Plan::new(inputs, &others_apart)).collect::<error::Result<Vec<_>>>()?;
    progress.phase("reading the text", "");
    let tokenizer = Tokenizer::of(&inputs)?;
    let text = read_text(&args.text)?;
    let tokens = tokenizer.encode(&text)?;
    let prompts = prompts(args, &tokenizer, &tokens)?;
    let models = (2 + merged.len() + others.len()) as u64;
    let batch = BATCH.max(args.context);
    let (batch, besides) = match args.engine.max_memory {
        None => (batch, 0),
        Some(limit) => {
            let bare = Options { threads: 1, held: Some(0), progress: None };
            let bare = Model::new(&Tensors::new(&inputs, None), bare)?;
            let batch = if beside(&bare, BATCH, models) > limit { args.context } else { batch };
            (batch, beside(&bare, batch, models))
        }
    };
    let engine = options(&args.engine, models, besides, progress)?;
    let base = Model::new(&Tensors::new(&inputs, None), engine)?;
    let apart = Model::new(&Tensors::new(&inputs, Some(&plan)), engine)?;
    let merges = merged
        .iter()
        .map(|inputs| Model::new(&Tensors::new(inputs, None), engine))
        .collect::<error::Result<Vec<_>>>()?;
    let beside = others
        .iter()
        .zip(&other_plans)
        .map(|((_, inputs), plan)| Model::new(&Tensors::new(inputs, Some(plan)), engine))
        .collect::<error::Result<Vec<_>>>()?;
    let mut candidates =
        vec![Candidate { name: "base".into(), model: &base }, Candidate { name: "apart".into(), model: &apart }];
    for (path, model) in args.merged.iter().zip(&merges) {
        candidates.push(Candidate { name: path.display().to_string(), model });
    }
    for ((name, _), model) in others.iter().zip(&beside) {
        candidates.push(Candidate { name: name.clone(), model });
    }
    let task = Task {
        text: args.text.display().to_string(),
        tokens,
        begin: tokenizer.begin().to_vec(),
        context: args.context,
        windows: args.windows,
        prompts,
        continuation: args.continuation,
        batch,
    };
    let found = compare(&candidates, &task, &tokenizer, progress)?;
    if let (Some(path), Some(form)) = (&args.report, form) {
        write_report(args, path, form, &found)?;
    }
    Ok(found)
}

/// What models go on from: the lines of a file, or beginnings of the text's windows.
fn prompts(args: &CompareArgs, tokenizer: &Tokenizer, tokens: &[u32]) -> error::Result<Vec<Vec<u32>>> {
    match &args.prompts {
        Some(path) => {
            let text = read_text(path)?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| tokenizer.encode_prompt(line)).collect()
        }
        None if args.continuation == 0 => Ok(Vec::new()),
        None => {
            let windows = tokens.chunks_exact(args.context.max(1)).take(PROMPTS);
            Ok(windows.map(|window| [tokenizer.begin(), &window[..PROMPT.min(window.len())]].concat()).collect())
        }
    }
}

fn write_report(args: &CompareArgs, path: &Path, form: Form, found: &Comparison) -> error::Result<()> {
    let document = serde_json::to_value(found).unwrap_or_default();
    match form {
        Form::Json => page::write_json(path, &document),
        Form::Html => {
            let mut reports: Vec<_> = args.merged.iter().filter_map(|merged| super::report::of_merge(merged)).collect();
            // One report makes the page of one merge.
            if reports.len() == 1 && args.merged.len() > 1 {
                reports.clear();
            }
            page::write(path, &reports, Some(&document))
        }
    }
}

/// Models with an adapter apart that are judged too: the base with each of `--beside`, and each merge with the residual adapter that came with it.
fn others(args: &CompareArgs, merged: &[Inputs]) -> error::Result<Vec<(String, Inputs)>> {
    let beside =
        args.beside.iter().map(|text| Ok((text.clone(), open_with(args.sources.base(), std::slice::from_ref(text))?)));
    let residual = args.merged.iter().zip(merged).filter_map(|(path, merged)| {
        let folder = merged.base.path.join(RESIDUAL_FOLDER);
        folder.join("adapter_config.json").is_file().then(|| {
            let inputs = Inputs::new(qmerge_store::checkpoint(path)?, vec![qmerge_store::adapter(&folder, 1.0)?])?;
            Ok((format!("{} + {RESIDUAL_FOLDER}", path.display()), inputs))
        })
    });
    residual.chain(beside).collect()
}

/// Memory beside the weights: activations of a batch, its states for each model, logits of some columns, the program.
fn beside(model: &Model<'_>, batch: usize, models: u64) -> u64 {
    let spec = model.spec();
    let states = (models as usize + 1) * spec.hidden;
    let logits = (models as usize + 1) * 64 * spec.vocab;
    // A batch is as long as a context, which may be any number.
    let values = batch.saturating_mul(model.activations() + states).saturating_add(logits) as u64;
    values.saturating_mul(4).saturating_add(128 << 20)
}

/// A text file. Errors if it is not UTF-8 or empty.
/// Longest text that is read from an address, bytes.
const MAX_TEXT: u64 = 256 << 20;

pub(super) fn read_text(path: &Path) -> error::Result<String> {
    let (bytes, path) = match Address::parse(path)? {
        Some(address) => (address.small(MAX_TEXT)?, address.shown().to_path_buf()),
        None => (std::fs::read(path).map_err(|error| Error::input(path, error))?, path.to_path_buf()),
    };
    let path = path.as_path();
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(Kind::Malformed, format!("not UTF-8: the byte at {at}"))
            .in_file(path)
            .with_hint("give plain text, saved as UTF-8")
    })?;
    if text.trim().is_empty() {
        return Err(Error::new(Kind::Malformed, "the text is empty").in_file(path).with_hint("give plain text"));
    }
    Ok(text)
}
