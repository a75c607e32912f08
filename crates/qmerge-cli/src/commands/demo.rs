//! `qmerge demo`: the main job on a small trained model that the program carries.

use std::path::Path;

use anyhow::{Context, Result};
use qmerge::adapters::Adapter;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::write::Existing;

use crate::args::DemoArgs;
use crate::progress::Bar;
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
    anstream::println!(
        "A small Llama in NF4 and a LoRA that PEFT trained on it are in {shown}. Merged as PEFT does:\n"
    );
    anstream::println!("$ qmerge merge --base {shown}/base-nf4 --adapter {shown}/adapter -o {shown}/merged-nf4");
    merge(folder, None, "merged-nf4")?;
    anstream::println!("\nThe same into 16 bits, which takes more room and keeps the effect:\n");
    anstream::println!(
        "$ qmerge merge --base {shown}/base-nf4 --adapter {shown}/adapter --to bf16 -o {shown}/merged-bf16"
    );
    merge(folder, Some("bf16"), "merged-bf16")?;
    Ok(Outcome::Done)
}

fn merge(folder: &Path, to: Option<&str>, name: &str) -> Result<()> {
    let base = Checkpoint::open(&folder.join("base-nf4"))?;
    let adapter = Adapter::open(&folder.join("adapter"), 1.0)?;
    let inputs = Inputs::new(base, vec![adapter])?;
    let options = Options { to: to.map(formats::by_id).transpose()?, ..Options::default() };
    let plan = Plan::new(&inputs, &options)?;
    let run = RunOptions { existing: Existing { force: true, resume: false }, ..RunOptions::default() };
    let bar = Bar::new(false);
    let report = merge::run(&inputs, &plan, options.rounding, None, &folder.join(name), &run, &bar);
    bar.clear();
    show::report(&report?);
    Ok(())
}
