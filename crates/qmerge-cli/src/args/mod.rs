//! The command line as typed. Parsing checks values and does nothing else.

mod adapters;
mod commands;
mod groups;
mod values;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use adapters::{CombineArgs, ConvertAdapterArgs, ExtractArgs, TruncateArgs};
pub(crate) use commands::{
    CalibrateArgs, CompareArgs, CompletionsArgs, ConvertArgs, DemoArgs, GenerateArgs, InspectArgs, ManArgs, MergeArgs,
    PlanArgs, ReportArgs, TokenizerArg, UnmergeArgs, VerifyArgs,
};
pub(crate) use groups::{
    Calibrating, Engine, Meaning, Measure, Quantization, Running, Scaling, Sources, Tuned, majority,
};
pub(crate) use values::{adapter_and_weight, floats, threads};

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
    /// The commands with their options.
    pub(crate) fn all() -> clap::Command {
        // A plan writes nothing, so that a place is of no use to it but where the plan is about the place.
        let anywhere = |plan: clap::Command| plan.mut_arg("output", |arg| arg.required(false).default_value("merged"));
        Self::command().mut_subcommand("plan", anywhere)
    }

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
        let mut command = with_negative_numbers(Self::all());
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
                      qmerge merge --base base --adapter my-lora -o merged --rounding nearest    (PEFT's bytes)\n  \
                      qmerge merge --base base --adapter a=0.7 --adapter b=0.3 -o both\n  \
                      qmerge merge --base base --adapter my-lora -o merged --dry-run\n\n\
                      Exit status: 0 done, 1 less is left than --min-kept or --min-survival asks for, 2 wrong use or unfit input, 3 reading or writing failed."
    )]
    Merge(Box<MergeArgs>),
    /// Put the parts of a merge together, that were written with `merge --part`.
    #[command(mut_arg("part", |part| part.hide(true)), mut_arg("on", |on| on.hide(true)), after_help = "Give it what the parts were given, without --part.\n\nExamples:\n  \
                      qmerge merge --base base-nf4 --adapter my-lora -o merged --part 1/2\n  \
                      qmerge merge --base base-nf4 --adapter my-lora -o merged --part 2/2\n  \
                      qmerge finish --base base-nf4 --adapter my-lora -o merged")]
    Finish(Box<MergeArgs>),
    /// Say what a merge would do and take, whole or in parts, and write nothing.
    #[command(mut_arg("part", |part| part.hide(true)), mut_arg("on", |on| on.hide(true)), after_help = "Examples:\n  qmerge plan --base base-nf4 --adapter my-lora -o merged --parts 4\n  \
                            qmerge plan --base base-nf4 --adapter my-lora -o merged --parts 16 --json")]
    Plan(Box<PlanArgs>),
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
    /// Compare base, adapter kept apart and merges on a text: loss, KL divergence, top-1, speed, continuations.
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
    /// Make one adapter of several, each with a weight: their sum, or what PEFT's add_weighted_adapter makes of them.
    #[command(after_help = "Examples:\n  qmerge combine --adapter a=0.7 --adapter b=0.3 -o both\n  \
                            qmerge combine --adapter a --adapter b=-0.5 --rank 16 -o a-without-b\n  \
                            qmerge combine --adapter a --adapter b --method ties_svd --density 0.2 -o both")]
    Combine(Box<CombineArgs>),
    /// Make an adapter of what a tuned model differs from its base by.
    #[command(
        override_usage = "qmerge extract [OPTIONS] --base <BASE> --tuned <TUNED> --output <OUT>\n       \
                                <--rank <R>|--energy <SHARE>>",
        after_help = "Examples:\n  qmerge extract --base base --tuned tuned --rank 64 -o tuned-r64\n  \
                            qmerge extract --base base --tuned tuned --energy 0.99 --no-full -o tuned-99\n\n\
                            `qmerge compare --base base --adapter tuned-r64 --merged tuned` tells what the rank costs."
    )]
    Extract(Box<ExtractArgs>),
    /// Turn an adapter of any method (LoHa, LoKr, OFT, IA3, DoRA, …) into a LoRA, which every server loads.
    #[command(
        override_usage = "qmerge convert-adapter [OPTIONS] --output <OUT>\n       \
                          [BASE ADAPTER[=WEIGHT]]...",
        after_help = "Examples:\n  qmerge convert-adapter --base base --adapter my-lokr --rank 16 -o my-lokr-as-lora\n  \
                      qmerge convert-adapter --base base --adapter my-oft --energy 0.99 -o my-oft-as-lora\n  \
                      qmerge convert-adapter --base base --adapter my-lora --to gguf-lora -o my-lora.gguf"
    )]
    ConvertAdapter(Box<ConvertAdapterArgs>),
    /// Take adapters out of a merge again: what they added is subtracted.
    #[command(after_help = "Examples:\n  qmerge unmerge --base merged --adapter my-lora -o base-again")]
    Unmerge(Box<UnmergeArgs>),
    /// Continue a prompt with a model, or with a base and its adapter kept apart.
    #[command(
        after_help = "Examples:\n  qmerge generate --base base-nf4 --adapter my-lora --prompt \"In the beginning\"\n  \
                            qmerge generate --base merged --chat --prompt \"Who are you?\" --temperature 0.7 --seed 1\n  \
                            qmerge generate --base base-nf4 --adapter my-lora --system \"Answer in one sentence.\""
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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    /// Where it goes to a terminal, and NO_COLOR is not set.
    Auto,
    Always,
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::all().debug_assert();
    }
}
