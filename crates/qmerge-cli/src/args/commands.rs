//! The options of all other commands.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use qmerge::plan::Part;

use super::groups::{
    ADAPTER_ALIASES, Calibrating, CalibrationAmount, Engine, Meaning, Measuring, Merged, Model, OUTPUT_ALIASES,
    Quantization, Running, Scaling, Sources, Tuned, Workers, Writing,
};
use super::values::{budget, cluster, formats, parts, promotions, repo_id, roundings, share, tokens};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenizerArg {
    /// The adapter's where it has one, else the base's.
    Adapter,
    /// The base's.
    Base,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    #[command(flatten)]
    pub(crate) tuned: Tuned,
    /// Output folder (or .safetensors or .gguf file).
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT", help_heading = "Output")]
    pub(crate) output: PathBuf,
    /// Format of the output.
    #[arg(long, alias = "dtype", value_name = "FORMAT", default_value = "same", value_parser = formats(true), ignore_case = true, help_heading = "Output")]
    pub(crate) to: String,
    /// The same as --to bf16.
    #[arg(long, alias = "de-quantize", hide = true, conflicts_with = "to")]
    pub(crate) dequantize: bool,
    /// How codes are chosen.
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = roundings(), help_heading = "Rounding")]
    pub(crate) rounding: String,
    #[command(flatten)]
    pub(crate) calibrating: Calibrating,
    /// Also write what rounding leaves as a LoRA of this rank, into the output's folder `residual-adapter`.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true, help_heading = "Output")]
    pub(crate) residual_rank: Option<u32>,
    /// Give the weights that lose most a wider type than their own, `auto` or one of GGUF's such as q8_0, as far as --budget goes, and those that their type cannot be written in.
    #[arg(long, value_name = "auto|TYPE", value_parser = promotions(), ignore_case = true, hide_possible_values = true, hide_short_help = true, help_heading = "Output")]
    pub(crate) promote: Option<String>,
    /// How much larger --promote may make the output, as a share of its bytes, beside what weights take that cannot be written as they are (default: 2%).
    #[arg(long, value_name = "SHARE", value_parser = budget, requires = "promote", hide_short_help = true, help_heading = "Output")]
    pub(crate) budget: Option<f64>,
    #[command(flatten)]
    pub(crate) measuring: Measuring,
    /// Whose tokenizer and chat template the output takes.
    #[arg(long, value_enum, default_value = "adapter", help_heading = "Output")]
    pub(crate) tokenizer: TokenizerArg,
    /// Merge only this part, like 2/4, into a folder beside OUT; `qmerge finish` puts all parts together.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["residual_rank", "min_kept", "min_survival", "report", "push"], hide_short_help = true, help_heading = "Output")]
    pub(crate) part: Option<Part>,
    /// Have the parts of the merge done by the machines of a Ray cluster, `ray://HOST:PORT`, or of the one that this machine is in, `ray`; they see the output's folder under the same path. Needs the Python package with Ray: pip install "./bindings/python[ray]" in a checkout.
    #[arg(long, value_name = "CLUSTER", value_parser = cluster, conflicts_with_all = ["part", "residual_rank", "dry_run", "moments", "threads"], hide_short_help = true, help_heading = "Output")]
    pub(crate) on: Option<String>,
    /// Store what this merge would be rounded by, for its parts, and merge nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["part", "dry_run"], hide = true)]
    pub(crate) moments: Option<PathBuf>,
    /// Say at the end how to upload the output to this repository on the hub; nothing is uploaded.
    #[arg(long, alias = "upload-repo", value_name = "REPO_ID", value_parser = repo_id, hide_short_help = true, help_heading = "Output")]
    pub(crate) push: Option<String>,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) quantization: Quantization,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) merge: MergeArgs,
    /// Say what each of so many parts reads, writes and takes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parts, help_heading = "Output")]
    pub(crate) parts: usize,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Adapter that the model runs with, like those to be merged (default: none).
    #[arg(long, short, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
    /// Text like the model's task (default: text that the model writes itself).
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<PathBuf>,
    /// Moments that were stored of this base, in files or folders of them: they are added up, each by its number of tokens, and the model is not run.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["adapter", "text", "calibration_tokens", "calibration_time"])]
    pub(crate) add: Vec<PathBuf>,
    /// Output file.
    #[arg(long, short, value_name = "FILE.safetensors")]
    pub(crate) output: PathBuf,
    /// Element type: f32, or bf16 for half the size.
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    pub(crate) dtype: String,
    /// Replace an existing file.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) amount: CalibrationAmount,
    #[command(flatten)]
    pub(crate) writing: Writing,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) engine: Engine,
}

#[derive(Debug, Args)]
pub(crate) struct UnmergeArgs {
    #[command(flatten)]
    pub(crate) merged: Merged,
    /// Output folder (or .safetensors or .gguf file).
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT", help_heading = "Output")]
    pub(crate) output: PathBuf,
    /// Format of the output.
    #[arg(long, alias = "dtype", value_name = "FORMAT", default_value = "same", value_parser = formats(true), ignore_case = true, help_heading = "Output")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) running: Running,
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
    #[command(flatten)]
    pub(crate) model: Model,
    /// Format of the output.
    #[arg(long, alias = "dtype", value_name = "FORMAT", value_parser = formats(false), ignore_case = true)]
    pub(crate) to: String,
    /// Output folder (or .safetensors or .gguf file).
    #[arg(long, short, aliases = OUTPUT_ALIASES, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// llama.cpp's importance matrix of this model: into GGUF, values are rounded as llama-quantize does with it.
    #[arg(long, value_name = "FILE")]
    pub(crate) imatrix: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) quantization: Quantization,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    #[command(flatten)]
    pub(crate) tuned: Tuned,
    /// The merge to examine: a folder, a .safetensors or .gguf file, or a hub id (default: the last word without an option).
    #[arg(long, value_name = "MERGED")]
    pub(crate) merged: Option<PathBuf>,
    /// Share of the delta from which it counts as kept.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    pub(crate) min_survival: f64,
    #[command(flatten)]
    pub(crate) meaning: Meaning,
    #[command(flatten)]
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) workers: Workers,
    /// Print nothing but errors.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl VerifyArgs {
    /// The merge. It is there once the words of the command line have their places.
    pub(crate) fn merged(&self) -> &Path {
        self.merged.as_deref().unwrap_or(Path::new(""))
    }
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    #[command(flatten)]
    pub(crate) tuned: Tuned,
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
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Also write the answer to this file: .json, or .html for a page with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Adapter folder or hub id, with an optional factor on its effect; may be given several times.
    #[arg(long, short, visible_alias = "lora", aliases = ADAPTER_ALIASES, value_name = "ADAPTER[=WEIGHT]")]
    pub(crate) adapter: Vec<String>,
    /// What to continue; `-` reads it from the standard input.
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// The prompt is a message: put it into the model's chat template. Without a prompt each line of the standard input is one, and the answers are remembered; `/exit` ends it.
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the model is told before the first message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of the answer.
    #[arg(long, short = 'n', alias = "n-predict", value_name = "N", default_value_t = 128, value_parser = tokens)]
    pub(crate) max_tokens: usize,
    /// 0 takes the most likely token; 1 draws by the model's own probabilities.
    #[arg(long, alias = "temp", value_name = "T", default_value_t = 0.0)]
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
    pub(crate) scaling: Scaling,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Print nothing but the answer.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Reports of merges, or the folders that they are in, and what `compare --json` printed or `compare --report` wrote; or one of them.
    #[arg(value_name = "FILE.json|FOLDER", required = true)]
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
