//! The command line as typed. Parsing checks values and does nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use qmerge::formats::FORMATS;
use qmerge::round::ROUNDINGS;

/// Merge LoRA adapters into plain and quantized checkpoints on disk, whole, checked and measured.
#[derive(Debug, Parser)]
#[command(name = "qmerge", bin_name = "qmerge", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// Whether to use colour: auto, always or never.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "General"
    )]
    pub(crate) color: Color,
    /// Print every row of a table.
    #[arg(long, short, global = true, help_heading = "General")]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Parses a command line, the program's name first. What looks like a negative number is a value, and its option says what it thinks of it.
    pub(crate) fn read<T: Into<OsString> + Clone>(words: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        fn with_negative_numbers(command: clap::Command) -> clap::Command {
            command
                .mut_args(|arg| match arg.get_action().takes_values() && !arg.is_positional() {
                    true => arg.allow_negative_numbers(true),
                    false => arg,
                })
                .mut_subcommands(with_negative_numbers)
        }
        let mut command = with_negative_numbers(Self::command());
        let matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Merge one or more adapters into a base model.
    #[command(
        visible_alias = "fuse",
        after_help = "Examples:\n  qmerge merge my-lora -o merged\n  qmerge merge base-nf4 my-lora -o merged\n  \
                      qmerge merge --base base-nf4 --adapter my-lora --to bf16 -o merged-bf16\n  \
                      qmerge merge --base base --adapter a=0.7 --adapter b=0.3 -o both\n  \
                      qmerge merge --base base --adapter my-lora -o merged --dry-run\n\n\
                      Exit status: 0 done, 1 less is left than --min-kept or --min-survival asks for, 2 wrong use or unfit input, 3 reading or writing failed."
    )]
    Merge(Box<MergeArgs>),
    /// Show what is in a checkpoint or an adapter.
    #[command(after_help = "Examples:\n  qmerge inspect base-nf4\n  qmerge inspect my-lora --json")]
    Inspect(InspectArgs),
    /// Change the format of a model, without an adapter.
    #[command(after_help = "Examples:\n  qmerge convert --base base-nf4 --to bf16 -o base-bf16\n  \
                            qmerge convert --base base-bf16 --to nf4 -o base-nf4")]
    Convert(Box<ConvertArgs>),
    /// Tell whether an adapter was applied, to which tensors, and with what loss; also for merges made by other tools.
    #[command(after_help = "Examples:\n  qmerge verify --base base-nf4 --adapter my-lora --merged merged\n\n\
                            Exit status: 0 applied and kept, 1 not (or lost to rounding), 2 wrong use or unfit input, \
                            3 reading failed, 4 too little evidence.")]
    Verify(Box<VerifyArgs>),
    /// Compare base, adapter kept apart and merges on a text: loss, KL divergence, agreement, speed, continuations.
    #[command(
        after_help = "Examples:\n  qmerge compare --base base-nf4 --adapter my-lora --merged merged --text eval.txt\n  \
                            qmerge compare --base base-nf4 --adapter my-lora --merged a --merged b --text eval.txt --windows 8 --json\n  \
                            qmerge compare --base base-nf4 --adapter my-lora --beside my-lora-r2 --beside my-lora-r4 --text eval.txt"
    )]
    Compare(Box<CompareArgs>),
    /// Store what the layers of a base are given, to round many adapters of it without running it again.
    #[command(
        after_help = "Examples:\n  qmerge calibrate --base base-nf4 --text my-task.txt -o calibration.safetensors\n  \
                            qmerge merge --base base-nf4 --adapter my-lora --calibration calibration.safetensors -o merged"
    )]
    Calibrate(Box<CalibrateArgs>),
    /// Cut an adapter to a lower rank, to serve it beside the untouched base; `compare --beside` tells what that costs.
    #[command(after_help = "Examples:\n  qmerge truncate --adapter my-lora --rank 2 --base base-nf4 -o my-lora-r2\n  \
                            qmerge truncate --adapter my-lora --rank 2 --base base-nf4 --calibrate my-task.txt -o my-lora-r2\n  \
                            qmerge compare --base base-nf4 --adapter my-lora --beside my-lora-r2 --text eval.txt")]
    Truncate(Box<TruncateArgs>),
    /// Continue a prompt with a model, or with a base and its adapter kept apart.
    #[command(
        after_help = "Examples:\n  qmerge generate --base base-nf4 --adapter my-lora --prompt \"In the beginning\"\n  \
                            qmerge generate --base merged --chat --prompt \"Who are you?\" --temperature 0.7 --seed 1"
    )]
    Generate(Box<GenerateArgs>),
    /// Show a merge's report, a comparison, or both as one page of HTML that needs no network.
    #[command(after_help = "Examples:\n  qmerge report merged/qmerge-report.json -o merged.html\n  \
                            qmerge report merged/qmerge-report.json compare.json -o merged.html")]
    Report(ReportArgs),
    /// Merge the small trained model that comes with the program, and show the report.
    Demo(DemoArgs),
    /// Print a script that completes qmerge's commands and options in a shell.
    #[command(
        after_help = "Examples:\n  qmerge completions bash > ~/.local/share/bash-completion/completions/qmerge\n  \
                            qmerge completions zsh > ~/.zfunc/_qmerge\n  \
                            qmerge completions fish > ~/.config/fish/completions/qmerge.fish"
    )]
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page per command into a folder.
    #[command(after_help = "Examples:\n  qmerge man | man -l -\n  qmerge man -o ~/.local/share/man/man1")]
    Man(ManArgs),
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct Sources {
    /// Base and adapters without their options. One word alone is the adapter, which names its base.
    #[arg(value_name = "BASE ADAPTER[=WEIGHT]")]
    pub(crate) words: Vec<String>,
    /// Base model: a folder, a .safetensors file, or a hub id (default: the one that the adapter names).
    #[arg(long, short = 'm', visible_alias = "model", aliases = BASE_ALIASES, value_name = "BASE")]
    pub(crate) base: Option<PathBuf>,
    /// Adapter folder or hub id, with an optional factor on its effect; may be given several times.
    #[arg(long, short, visible_alias = "lora", aliases = ADAPTER_ALIASES, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
}

impl Sources {
    /// The base. It is there once the words of the command line have their places.
    pub(crate) fn base(&self) -> &Path {
        self.base.as_deref().unwrap_or(Path::new(""))
    }
}

/// What other tools call a base, an adapter and an output.
const BASE_ALIASES: [&str; 4] = ["base-model", "base_model", "model-name-or-path", "model_name_or_path"];
const ADAPTER_ALIASES: [&str; 5] =
    ["adapter-path", "lora-model-dir", "lora_model_dir", "adapter-name-or-path", "adapter_name_or_path"];
const OUTPUT_ALIASES: [&str; 6] = ["save-path", "output-dir", "output_dir", "out", "export-dir", "export_dir"];

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
    /// The base already is the residual model of a PiSSA, OLoRA, CorDA or LoftQ initialisation.
    #[arg(long, hide_short_help = true)]
    pub(crate) base_is_residual: bool,
    /// Take an adapter to mean what PEFT's merge writes, where that contradicts its own forward pass.
    #[arg(long, hide_short_help = true)]
    pub(crate) peft_bugs: bool,
}

/// Choices on the output's format.
#[derive(Debug, Args)]
#[command(next_help_heading = "How NF4 and FP4 are stored")]
pub(crate) struct Quantization {
    /// NF4 and FP4: quantize the scales too (default: true).
    #[arg(long, value_name = "BOOL", hide_short_help = true)]
    pub(crate) double_quant: Option<bool>,
    /// NF4 and FP4: elements per scale (default: 64).
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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    /// Where it goes to a terminal, and NO_COLOR is not set.
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenizerArg {
    /// The adapter's where it has one, else the base's.
    Adapter,
    /// The base's.
    Base,
}

/// What rounding goes by.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rounding")]
pub(crate) struct Calibrating {
    /// Text like the model's task, to see what its layers are given (default: text that the model writes itself).
    #[arg(long, value_name = "TEXT", conflicts_with = "fast")]
    pub(crate) calibrate: Option<PathBuf>,
    /// What `qmerge calibrate` stored for this base: the model is not run for that.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fast", "calibrate"])]
    pub(crate) calibration: Option<PathBuf>,
    /// The 16-bit checkpoint that the base was quantized from: without a calibration, or with --rounding original, it is rounded with the delta in place of the base.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calibrate", "calibration"], hide_short_help = true)]
    pub(crate) original: Option<PathBuf>,
    /// Round without running the model: faster, keeps less.
    #[arg(long)]
    pub(crate) fast: bool,
    /// Seed of everything that is drawn.
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
    pub(crate) fn when(&self) -> Result<Measure, String> {
        match (self.min_kept, self.measure) {
            (Some(_), Measure::Never) => Err("--min-kept measures the merge, and --measure never does not".into()),
            (Some(_), _) => Ok(Measure::Always),
            (None, when) => Ok(when),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// Output folder (or .safetensors file).
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT", help_heading = "Output")]
    pub(crate) output: PathBuf,
    /// Format of the output.
    #[arg(long, alias = "dtype", value_name = "FORMAT", default_value = "same", value_parser = formats(true), help_heading = "Output")]
    pub(crate) to: String,
    /// The same as --to bf16.
    #[arg(long, hide = true, conflicts_with = "to")]
    pub(crate) dequantize: bool,
    /// How codes are chosen.
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = roundings(), help_heading = "Rounding")]
    pub(crate) rounding: String,
    #[command(flatten)]
    pub(crate) calibrating: Calibrating,
    /// Also write what rounding leaves as a LoRA of this rank, into the output's folder `residual-adapter`.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true, help_heading = "Output")]
    pub(crate) residual_rank: Option<u32>,
    #[command(flatten)]
    pub(crate) measuring: Measuring,
    /// Whose tokenizer and chat template the output takes.
    #[arg(long, value_enum, default_value = "adapter", help_heading = "Output")]
    pub(crate) tokenizer: TokenizerArg,
    /// Say at the end how to upload the output to this repository on the hub; nothing is uploaded.
    #[arg(long, value_name = "REPO_ID", value_parser = repo_id, hide_short_help = true, help_heading = "Output")]
    pub(crate) push: Option<String>,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) quantization: Quantization,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Base model: a folder, a .safetensors file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Adapter that the model runs with, like those to be merged (default: none).
    #[arg(long, short, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
    /// Text like the model's task (default: text that the model writes itself).
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<PathBuf>,
    /// Output file.
    #[arg(long, short, value_name = "FILE.safetensors")]
    pub(crate) output: PathBuf,
    /// Element type: f32, or bf16 for half the size.
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    pub(crate) dtype: String,
    /// Replace an existing file.
    #[arg(long)]
    pub(crate) force: bool,
    /// Seed of the text that the model writes.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) engine: Engine,
}

#[derive(Debug, Args)]
pub(crate) struct TruncateArgs {
    /// Adapter folder or hub id: a LoRA.
    #[arg(long, short, visible_alias = "lora", value_name = "ADAPTER")]
    pub(crate) adapter: PathBuf,
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
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub(crate) calibration: Option<PathBuf>,
    /// Seed of the text that the model writes.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
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

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model or an adapter: a folder, a file, or a hub id.
    pub(crate) path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Base model: a folder, a .safetensors file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Format of the output.
    #[arg(long, alias = "dtype", value_name = "FORMAT", value_parser = formats(false))]
    pub(crate) to: String,
    /// Output folder (or .safetensors file).
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) quantization: Quantization,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// The merge to examine: a folder, a .safetensors file, or a hub id.
    #[arg(long, value_name = "MERGED")]
    pub(crate) merged: PathBuf,
    /// Share of the delta from which it counts as kept.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    pub(crate) min_survival: f64,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    /// Worker threads (default: one per processor).
    #[arg(long, short = 't', value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a model is run.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct Engine {
    /// Worker threads (default: one per processor).
    #[arg(long, short = 't', value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Most memory to use, like 2G; weights that do not fit are read again whenever they are used.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// A merge to compare, made by any tool; may be given several times.
    #[arg(long, value_name = "MERGED")]
    pub(crate) merged: Vec<PathBuf>,
    /// Another adapter to compare, kept apart beside the same base, as one that was cut; may be given several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) beside: Vec<String>,
    /// UTF-8 text to predict.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Prompts to continue greedily, one per line (default: the starts of four windows).
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens of a window.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) context: usize,
    /// Most windows (default: all).
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<usize>,
    /// Tokens of a continuation; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) continuation: usize,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Also write the answer to this file: .json, or .html for a page with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Base model: a folder, a .safetensors file, or a hub id.
    #[arg(long, short = 'm', visible_alias = "model", value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Adapter folder or hub id, with an optional factor on its effect; may be given several times.
    #[arg(long, short, visible_alias = "lora", aliases = ADAPTER_ALIASES, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
    /// What to continue; `-` reads it from the standard input.
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// The prompt is a message: put it into the model's chat template.
    #[arg(long)]
    pub(crate) chat: bool,
    /// Most tokens of the answer.
    #[arg(long, short = 'n', alias = "n-predict", value_name = "N", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// 0 takes the most likely token; 1 draws by the model's own probabilities.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Draw among the most likely tokens that together have this share.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// The same seed draws the same tokens.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Print nothing but the answer.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Reports of merges, and what `compare --json` printed or `compare --report` wrote; or one of them.
    #[arg(value_name = "FILE.json", required = true)]
    pub(crate) documents: Vec<PathBuf>,
    /// The page.
    #[arg(long, short, value_name = "FILE.html")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder for the demo's model, adapter and merges.
    #[arg(long, short, value_name = "FOLDER", default_value = "qmerge-demo")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell that the script is for.
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for one page per command.
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

/// What other tools call a format.
const FORMAT_ALIASES: &[(&str, &[&str])] = &[
    ("f32", &["fp32", "float32"]),
    ("f16", &["fp16", "float16", "half"]),
    ("bf16", &["bfloat16", "merged_16bit"]),
    ("nf4", &["merged_4bit", "merged_4bit_forced"]),
];

/// The names that `--to` takes. Those of other tools become ours.
fn formats(same: bool) -> impl TypedValueParser<Value = String> {
    let same = same.then(|| PossibleValue::new("same").help("as the base is stored, weight by weight"));
    let known = FORMATS.iter().map(|format| {
        let aliases = FORMAT_ALIASES.iter().filter(|(id, _)| *id == format.id()).flat_map(|(_, aliases)| *aliases);
        PossibleValue::new(format.id()).help(format.about()).aliases(aliases.copied())
    });
    PossibleValuesParser::new(same.into_iter().chain(known)).map(|name| {
        let own = FORMAT_ALIASES.iter().find(|(_, aliases)| aliases.contains(&name.as_str()));
        own.map_or(name, |(id, _)| (*id).to_owned())
    })
}

/// The names that `--rounding` takes.
fn roundings() -> PossibleValuesParser {
    let auto = PossibleValue::new("auto").help("`adapter` where the output is coarser than 16 bits and the model can be run, `stochastic` where it cannot, `nearest` at 16 bits");
    let methods = ROUNDINGS.iter().map(|method| PossibleValue::new(method.id()).help(method.about()));
    PossibleValuesParser::new(std::iter::once(auto).chain(methods))
}

/// Bytes, with K, M, G or T (powers of 1024) behind.
fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim().trim_end_matches(['b', 'B']).trim_end_matches(['i', 'I']);
    let (digits, unit) = match trimmed.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&trimmed[..at], unit.to_ascii_uppercase()),
        _ => (trimmed, ' '),
    };
    let shift = match unit {
        ' ' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return Err(format!("`{text}` is not a size: write 300M or 2G")),
    };
    let number = digits.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    let number = number.ok_or_else(|| format!("`{text}` is not a size: write 300M or 2G"))?;
    Ok((number * (1_u64 << shift) as f64) as u64)
}

/// A share from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share lies between 0 and 1, like 0.9".into())
}

/// A repository's name on the hub, as `hf upload` takes it: `name` or `owner/name`.
fn repo_id(text: &str) -> Result<String, String> {
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['-', '.'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (owner, name) = text.split_once('/').unwrap_or(("owner", text));
    if fits(owner) && fits(name) { Ok(text.to_owned()) } else { Err("write owner/name".into()) }
}

/// Splits `PATH=WEIGHT`; a path that exists with its `=` is taken as it is.
pub(crate) fn adapter_and_weight(text: &str) -> Result<(PathBuf, f64), String> {
    if let Some((path, weight)) = text.rsplit_once('=')
        && !std::path::Path::new(text).exists()
    {
        let number = weight.parse().ok().filter(|number: &f64| number.is_finite());
        let number = number.ok_or_else(|| format!("`{weight}` in `--adapter {text}` is not a number"))?;
        return Ok((PathBuf::from(path), number));
    }
    Ok((PathBuf::from(text), 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("300M"), Ok(300 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1.5k"), Ok(1536));
        assert_eq!(size("77"), Ok(77));
        for text in ["many", "nan", "infG", "-1M", "M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn repositories_are_told_from_paths() {
        assert_eq!(repo_id("me/my-merge_v1.0"), Ok("me/my-merge_v1.0".into()));
        assert_eq!(repo_id("merge"), Ok("merge".into()));
        for text in ["", "/a", "a/", "a/b/c", "./a", "--delete", "a b", "https://host/a"] {
            assert!(repo_id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn weights_are_split_off() {
        assert_eq!(adapter_and_weight("a/b=0.5"), Ok((PathBuf::from("a/b"), 0.5)));
        assert_eq!(adapter_and_weight("a/b"), Ok((PathBuf::from("a/b"), 1.0)));
        for text in ["a=x", "a=nan", "a=inf", "a="] {
            assert!(adapter_and_weight(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_from_0_to_1() {
        for (text, want) in [("0", 0.0), ("0.9", 0.9), ("1", 1.0)] {
            assert_eq!(share(text), Ok(want));
        }
        for text in ["nan", "NaN", "inf", "-inf", "1.5", "-0.1", "90", "90%", ""] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
