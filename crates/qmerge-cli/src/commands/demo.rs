//! `qmerge demo`: the main job on a small trained model that the program carries.

use std::path::Path;

use anyhow::{Context, Result};
use qmerge::report::command_line;

use crate::args::{Cli, Command, DemoArgs};
use crate::{Outcome, show};

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_bytes!(concat!("../../demo/", $name)).as_slice())),*] };
}

/// The demo's files, in the program itself.
const FILES: &[(&str, &[u8])] = files![
    "README.md",
    "base-nf4/config.json",
    "base-nf4/generation_config.json",
    "base-nf4/model.safetensors",
    "base-nf4/tokenizer.json",
    "base-nf4/tokenizer_config.json",
    "base-bf16/config.json",
    "base-bf16/generation_config.json",
    "base-bf16/model.safetensors",
    "base-bf16/tokenizer.json",
    "base-bf16/tokenizer_config.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "calibration.txt",
    "eval.txt",
];

pub(crate) fn run(args: &DemoArgs) -> Result<Outcome> {
    let folder = &args.output;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))
            .with_context(|| format!("cannot create {}", folder.display()))?;
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let shown = folder.display();
    show::say(&format!(
        "A small Llama in NF4 and a LoRA that PEFT trained on it are in {shown}. Merged as PEFT does:\n"
    ));
    merge(folder, "merged-as-peft", &["--rounding", "nearest"])?;
    show::say("\nThe same size and format, rounded so that the adapter survives:\n");
    merge(folder, "merged-nf4", &[])?;
    show::say("\nInto 16 bits, which takes more room:\n");
    merge(folder, "merged-bf16", &["--to", "bf16"])?;
    Ok(Outcome::Done)
}

/// Shows a command line and does it.
fn merge(folder: &Path, name: &str, more: &[&str]) -> Result<()> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (base, adapter, output) = (path("base-nf4"), path("adapter"), path(name));
    let words = [&["qmerge", "merge", "--base", &base, "--adapter", &adapter, "-o", &output], more].concat();
    let line = command_line(&words);
    anstream::println!("$ {line}");
    // Done again, the demo replaces its own outputs.
    let Command::Merge(args) = Cli::read(words.into_iter().chain(["--force"]))?.command else {
        return Ok(());
    };
    super::merge::run(&args, super::merge::Way::Whole, &line)?;
    Ok(())
}
