//! Options that several commands have, or that belong together.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::values::{Scratch, joinings, scratch, seconds, share, size, tokens};
use qmerge::edit::{Joining, Majority};
use qmerge::error::{Error, Kind, Result};
use qmerge_run::calibrate::Amount;

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct Sources {
    /// Base and adapters without their options. One word alone is the adapter, which names its base.
    #[arg(value_name = "BASE ADAPTER[=WEIGHT]")]
    pub(crate) words: Vec<String>,
    /// Base model: a folder, a .safetensors or .gguf file, or a hub id (default: the one that the adapter names).
    #[arg(long, short = 'm', visible_alias = "model", aliases = BASE_ALIASES, value_name = "BASE")]
    pub(crate) base: Option<PathBuf>,
    /// Adapter folder or hub id, with an optional factor on its effect; may be given several times.
    #[arg(long, short, visible_alias = "lora", aliases = ADAPTER_ALIASES, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
}

/// Models that were trained whole, of which a merge takes what they differ from the base by.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct Tuned {
    /// Model that was trained whole from the base, in any format: its difference from the base is merged, times an optional factor; may be given several times.
    #[arg(long, value_name = "TUNED[=WEIGHT]")]
    pub(crate) tuned: Vec<String>,
    /// How differences of tuned models are joined (default: their weighted sum).
    #[arg(long, value_name = "METHOD", value_parser = joinings(), requires = "tuned", hide_short_help = true)]
    tuned_method: Option<String>,
    /// Share of its values that each difference keeps, for the methods that drop some.
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "tuned", hide_short_help = true)]
    density: Option<f64>,
    /// What elects a sign, for `ties` and `dare_ties`: the sum of values, or their number (default: total).
    #[arg(long, value_name = "HOW", value_parser = ["total", "frequency"], requires = "tuned", hide_short_help = true)]
    majority_sign: Option<String>,
    /// Seed of what `dare` draws (default: 0).
    #[arg(long, value_name = "N", requires = "tuned", hide_short_help = true)]
    tuned_seed: Option<u64>,
}

impl Tuned {
    /// How differences are joined.
    pub(crate) fn joining(&self) -> Result<Joining> {
        let majority = majority(self.majority_sign.as_deref().unwrap_or_default());
        let joining = Joining::new(
            self.tuned_method.as_deref().unwrap_or(Joining::default().operator.id()),
            self.density,
            majority,
            self.tuned_seed.unwrap_or(0),
        )?;
        let (operator, id) = (joining.operator, joining.operator.id());
        let idle = [
            ("--majority-sign", self.majority_sign.is_some() && !operator.votes(), "lets no signs vote"),
            ("--tuned-seed", self.tuned_seed.is_some() && !operator.draws(), "draws nothing"),
        ];
        match idle.iter().find(|(_, is_idle, _)| *is_idle) {
            Some((option, _, why)) => {
                Err(Error::new(Kind::Usage, format!("{option} is of no use: {id} {why}")).with_hint("leave it out"))
            }
            None => Ok(joining),
        }
    }
}

/// What elects a sign.
pub(crate) fn majority(name: &str) -> Majority {
    if name == "frequency" { Majority::Frequency } else { Majority::Total }
}

impl Sources {
    /// The base. It is there once the words of the command line have their places.
    pub(crate) fn base(&self) -> &Path {
        self.base.as_deref().unwrap_or(Path::new(""))
    }
}

/// A merge and adapters that are in it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct Merged {
    /// Merge and adapters without their options.
    #[arg(value_name = "MERGED ADAPTER[=WEIGHT]")]
    words: Vec<String>,
    /// The merge: a folder, a .safetensors or .gguf file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", aliases = BASE_ALIASES, value_name = "MERGED")]
    base: Option<PathBuf>,
    /// Adapter folder or hub id that is in it, with the factor that it was merged with; may be given several times.
    #[arg(long, short, visible_alias = "lora", aliases = ADAPTER_ALIASES, value_name = "ADAPTER[=WEIGHT]")]
    adapter: Vec<String>,
    /// The same once words have their places.
    #[arg(skip)]
    pub(crate) sources: Sources,
}

impl Merged {
    /// Takes what was typed for sources, once.
    pub(crate) fn take(&mut self) -> &mut Sources {
        self.sources.words.append(&mut self.words);
        self.sources.adapter.append(&mut self.adapter);
        self.sources.base = self.base.take().or(self.sources.base.take());
        &mut self.sources
    }
}

/// A model that has to be named.
#[derive(Clone, Debug, Args)]
pub(crate) struct Model {
    /// Base model without its option.
    #[arg(value_name = "BASE", required_unless_present = "base")]
    word: Option<PathBuf>,
    /// Base model: a folder, a .safetensors or .gguf file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", aliases = BASE_ALIASES, value_name = "BASE", conflicts_with = "word")]
    base: Option<PathBuf>,
}

impl Model {
    /// The base, as it was named.
    pub(crate) fn base(&self) -> &Path {
        self.base.as_deref().or(self.word.as_deref()).unwrap_or(Path::new(""))
    }
}

/// A base, and a model that was trained from it.
#[derive(Debug, Args)]
pub(crate) struct Trained {
    /// Both without their options.
    #[arg(value_name = "BASE TUNED")]
    pub(super) words: Vec<PathBuf>,
    /// Base model: a folder, a .safetensors or .gguf file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", aliases = BASE_ALIASES, value_name = "BASE")]
    base: Option<PathBuf>,
    /// The model that was trained from it: a folder, a .safetensors or .gguf file, or a hub id.
    #[arg(long, value_name = "TUNED")]
    tuned: Option<PathBuf>,
}

impl Trained {
    /// Gives words their places.
    pub(crate) fn place_words(&mut self) -> Result<()> {
        let mut words = std::mem::take(&mut self.words).into_iter();
        self.base = self.base.take().or_else(|| words.next());
        self.tuned = self.tuned.take().or_else(|| words.next());
        if self.base.is_none() || self.tuned.is_none() || words.next().is_some() {
            return Err(Error::new(Kind::Usage, "a base and one tuned model have to be named")
                .with_hint("write `BASE TUNED`, or --base and --tuned"));
        }
        Ok(())
    }

    /// The two. They are there once the words have their places.
    pub(crate) fn both(&self) -> [&Path; 2] {
        [&self.base, &self.tuned].map(|named| named.as_deref().unwrap_or(Path::new("")))
    }
}

/// What other tools call a base, an adapter and an output.
const BASE_ALIASES: [&str; 4] = ["base-model", "base_model", "model-name-or-path", "model_name_or_path"];
pub(super) const ADAPTER_ALIASES: [&str; 5] =
    ["adapter-path", "lora-model-dir", "lora_model_dir", "adapter-name-or-path", "adapter_name_or_path"];
pub(super) const OUTPUT_ALIASES: [&str; 6] =
    ["save-path", "output-dir", "output_dir", "out", "export-dir", "export_dir"];

/// Choices on what adapters mean.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What the adapter means")]
pub(crate) struct Meaning {
    /// Translate names of the adapter: a regular expression and what it becomes ($1 for groups); may be given several times.
    #[arg(long, value_name = "REGEX=>NAME", hide_short_help = true)]
    pub(crate) map: Vec<String>,
    /// Leave out adapter tensors that match nothing in the base (they are listed in the report).
    #[arg(long)]
    pub(crate) allow_unused: bool,
    /// The base already is the residual model of a PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ initialisation.
    #[arg(long, hide_short_help = true)]
    pub(crate) base_is_residual: bool,
    /// Take an adapter to mean what PEFT's merge writes, where that contradicts its own forward pass.
    #[arg(long, hide_short_help = true)]
    pub(crate) peft_bugs: bool,
}

/// Factors on what adapters do.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What the adapter means")]
pub(crate) struct Scaling {
    /// Factor on what all adapters do in modules whose path the regular expression is found in; the first that is found counts. May be given several times.
    #[arg(long, value_name = "REGEX=FACTOR", hide_short_help = true)]
    pub(crate) lora_scale: Vec<String>,
}

/// Choices on the output's format.
#[derive(Debug, Args)]
#[command(next_help_heading = "How codes are stored")]
pub(crate) struct Quantization {
    /// NF4 and FP4: quantize the scales too (default: true).
    #[arg(long, value_name = "BOOL", hide_short_help = true)]
    pub(crate) double_quant: Option<bool>,
    /// gptq, mlx and hqq: bits of a code (default: 4; gptq has 4 and 8, mlx 2 to 6 and 8, hqq 1 to 6 and 8).
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) bits: Option<usize>,
    /// Elements per scale: NF4 and FP4 (default: 64), ct-int4 and gptq (128), mlx and hqq (64).
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) block_size: Option<usize>,
    /// NF4 and FP4: type that the packed codes are viewed as (default: uint8).
    #[arg(long, value_name = "TYPE", hide_short_help = true)]
    pub(crate) quant_storage: Option<String>,
    /// NF4 and FP4: sum mean scales as torch does on this many threads; the last bit of some scales depends on it (default: 1).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)]
    pub(crate) torch_threads: Option<u32>,
}

/// How the work is done.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct Running {
    /// Print the plan and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace an existing output or report; without --resume give up an unfinished output too.
    #[arg(long, alias = "overwrite")]
    pub(crate) force: bool,
    /// Go on where an interrupted run of the same command stopped.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Worker threads (default: one per processor). The output does not depend on it.
    #[arg(long, short = 't', value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Most memory to use, like 300M or 2G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<u64>,
    /// Folder of this machine that holds up to so much (default: 8G) of what is read more than once from an address, as weights that do not fit into memory.
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = scratch, hide_short_help = true)]
    pub(crate) scratch: Option<Scratch>,
    /// Also write the report to this file: .json, or .html for a page with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What rounding goes by.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Rounding")]
pub(crate) struct Calibrating {
    /// Text like the model's task, to see what its layers are given (default: text that the model writes itself).
    #[arg(long, value_name = "TEXT", conflicts_with = "fast")]
    pub(crate) calibrate: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) amount: CalibrationAmount,
    /// What `qmerge calibrate` or `qmerge.torch.calibrate` stored for this base, or a folder of such files, which add up: the model is not run for that (default: what was taken in training and lies beside the adapter).
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fast", "calibrate", "calibration_tokens", "calibration_time"])]
    pub(crate) calibration: Option<PathBuf>,
    /// llama.cpp's importance matrix of this model, as `imatrix.dat` or GGUF: it knows each input's size alone, not how inputs go together.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fast", "calibrate", "calibration", "calibration_tokens", "calibration_time"], hide_short_help = true)]
    pub(crate) imatrix: Option<PathBuf>,
    /// The 16-bit checkpoint that the base was quantized from: without a calibration, or with --rounding original, it is rounded with the delta in place of the base.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calibrate", "calibration", "imatrix"], hide_short_help = true)]
    pub(crate) original: Option<PathBuf>,
    /// Into the base's own format: round by few tokens that the model writes, in few passes, and do not measure: faster, keeps less.
    #[arg(long, conflicts_with_all = ["calibration_tokens", "calibration_time"])]
    pub(crate) fast: bool,
    /// With --fast: do not run the model at all, and round by what the adapter itself reads of its inputs.
    #[arg(long, requires = "fast", hide_short_help = true)]
    pub(crate) no_run: bool,
    /// Seed of everything that is drawn.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
}

/// How much is calibrated on.
#[derive(Clone, Debug, Args)]
pub(crate) struct CalibrationAmount {
    /// Tokens to calibrate on, 1024 at least (default: 3072 that the model writes itself, or 6144 of a text).
    #[arg(long, value_name = "N", value_parser = tokens, hide_short_help = true)]
    pub(crate) calibration_tokens: Option<usize>,
    /// As many tokens as take about so long on one thread, like 90s, 20m or 2h. How many those are is computed from the model's size, so it is the same on every machine.
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "calibration_tokens", hide_short_help = true)]
    pub(crate) calibration_time: Option<f64>,
}

impl CalibrationAmount {
    /// What was asked for.
    pub(crate) fn amount(&self) -> Amount {
        match (self.calibration_tokens, self.calibration_time) {
            (Some(tokens), _) => Amount::Tokens(tokens),
            (None, Some(seconds)) => Amount::Seconds(seconds),
            (None, None) => Amount::Usual,
        }
    }

    /// The option that was given.
    pub(crate) fn option(&self) -> Option<&'static str> {
        let tokens = self.calibration_tokens.map(|_| "--calibration-tokens");
        tokens.or(self.calibration_time.map(|_| "--calibration-time"))
    }
}

/// Text that a model writes.
#[derive(Debug, Args)]
pub(crate) struct Writing {
    /// Seed of the text that the model writes.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
}

/// When a merge is run and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// Where the merge is calibrated and the model can be run.
    Auto,
    /// Whatever the method: the model is run.
    Always,
    /// Never: what is left of the adapter in behaviour stays unknown.
    Never,
}

/// How a merge is judged.
#[derive(Debug, Args)]
#[command(next_help_heading = "Measuring")]
pub(crate) struct Measuring {
    /// Run the merged model at the end, on text that the calibration did not see, to measure what is left of the adapter in what it predicts.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value = "auto",
        hide_short_help = true,
        help_heading = "Output"
    )]
    pub(crate) measure: Measure,
    /// Fail (exit status 1) if less than this share of the adapter's effect on what the model predicts is kept; measures it whatever the method.
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Output")]
    pub(crate) min_kept: Option<f64>,
    /// The same by the best that is known: by what the model predicts where it is measured, else by layers' outputs, else by the delta in the weights.
    #[arg(long, value_name = "SHARE", value_parser = share, hide_short_help = true, help_heading = "Output")]
    pub(crate) min_survival: Option<f64>,
}

impl Measuring {
    /// When to measure; a threshold on what is measured asks for it.
    pub(crate) fn when(&self) -> std::result::Result<Measure, String> {
        match (self.min_kept, self.measure) {
            (Some(_), Measure::Never) => Err("--min-kept measures the merge, and --measure never does not".into()),
            (Some(_), _) => Ok(Measure::Always),
            (None, when) => Ok(when),
        }
    }
}

/// Who does the work.
#[derive(Clone, Debug, Args)]
pub(crate) struct Workers {
    /// Worker threads (default: one per processor).
    #[arg(long, short = 't', value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
}

/// How a model is run.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct Engine {
    #[command(flatten)]
    pub(crate) workers: Workers,
    /// Most memory to use, like 2G; weights that do not fit are read again whenever they are used.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<u64>,
    /// Folder of this machine that holds up to so much (default: 8G) of what is read more than once from an address, as weights that do not fit into memory.
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = scratch, hide_short_help = true)]
    pub(crate) scratch: Option<Scratch>,
}
