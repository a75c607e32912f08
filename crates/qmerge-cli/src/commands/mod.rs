//! One file per command: arguments become the library's options, and its answers become text.

pub(crate) mod calibrate;
pub(crate) mod combine;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod convert_adapter;
pub(crate) mod demo;
pub(crate) mod extract;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
mod next;
pub(crate) mod on;
mod promote;
pub(crate) mod report;
pub(crate) mod rounding;
pub(crate) mod shell;
pub(crate) mod truncate;
pub(crate) mod unmerge;
pub(crate) mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qmerge::adapters::{Adapter, InputFactors, ReadOptions, Scales};
use qmerge::edit::Joining;
use qmerge::error::{Error, Kind, Result};
use qmerge::formats::{self, Format, Settings};
use qmerge::merge::RunOptions;
use qmerge::plan::{EXPORTS, Export, Importance, Inputs, Options, Plan, Promotion};
use qmerge::write::{Existing, Sink};
use serde::Serialize;

use crate::args::{Meaning, Quantization, Running, Scaling, Sources, Tuned, adapter_and_weight};
use crate::progress::Bar;
use crate::show;

/// How an answer is to be printed.
#[derive(Clone, Copy, Debug)]
struct Spoken {
    /// As a document.
    json: bool,
    /// Not at all, unless it is a document.
    quiet: bool,
}

/// Has an answer found behind a progress bar, and prints it: as JSON, by `show`, or where it is to be quiet not at all.
fn answered<T: Serialize>(
    Spoken { json, quiet }: Spoken,
    find: impl FnOnce(&Bar) -> Result<T>,
    show: impl FnOnce(&T),
) -> anyhow::Result<T> {
    let bar = Bar::new(quiet);
    let found = find(&bar);
    bar.clear();
    let found = found?;
    if json {
        show::json(&found)?;
    } else if !quiet {
        show(&found);
    }
    Ok(found)
}

fn usage(message: String) -> Error {
    Error::new(Kind::Usage, message)
}

fn open(sources: &Sources) -> Result<Inputs> {
    open_with(sources.base(), &sources.adapter)
}

fn open_with(base: &Path, adapters: &[String]) -> Result<Inputs> {
    let base = qmerge_store::checkpoint(base)?;
    Inputs::new(base, open_adapters(adapters)?)
}

/// The same with tuned models behind the adapters.
fn open_both(sources: &Sources, tuned: &Tuned) -> Result<Inputs> {
    let mut inputs = open(sources)?;
    for text in &tuned.tuned {
        let (path, weight) = adapter_and_weight(text).map_err(usage)?;
        inputs.adapters.push(qmerge_store::tuned(&path, weight)?);
    }
    Ok(inputs)
}

fn open_adapters(adapters: &[String]) -> Result<Vec<Adapter>> {
    let open = |text: &String| {
        let (path, weight) = adapter_and_weight(text).map_err(usage)?;
        qmerge_store::adapter(&path, weight)
    };
    adapters.iter().map(open).collect()
}

/// A format of the base's container, or another container; neither where the output is as the base.
type Wanted = (Option<&'static dyn Format>, Option<&'static dyn Export>);

/// What `--to` asks for. Some names are of both, and then the output's name tells.
fn target(id: &str, output: &Path) -> Result<Wanted> {
    if id == "same" {
        return Ok((None, None));
    }
    let export = EXPORTS.iter().copied().find(|export| export.id() == id);
    let is_format = formats::FORMATS.iter().any(|format| format.id() == id && format.is_made());
    let named = |export: &&dyn Export| output.to_string_lossy().ends_with(export.ending());
    match export.filter(|export| !is_format || named(export)) {
        Some(export) => Ok((None, Some(export))),
        None => Ok((Some(formats::by_id(id)?), None)),
    }
}

/// An importance matrix, for an export that goes by it.
fn importance(export: Option<&dyn Export>, path: Option<&Path>) -> Result<Option<Arc<Importance>>> {
    let path = path.filter(|_| export.is_some_and(Export::quantizes));
    path.map(|path| Importance::open(path).map(Arc::new)).transpose()
}

/// The options that settings of formats are given by.
fn given(args: &Quantization) -> impl Iterator<Item = (&'static str, &'static str, String)> {
    let pairs = [
        ("--bits", "bits", args.bits.map(|bits| bits.to_string())),
        ("--block-size", "block_size", args.block_size.map(|size| size.to_string())),
        ("--double-quant", "double_quant", args.double_quant.map(|is_double| is_double.to_string())),
        ("--quant-storage", "quant_storage", args.quant_storage.clone()),
        ("--torch-threads", "torch_threads", args.torch_threads.map(|threads| threads.to_string())),
    ];
    pairs.into_iter().filter_map(|(option, name, value)| Some((option, name, value?)))
}

fn settings(args: &Quantization) -> Settings {
    given(args).fold(Settings::default(), |settings, (_, name, value)| settings.with(name, value))
}

/// Settings that no weight of the output takes are refused, not ignored.
fn refuse_unused(args: &Quantization, plan: &Plan) -> Result<()> {
    let Some((option, name, _)) = given(args).find(|(_, name, _)| !plan.takes_setting(name)) else { return Ok(()) };
    let mut of_scales = false;
    let mut formats = Vec::new();
    for format in formats::FORMATS {
        for setting in format.settings().iter().filter(|setting| setting.name == name) {
            of_scales |= setting.of_scales;
            formats.push(format.id().to_uppercase());
        }
    }
    let formats = formats.join(" or ");
    let why = if of_scales {
        format!("no weight of this output takes fresh scales of {formats}")
    } else {
        format!("no weight of this output changes to {formats}")
    };
    Err(usage(format!("{option} is of no use: {why}"))
        .with_hint(format!("leave it out: what is {formats} already keeps its own")))
}

/// The place of an output that lies at an address; `None` for a path. Errors if it may not be written, or holds an input.
fn sink(inputs: &Inputs, output: &Path, running: &Running) -> Result<Option<Box<dyn Sink>>> {
    let existing = Existing { force: running.force, resume: running.resume };
    let Some(sink) = qmerge_store::sink(output, existing)? else { return Ok(None) };
    let adapters = inputs.adapters.iter().map(|adapter| adapter.path.as_path());
    let original = inputs.original.iter().map(|original| original.checkpoint.path.as_path());
    let place = qmerge_store::Address::parse(output)?;
    let within = |source: &Path| {
        let other = qmerge_store::Address::parse(source).ok().flatten();
        place.as_ref().zip(other).is_some_and(|(place, other)| place.holds(&other))
    };
    if std::iter::once(inputs.base.path.as_path()).chain(adapters).chain(original).any(within) {
        return Err(usage("the output would replace an input".into())
            .in_file(sink.path())
            .with_hint("choose another output"));
    }
    Ok(Some(sink))
}

/// Options of a plan that nobody writes: the adapter is kept apart, or compared with.
fn apart_options(args: &Meaning, scaling: &Scaling) -> Result<Options> {
    Ok(Options {
        maps: args.map.clone(),
        read: read_options(args, scaling, None)?,
        allow_unused: args.allow_unused,
        // Nothing is written, so types that cannot be written do not matter.
        promote: Some(Promotion::default()),
        ..Options::default()
    })
}

fn read_options(args: &Meaning, scaling: &Scaling, tuned: Option<&Tuned>) -> Result<ReadOptions> {
    Ok(ReadOptions {
        base_is_residual: args.base_is_residual,
        peft_bugs: args.peft_bugs,
        scales: Scales::new(&scaling.lora_scale)?,
        input_factors: InputFactors::default(),
        joining: tuned.map_or(Ok(Joining::default()), Tuned::joining)?,
    })
}

/// Asked once the inputs are open, whose places may hold something besides.
fn run_options(args: &Running, command: &str) -> RunOptions<'static> {
    RunOptions {
        threads: args.threads,
        max_memory: args.max_memory,
        beside: qmerge_store::held(),
        existing: Existing { force: args.force, resume: args.resume },
        started: Some(Instant::now()),
        command: Some(command.to_owned()),
        ..RunOptions::default()
    }
}
