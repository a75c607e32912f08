//! The options of commands that make adapters.

use std::path::{Path, PathBuf};

use clap::Args;
use qmerge::arithmetic::Wanted;
use qmerge::dtype::Dtype;

use super::groups::{CalibrationAmount, Engine, Meaning, OUTPUT_ALIASES, Scaling, Sources, Trained, Workers, Writing};
use super::values::{combinations, floats, share, threads};

#[derive(Debug, Args)]
pub(crate) struct TruncateArgs {
    /// Adapter without its option.
    #[arg(value_name = "ADAPTER", required_unless_present = "adapter")]
    word: Option<PathBuf>,
    /// Adapter folder or hub id: a LoRA.
    #[arg(long, short, visible_alias = "lora", value_name = "ADAPTER", conflicts_with = "word")]
    adapter: Option<PathBuf>,
    /// The new rank, of all modules.
    #[arg(long, short, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rank: u32,
    /// Output folder.
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Base model, to keep what counts on its layers' inputs (default: what is largest in the adapter's own values).
    #[arg(long, short = 'm', visible_alias = "model", value_name = "BASE")]
    pub(crate) base: Option<PathBuf>,
    /// Text like the model's task, to see what its layers are given (default: text that the model writes itself).
    #[arg(long, value_name = "TEXT")]
    pub(crate) calibrate: Option<PathBuf>,
    /// What `qmerge calibrate` stored for this base: the model is not run.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["calibrate", "calibration_tokens", "calibration_time"])]
    pub(crate) calibration: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) amount: CalibrationAmount,
    #[command(flatten)]
    pub(crate) writing: Writing,
    /// Element type of the new factors.
    #[arg(long, value_name = "DTYPE", default_value = "same", value_parser = ["same", "f32", "f16", "bf16"])]
    pub(crate) dtype: String,
    /// Replace an existing output.
    #[arg(long, alias = "overwrite")]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl TruncateArgs {
    /// The adapter, as it was named.
    pub(crate) fn adapter(&self) -> &Path {
        self.adapter.as_deref().or(self.word.as_deref()).unwrap_or(Path::new(""))
    }
}

/// How an adapter that is made is written.
#[derive(Debug, Args)]
pub(crate) struct Made {
    /// Element type of the factors.
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16"])]
    dtype: String,
    /// Replace an existing output.
    #[arg(long, alias = "overwrite")]
    pub(crate) force: bool,
    #[command(flatten)]
    workers: Workers,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Made {
    /// Element type of the factors.
    pub(crate) fn dtype(&self) -> Dtype {
        floats(&self.dtype).unwrap_or(Dtype::F32)
    }

    /// Threads to work with.
    pub(crate) fn threads(&self) -> usize {
        threads(self.workers.threads)
    }
}

/// The rank that differences are cut to.
#[derive(Debug, Args)]
pub(crate) struct Cut {
    /// The rank of all modules.
    #[arg(long, short, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// In place of a rank: each module gets the one that holds this share of what is added to it, squared.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    energy: Option<f64>,
    /// Seed of what large matrices are searched with.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
}

impl Cut {
    /// True if it was said.
    pub(crate) fn is_given(&self) -> bool {
        self.rank.is_some() || self.energy.is_some()
    }

    /// What each module is to have.
    pub(crate) fn wanted(&self) -> Wanted {
        let by_energy = Wanted::Share(self.energy.unwrap_or(1.0));
        self.rank.map_or(by_energy, |rank| Wanted::Rank(rank as usize))
    }
}

#[derive(Debug, Args)]
pub(crate) struct CombineArgs {
    /// Adapters without their options.
    #[arg(value_name = "ADAPTER[=WEIGHT]", required_unless_present = "adapter")]
    pub(crate) words: Vec<String>,
    /// Adapter folder or hub id, a LoRA, with an optional factor on its effect; given once for each.
    #[arg(long, short, visible_alias = "lora", value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
    /// Output folder.
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// How (default: `exact`, or `svd` with --rank).
    #[arg(long, value_name = "METHOD", value_parser = combinations())]
    pub(crate) method: Option<String>,
    /// The new rank, of all modules, for the methods that take one (default: the largest of the adapters').
    #[arg(long, short, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rank: Option<u32>,
    /// Share of its values that each adapter keeps, for `ties`, `dare` and `magnitude_prune`.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) density: Option<f64>,
    /// What elects a sign, for `ties`: the sum of values, or their number (default: total).
    #[arg(long, value_name = "HOW", value_parser = ["total", "frequency"])]
    pub(crate) majority_sign: Option<String>,
    /// Seed of what `dare` draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Factor on what all adapters do in modules whose path the regular expression is found in; the first that is found counts. May be given several times.
    #[arg(long, value_name = "REGEX=FACTOR")]
    pub(crate) lora_scale: Vec<String>,
    /// Base model, whose modules the adapters change, for --calibration.
    #[arg(long, short = 'm', visible_alias = "model", value_name = "BASE", requires = "calibration")]
    pub(crate) base: Option<PathBuf>,
    /// What `qmerge calibrate` stored for the base: directions are those that count on its layers' inputs, for the methods that take a rank.
    #[arg(long, value_name = "PATH", requires = "base")]
    pub(crate) calibration: Option<PathBuf>,
    /// The adapters belong to the same residual model of a PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ initialisation, and so will the new one.
    #[arg(long, hide_short_help = true)]
    pub(crate) base_is_residual: bool,
    #[command(flatten)]
    pub(crate) made: Made,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("wanted").required(true).args(["rank", "energy"])))]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) trained: Trained,
    /// Output folder.
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) cut: Cut,
    /// What `qmerge calibrate` stored for the base: directions are those that count on its layers' inputs.
    #[arg(long, value_name = "PATH")]
    pub(crate) calibration: Option<PathBuf>,
    /// Leave out what is no linear layer's weight: embeddings, heads, norms, biases (default: where they differ they are taken whole).
    #[arg(long)]
    pub(crate) no_full: bool,
    #[command(flatten)]
    pub(crate) made: Made,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("wanted").args(["rank", "energy"])))]
pub(crate) struct ConvertAdapterArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// Output folder, or .gguf file.
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What is written: a folder as PEFT's, which needs a rank, or a file for llama.cpp.
    #[arg(long, value_name = "FORMAT", default_value = "peft", value_parser = ["peft", "gguf-lora"])]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) cut: Cut,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) made: Made,
}
