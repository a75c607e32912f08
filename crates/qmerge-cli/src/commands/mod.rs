//! One file per command: arguments become the library's options, and its answers become text.

pub(crate) mod calibrate;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
mod next;
pub(crate) mod report;
mod rounding;
pub(crate) mod shell;
pub(crate) mod truncate;
pub(crate) mod verify;

use std::path::Path;
use std::time::Instant;

use qmerge::adapters::{Adapter, ReadOptions};
use qmerge::dtype::Dtype;
use qmerge::error::{Error, Kind, Result};
use qmerge::formats::{self, Settings};
use qmerge::merge::RunOptions;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::write::Existing;

use crate::args::{Meaning, Quantization, Running, Sources, adapter_and_weight};

fn usage(message: String) -> Error {
    Error::new(Kind::Usage, message)
}

fn open(sources: &Sources) -> Result<Inputs> {
    open_with(sources.base(), &sources.adapter)
}

fn open_with(base: &Path, adapters: &[String]) -> Result<Inputs> {
    let base = Checkpoint::open(base)?;
    let adapters = adapters
        .iter()
        .map(|text| {
            let (path, weight) = adapter_and_weight(text).map_err(usage)?;
            Adapter::open(&path, weight)
        })
        .collect::<Result<Vec<_>>>()?;
    Inputs::new(base, adapters)
}

fn format(id: &str) -> Result<Option<&'static dyn formats::Format>> {
    Ok(if id == "same" { None } else { Some(formats::by_id(id)?) })
}

fn settings(args: &Quantization) -> Result<Settings> {
    let default = Settings::default();
    let quant_storage = args.quant_storage.as_deref().map_or(Ok(default.quant_storage), |name| {
        Dtype::from_torch_name(name)
            .filter(|dtype| matches!(dtype, Dtype::U8 | Dtype::F16 | Dtype::BF16 | Dtype::F32))
            .ok_or_else(|| usage(format!("`--quant-storage {name}` is none of uint8, float16, bfloat16, float32")))
    })?;
    Ok(Settings {
        block_size: args.block_size.unwrap_or(default.block_size),
        double_quant: args.double_quant.unwrap_or(default.double_quant),
        quant_storage,
        torch_threads: args.torch_threads.map_or(default.torch_threads, |threads| threads as usize),
    })
}

/// Settings that no weight of the output takes are refused, not ignored.
fn refuse_unused(args: &Quantization, plan: &Plan) -> Result<()> {
    let anew = [
        (args.block_size.is_some(), "--block-size"),
        (args.double_quant.is_some(), "--double-quant"),
        (args.quant_storage.is_some(), "--quant-storage"),
    ];
    let found = match anew.iter().find(|(given, _)| *given) {
        Some((_, option)) if !plan.takes_settings(true) => (option, "no weight of this output changes to NF4 or FP4"),
        _ if args.torch_threads.is_some() && !plan.takes_settings(false) => {
            (&"--torch-threads", "no weight of this output takes fresh scales of NF4 or FP4")
        }
        _ => return Ok(()),
    };
    Err(usage(format!("{} is of no use: {}", found.0, found.1))
        .with_hint("leave it out: what is NF4 or FP4 already keeps its own"))
}

/// Worker threads, where 0 stands for one per processor.
fn threads(given: usize) -> usize {
    match given {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

/// Options of a plan that nobody writes: the adapter is kept apart, or compared with.
fn apart_options(args: &Meaning) -> Options {
    Options { maps: args.map.clone(), read: read_options(args), allow_unused: args.allow_unused, ..Options::default() }
}

fn read_options(args: &Meaning) -> ReadOptions {
    ReadOptions { base_is_residual: args.base_is_residual, peft_bugs: args.peft_bugs }
}

fn run_options(args: &Running, command: &str) -> RunOptions<'static> {
    RunOptions {
        threads: args.threads,
        max_memory: args.max_memory,
        existing: Existing { force: args.force, resume: args.resume },
        started: Some(Instant::now()),
        command: Some(command.to_owned()),
        ..RunOptions::default()
    }
}
